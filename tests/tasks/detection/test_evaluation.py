"""Average precision against cases computed by hand."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch

from distpro_cli.tasks.detection.annotations import Objects
from distpro_cli.tasks.detection.evaluation import Judged, average_precisions, judged
from distpro_cli.tasks.detection.transforms import run_lengths

SIZE = (200, 300)


def objects(boxes: list[list[float]], labels: list[int] | None = None, crowd: tuple[int, ...] = ()) -> Objects:
    """Objects that fill their boxes (left, top, right, bottom)."""
    array = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    polygons = [[[left, top, right, top, right, bottom, left, bottom]] for left, top, right, bottom in boxes]
    return Objects(
        array,
        np.array(labels or [1] * len(boxes), dtype=np.int64),
        (array[:, 2] - array[:, 0]) * (array[:, 3] - array[:, 1]),
        np.isin(np.arange(len(boxes)), crowd),
        tuple(polygons),
    )


def found(*boxes: list[float], scores: list[float], labels: list[int] | None = None) -> dict[str, torch.Tensor]:
    return {
        "boxes": torch.tensor(boxes).reshape(-1, 4),
        "labels": torch.tensor(labels or [1] * len(boxes)),
        "scores": torch.tensor(scores),
    }


def figures(own: Objects, detections: dict[str, torch.Tensor], num_classes: int = 1) -> dict[str, float]:
    return average_precisions([judged(detections, SIZE, own, SIZE)], num_classes)


@pytest.fixture(autouse=True, params=["pycocotools", "faster-coco-eval"])
def _tool(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "pycocotools":
        monkeypatch.setitem(sys.modules, "faster_coco_eval", None)  # as if it were not installed
    else:
        pytest.importorskip("faster_coco_eval")


SMALL, MEDIUM, LARGE = [5.0, 5.0, 25.0, 25.0], [50.0, 10.0, 110.0, 70.0], [150.0, 50.0, 280.0, 190.0]


def test_a_false_one_between_two_right_ones() -> None:
    """Precision is 1 up to a recall of ½, then 2/3: 51 and 50 of COCO's 101 recalls."""
    result = figures(objects([MEDIUM, LARGE]), found(LARGE, SMALL, MEDIUM, scores=[0.9, 0.8, 0.7]))
    expected = 100 * (51 + 50 * 2 / 3) / 101
    assert result == pytest.approx(
        {"ap": expected, "ap50": expected, "ap75": expected} | {"ap_medium": 100.0, "ap_large": 100.0}
    )


def test_thresholds_of_overlap() -> None:
    """A box that shares 62 % with the object counts at 0.50, 0.55 and 0.60, three thresholds of ten."""
    left, top, right, bottom = LARGE
    part = [left, top, left + 0.62 * (right - left), bottom]
    result = figures(objects([LARGE]), found(part, scores=[0.5]))
    assert (result["ap"], result["ap50"], result["ap75"]) == pytest.approx((30.0, 100.0, 0.0))


def test_sizes_and_classes() -> None:
    """The second class is not found: AP is the mean over both. Sizes without objects are left out."""
    result = figures(objects([SMALL, MEDIUM], [1, 2]), found(SMALL, scores=[0.5]), num_classes=3)
    assert result == pytest.approx({"ap": 50.0, "ap50": 50.0, "ap75": 50.0, "ap_small": 100.0, "ap_medium": 0.0})


def test_what_lies_in_a_crowd_is_not_false() -> None:
    detections = found(SMALL, [160.0, 60.0, 200.0, 100.0], scores=[0.5, 0.9])
    assert figures(objects([SMALL, LARGE], crowd=(1,)), detections)["ap"] == pytest.approx(100.0)
    assert figures(objects([SMALL]), detections)["ap"] == pytest.approx(50.0)


def test_nothing_found_is_zero() -> None:
    assert figures(objects([SMALL]), found(scores=[])) == {"ap": 0.0}


def test_boxes_go_back_to_the_image_as_it_was() -> None:
    scaled = found([10.0, 20.0, 60.0, 40.0], scores=[1.0])
    result = judged(scaled, (100, 100), objects([SMALL]), (200, 300))
    assert result.boxes_n4.tolist() == [[30.0, 40.0, 180.0, 80.0]]


def test_masks_have_figures_of_their_own() -> None:
    """The box is right; the mask holds its left half, so that it shares ½ with the object: right at 0.50 alone."""
    own = objects([[50.0, 20.0, 250.0, 180.0]])
    left_half = np.zeros(SIZE, dtype=np.uint8)
    left_half[20:180, 50:150] = 1
    from pycocotools import mask as coco_masks

    encoded: Any = coco_masks.encode(np.asfortranarray(left_half))
    image = Judged(own, SIZE, torch.tensor(own.boxes_n4), torch.tensor([1]), torch.tensor([0.9]), (encoded,))
    result = average_precisions([image], 1)
    assert (result["ap"], result["mask_ap"], result["mask_ap50"]) == pytest.approx((100.0, 10.0, 100.0))
    full = judged({**found(own.boxes_n4[0].tolist(), scores=[0.9]), "masks": torch.ones(1, 1, 28, 28)}, SIZE, own, SIZE)
    assert average_precisions([full], 1)["mask_ap75"] == pytest.approx(100.0)
    assert full.masks is not None
    area = int(coco_masks.area(run_lengths(own.masks[0], SIZE)))
    assert int(coco_masks.area(full.masks[0])) == pytest.approx(area, rel=0.05)


def test_both_tools_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faster_coco_eval")
    generator = np.random.default_rng(0)
    images = []
    for _ in range(8):
        starts = generator.uniform(0, 120, (12, 2))
        boxes = np.concatenate([starts, starts + generator.uniform(4, 110, (12, 2))], axis=1)
        moved = boxes[:10] + generator.normal(0, 6, (10, 4))
        labels = generator.integers(1, 4, 12).tolist()
        own = objects(boxes.tolist(), labels, crowd=(3,))
        scores = generator.uniform(0, 1, 10).tolist()
        images.append(judged(found(*moved.tolist(), scores=scores, labels=labels[:10]), SIZE, own, SIZE))
    results = []
    for there in (True, False):
        with monkeypatch.context() as patch:
            if not there:
                patch.setitem(sys.modules, "faster_coco_eval", None)
            results.append(average_precisions(images, 3))
    assert results[0] == pytest.approx(results[1], abs=1e-9) and 5 < results[0]["ap"] < 95
