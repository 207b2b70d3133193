"""Images and objects on their way into a batch."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distpro_cli.errors import DistproError
from distpro_cli.recipe.schema import Data
from distpro_cli.tasks.detection.annotations import Objects
from distpro_cli.tasks.detection.data import DetectionData
from distpro_cli.tasks.detection.transforms import DetectionTransform, drawn_masks, padded, scaled_size
from tests.tasks.detection.fake import COLOURS, rectangle, write_json, write_split


def open_data(root: Path | str | None, seed: int = 0, outer_share: float | None = None, **spec: Any) -> DetectionData:
    given = {"root": None if root is None else str(root), "num_classes": 2, "image_size": 64, "workers": 0, **spec}
    return DetectionData(Data.model_validate(given), seed, outer_share, masks=True)


def box_of(mask_hw: Tensor) -> list[int]:
    rows, columns = (torch.where(mask_hw.any(axis))[0] for axis in (1, 0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_boxes_and_masks_follow_the_pixels(flip: float) -> None:
    """Scaled up by a jitter and flipped, the coloured rectangle is where its box and its mask are."""
    image_hwc = np.zeros((50, 80, 3), dtype=np.uint8)
    image_hwc[10:30, 8:40] = 255
    polygon = [[8, 10, 40, 10, 40, 30, 8, 30]]
    objects = Objects(
        np.array([[8, 10, 40, 30], [0, 0, 80, 50]], dtype=np.float32),
        np.array([2, 1]),
        np.array([640.0, 4000.0], dtype=np.float32),
        np.array([False, True]),
        (polygon, polygon),
    )
    data = Data.model_validate({"image_size": 100, "augment": {"flip": flip, "resize": [1.2, 1.2]}})
    random.seed(0)
    pixels, target = DetectionTransform(data, training=True, masks=True)(image_hwc, objects)
    assert pixels.shape == (120, 192, 3)
    assert target["labels"].tolist() == [2]  # without the crowd
    shown = torch.from_numpy(np.ascontiguousarray(pixels[:, :, 0])) > 127
    assert target["boxes"][0].tolist() == pytest.approx(box_of(shown), abs=1.5)
    assert target["masks"].shape == (1, 120, 192)
    assert box_of(target["masks"][0] > 0) == pytest.approx(target["boxes"][0].tolist(), abs=1.5)


def test_run_lengths_and_polygons_are_the_same_mask() -> None:
    from pycocotools import mask as coco_masks

    whole = np.zeros((40, 60), dtype=np.uint8)
    whole[10:30, 6:36] = 1
    compressed = coco_masks.encode(np.asfortranarray(whole))
    counts = [6 * 40 + 10, *([20, 20] * 29), 20]
    counts.append(40 * 60 - sum(counts))
    plain = {"size": [40, 60], "counts": counts}
    polygon = [[6, 10, 36, 10, 36, 30, 6, 30]]
    masks = drawn_masks([polygon, compressed, plain], (40, 60), (80, 120), flipped=True)
    assert torch.equal(masks[1], masks[2])
    assert box_of(masks[1] > 0) == [120 - 72, 20, 120 - 12, 60]
    assert (masks[0] != masks[1]).float().mean() < 0.02


def test_the_shorter_side_is_scaled_unless_the_longer_one_gets_too_long() -> None:
    assert scaled_size(480, 640, 800, 1333) == (800, 1067)
    assert scaled_size(200, 640, 800, 1333) == (417, 1333)


def test_padding_is_zero_below_and_to_the_right() -> None:
    images, sizes = padded([np.full((33, 20, 3), 9, np.uint8), np.full((10, 40, 3), 9, np.uint8)])
    assert images.shape == (2, 3, 64, 64) and sizes == ((33, 20), (10, 40))
    assert images[0, :, :33, :20].eq(9).all() and images[1, :, :10, :40].eq(9).all()
    assert int(images.sum()) == 9 * 3 * (33 * 20 + 10 * 40)


def test_batches_are_of_one_aspect_and_tell_true_sizes(mixed: Path) -> None:
    data = open_data(mixed)
    assert data.steps_per_epoch(2) == 6
    batches = list(data.train_batches(2, 6))
    seen = sorted(target["image"] for batch in batches for target in batch.targets)
    assert seen == list(range(12))
    for batch in batches:
        assert batch.sizes == tuple(target["size"] for target in batch.targets)
        assert {side % 32 for side in batch.images_bchw.shape[2:]} == {0}
        assert len({width >= height for height, width in batch.sizes or ()}) == 1
        for target, (height, width) in zip(batch.targets, batch.sizes or (), strict=True):
            assert target["masks"].shape[1:] == (height, width)
            assert (target["boxes"] <= torch.tensor([width, height, width, height])).all()
    empty = [target for batch in batches for target in batch.targets if target["image"] % 7 == 2]
    assert [target["boxes"].shape for target in empty] == [(0, 4)] * len(empty) and empty
    assert empty[0]["masks"].shape[0] == 0 and empty[0]["labels"].dtype == torch.int64


def test_outer_batches_of_train_images_hold_none_of_their_train_batch(mixed: Path) -> None:
    data = open_data(mixed)
    inner = list(data.train_batches(4, 6))
    outer = list(data.outer_batches(2, 3, inner=(4, 2)))
    for move, batch in enumerate(outer):
        own = {target["image"] for target in inner[2 * move].targets}
        assert len(batch.targets) == 2
        assert not own & {target["image"] for target in batch.targets}
    with pytest.raises(DistproError, match=r"search\.outer: train needs more than one batch"):
        data.outer_batches(2, 3, inner=(12, 1))


def test_colours_are_those_of_the_labels(mixed: Path) -> None:
    """Labels count the categories from 1 in the order of their ids."""
    data = open_data(mixed, augment={"flip": 1.0})
    colour_of = {1: COLOURS[3], 2: COLOURS[7]}
    for batch in data.train_batches(4, 3):
        for image_chw, target in zip(batch.images_bchw, batch.targets, strict=True):
            for box, label in list(zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True))[-1:]:
                middle = image_chw[:, int(box[1] + box[3]) // 2, int(box[0] + box[2]) // 2] * 255
                assert middle.tolist() == pytest.approx(colour_of[label], abs=6)


def test_places_of_other_tools_are_found(mixed: Path, tmp_path: Path) -> None:
    coco, roboflow = tmp_path / "coco", tmp_path / "roboflow"
    (coco / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        shutil.copy(mixed / f"{split}.json", coco / "annotations" / f"instances_{split}2017.json")
        shutil.copytree(mixed / "images", coco / f"{split}2017")
        place = roboflow / {"val": "valid"}.get(split, split)
        shutil.copytree(mixed / "images", place)
        shutil.copy(mixed / f"{split}.json", place / "_annotations.coco.json")
    plain = open_data(mixed).identity
    assert open_data(coco, train_split="train2017", test_split="val2017").identity == plain
    assert open_data(roboflow).identity == plain


def test_the_identity_follows_boxes_and_not_places(mixed: Path, tmp_path: Path) -> None:
    root = tmp_path / "moved"
    shutil.copytree(mixed, root)
    assert open_data(root).identity == open_data(mixed).identity
    content = json.loads((root / "train.json").read_text())
    content["annotations"][0]["bbox"][0] += 1
    write_json(root, "train", content)
    assert open_data(root).identity["train"] != open_data(mixed).identity["train"]
    assert open_data(root).identity["test"] == open_data(mixed).identity["test"]


def test_found_tells_of_empty_images(mixed: Path) -> None:
    assert open_data(mixed).found.startswith("12 train images, 2 of them without objects, ")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"root": None}, "data.root is not set: name the folder that holds the images and COCO's JSON files"),
        ({"root": "nowhere"}, "data.root: 'nowhere' is no folder"),
        ({"train_split": "trian"}, r"has no annotations of 'trian' \(looked for annotations/instances_SPLIT.json"),
        ({"train_images": 99}, "data.train_images: 99 asked for, .*train.json has 12"),
    ],
)
def test_what_is_not_there(mixed: Path, spec: dict[str, Any], message: str) -> None:
    with pytest.raises(DistproError, match=message):
        open_data(**{"root": mixed, **spec})


def test_a_box_with_a_crowd_alone_is_no_object(tmp_path: Path) -> None:
    content = write_split(tmp_path, "train", [(64, 64)])
    content["annotations"] = [rectangle(1, 0, (3, 3, 40, 40), 7, iscrowd=1)]
    write_json(tmp_path, "train", content)
    with pytest.raises(DistproError, match=r"train\.json: no image has an object"):
        open_data(tmp_path, test_split="train")
