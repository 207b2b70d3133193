"""Bad input: everything is reported at once, with file and id; or left out and counted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from distpro_cli.errors import DistproError
from distpro_cli.recipe.schema import Data
from distpro_cli.tasks.detection.annotations import read_annotations
from distpro_cli.tasks.detection.data import DetectionData
from tests.conftest import Run
from tests.tasks.detection.fake import rectangle, write_json, write_split

RECIPE = """\
task: detection
data: {root: faulty, num_classes: 2, image_size: 64, workers: 0}
teacher: {name: mask_rcnn, options: {backbone: test_resnet}, train: {epochs: 1}}
student: {name: mask_rcnn, options: {backbone: test_resnet}}
"""


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    """One of every fault, in both splits."""
    root = tmp_path / "faulty"
    content = write_split(root, "train", [(64, 64)] * 6)
    own: list[dict[str, Any]] = [
        rectangle(1, 0, (4, 4, 20, 20), 7),
        rectangle(2, 0, (4, 4, 0, 20), 7),
        rectangle(3, 0, (50, 4, 20, 20), 7),
        rectangle(4, 0, (70, 70, 5, 5), 3),
        rectangle(5, 1, (4, 4, 20, 20), 99),
        rectangle(6, 1, (4, 4, 20, 20), 3, bbox=[1, 2, "x", 4]),
        rectangle(7, 1, (4, 4, 20, 20), 3, segmentation=[]),
        rectangle(8, 1, (4, 4, 20, 20), 3, segmentation=[[1, 2, 3]]),
        rectangle(9, 1, (4, 4, 20, 20), 3, segmentation={"size": [5, 5], "counts": "x"}),
        rectangle(10, 77, (4, 4, 20, 20), 3),
        rectangle(12, 1, (4, 4, 20, 20), 3, area="large"),
        rectangle(13, 1, (4, 4, 20, 20), 3, segmentation={"size": 64, "counts": "x"}),
        rectangle(14, 1, (4, 4, 20, 20), 3, segmentation={"size": [64, 64], "counts": [5, 7]}),
        rectangle(11, 2, (-0.5, 4, 20, 60.2), 3),  # within a pixel: clipped
    ]
    write_json(root, "train", {**content, "annotations": own})
    images = root / "images"
    (images / "train-3.png").unlink()
    (images / "train-4.png").write_bytes((images / "train-4.png").read_bytes()[:-20])
    Image.new("RGB", (32, 64)).save(images / "train-5.png")
    val = write_split(root, "val", [(64, 64)] * 2)
    (images / "val-1.png").write_bytes(b"nothing")
    write_json(root, "val", {**val, "annotations": [rectangle(1, 0, (4, 4, 20, 20), 7)]})
    return root


def open_data(root: Path, *, masks: bool = True, **spec: Any) -> DetectionData:
    return DetectionData(Data.model_validate({"root": str(root), "image_size": 64, **spec}), 0, masks=masks)


def test_all_faults_are_reported_at_once(faulty: Path, tmp_path: Path, distpro: Run) -> None:
    """Through the command line, before anything is trained."""
    (tmp_path / "r.yaml").write_text(RECIPE)
    for arguments in (("search", "r.yaml"), ("train", "r.yaml", "--network", "student")):
        result = distpro(*arguments)
        assert result.status == 2
        assert "fix them, or set data.skip_bad=true to leave them out" in result.err
        flat = " ".join(result.err.split())
        for expected in (
            "faulty/train.json: annotation 2, image 0 (train-0.png): bbox [4, 4, 0, 20] has no area",
            "annotation 3, image 0 (train-0.png): bbox [50, 4, 20, 20] reaches beyond the image of 64×64 pixels",
            "annotation 4, image 0",
            "annotation 5, image 1 (train-1.png): category 99 is not among the file's categories",
            'annotation 6, image 1 (train-1.png): bbox is [1, 2, "x", 4]; it must be four numbers',
            "annotation 7, image 1 (train-1.png): it has no segmentation; Mask R-CNN learns masks: take Faster R-CNN",
            "annotation 8, image 1 (train-1.png): its segmentation is no list of polygons",
            "annotation 9, image 1 (train-1.png): its segmentation is of [5, 5], the image of [64, 64] pixels",
            "annotation 10: there is no image 77",
            'annotation 12, image 1 (train-1.png): area is "large"; it must be a number of square pixels',
            "annotation 13, image 1 (train-1.png): its segmentation is neither polygons nor run lengths",
            "annotation 14, image 1 (train-1.png): its run lengths cover 12 pixels, the image has 4096",
            "images/train-3.png: image 3: there is no such file",
            "images/train-4.png: image 4: not a readable image (the file is cut off)",
            "images/train-5.png: image 5: it is 32×64 pixels, ",
            "images/val-1.png: image 1: not a readable image (no format that Pillow knows)",
        ):
            assert expected in flat, expected


def test_faults_can_be_left_out_and_are_counted(faulty: Path) -> None:
    data = open_data(faulty, skip_bad=True)
    assert (data.train_size, data.test_size) == (3, 1)
    labels = [own.labels_n.tolist() for own in data.train_source.objects]
    assert labels == [[2], [], [1]]
    assert data.train_source.objects[2].boxes_n4.tolist() == [[0, 4, 19.5, 64]]
    assert "skipped in train: 5 objects without a mask, 2 boxes outside" in data.found
    assert data.found.endswith("skipped in test: 1 broken images")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda own: own[:-1], "without"),
        (lambda own: [*own, {"id": 900, "name": "extra"}], "with extra"),
        (
            lambda own: [{**one, "name": other["name"]} for one, other in zip(own, own[::-1], strict=True)],
            "another order",
        ),
    ],
)
def test_splits_with_other_categories(
    mixed: Path, tmp_path: Path, distpro: Run, changed: Callable[[list[Any]], list[Any]], message: str
) -> None:
    root = tmp_path / "other"
    shutil.copytree(mixed, root)
    content = json.loads((root / "val.json").read_text())
    categories = changed(content["categories"])
    known = {category["id"] for category in categories}
    own = [entry for entry in content["annotations"] if entry["category_id"] in known]
    write_json(root, "val", {**content, "categories": categories, "annotations": own})
    (tmp_path / "r.yaml").write_text(RECIPE)
    result = distpro("search", "r.yaml", f"data.root={root}", "data.num_classes=3")
    flat = " ".join(result.err.split())
    assert result.status == 2 and "val.json has other categories than" in flat and message in flat, flat
    assert not list(Path("runs").rglob("*.safetensors"))


def test_without_masks_none_are_asked_for(faulty: Path) -> None:
    data = open_data(faulty, masks=False, skip_bad=True)
    assert [len(own.labels_n) for own in data.train_source.objects] == [1, 5, 1]
    assert all(own.masks == () for own in data.train_source.objects)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"no JSON \("),
        ("[1]", "no COCO file; it needs the lists images, annotations and categories"),
        ({"images": []}, "no COCO file"),
        ({"categories": []}, "categories need an id each"),
        ({"categories": [{"id": [1]}]}, "categories need an id each"),
        ({"categories": [{"id": 1}, {"id": "1"}]}, "the ids of its categories must all be numbers, or all texts"),
        ({"images": [{"id": 1, "file_name": "a"}] * 2}, "several images have the same id: 1"),
        ({"images": [{"id": 1}]}, "an image without id or file_name"),
    ],
)
def test_files_of_another_form(tmp_path: Path, content: Any, message: str) -> None:
    whole = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    text = content if isinstance(content, str) else json.dumps(whole | content)
    if content == {"images": []}:
        text = json.dumps({"images": []})
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(DistproError, match=message):
        read_annotations(tmp_path / "train.json")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.num_classes=3"], "data.num_classes: 3, but"),
        (["data.num_classes="], "data.num_classes: 80 (not set), but"),
        (["data.name=torch/cifar10"], "data.name: 'torch/cifar10'; detection reads images and COCO's JSON"),
        (["data.augment.random_erasing=0.5", "distill.mixup=0.2"], "data.augment.random_erasing: images of detection"),
        (["student.name=test_resnet", "student.options={}"], "it returns a Tensor; detection needs a detector"),
        (["student.options.backbone=vit_tiny_patch16_224"], "has no stages of 4, 8, 16 and 32 pixels per cell"),
        (["student.options.backbone=resnet81"], "options.backbone: timm knows no 'resnet81' (did you mean"),
        (["student.options.channels=0"], "channels"),
        (["student.options.colour=0"], "it takes no option 'colour'"),
    ],
)
def test_settings_that_do_not_fit(
    squares: Path, tmp_path: Path, distpro: Run, overrides: list[str], message: str
) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    result = distpro("train", "r.yaml", "--network", "student", f"data.root={squares}", *overrides)
    assert result.status == 2
    assert message in " ".join(result.err.split()), result.err
