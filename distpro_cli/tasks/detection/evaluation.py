"""Average precision by pycocotools: COCO's own figures; of boxes by faster-coco-eval, the same, where it is there.

Shape legend: n detections of an image.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from distpro_cli.errors import DistproError
from distpro_cli.tasks.detection.annotations import Objects
from distpro_cli.tasks.detection.transforms import run_lengths

FIGURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")  # in the order of pycocotools
MASK_SHARE = 0.5  # from which a pixel belongs to a mask


@dataclass(frozen=True)
class Judged:
    """What is in an image, and what a network found there.

    Attributes:
        objects: Of the image as it is.
        size: Its height and width in pixels.
        boxes_n4: Found, in its pixels.
        labels_n: From 1.
        scores_n: In [0, 1].
        masks: Run lengths of what was found, where the network finds masks.
    """

    objects: Objects
    size: tuple[int, int]
    boxes_n4: Tensor
    labels_n: Tensor
    scores_n: Tensor
    masks: tuple[Any, ...] | None = None


def check_pycocotools() -> None:
    """Raises DistproError if pycocotools is not installed."""
    try:
        import pycocotools  # noqa: F401
    except ImportError:
        raise DistproError(
            "task detection needs pycocotools, which is not installed: pip install 'distpro-cli[detection]'"
        ) from None


def judged(found: Mapping[str, Tensor], scaled: tuple[int, int], objects: Objects, size: tuple[int, int]) -> Judged:
    """Returns detections of a scaled image in the pixels of the image itself.

    Args:
        found: `boxes` [N, 4], `labels` [N], `scores` [N] and, of a network that finds masks, `masks` [N, 1, M, M]
            within the boxes, in [0, 1]; on the CPU.
        scaled: Height and width of the scaled image.
        objects: In the image.
        size: Its height and width.
    """
    factors = found["boxes"].new_tensor([size[1] / scaled[1], size[0] / scaled[0]] * 2)
    boxes_n4 = found["boxes"] * factors
    masks = None
    if "masks" in found and (objects.masks or not len(objects.labels_n)):
        masks = tuple(_encoded(found["masks"][n : n + 1], boxes_n4[n : n + 1], size) for n in range(len(boxes_n4)))
    return Judged(objects, size, boxes_n4, found["labels"], found["scores"], masks)


def _encoded(mask_11mm: Tensor, box_14: Tensor, size: tuple[int, int]) -> Any:
    from pycocotools import mask as coco_masks

    pasted_hw = paste_masks_in_image(mask_11mm, box_14, size)[0, 0] > MASK_SHARE
    return coco_masks.encode(np.asfortranarray(pasted_hw.numpy().astype(np.uint8)))


def average_precisions(images: Sequence[Judged], num_classes: int) -> dict[str, float]:
    """Returns COCO's average precisions in percent.

    Args:
        images: All images of the test set.
        num_classes: Labels are 1 to this.

    Returns:
        `ap` (mean over IoU 0.50 to 0.95), `ap50`, `ap75`, and by the size of the objects `ap_small`, `ap_medium` and
        `ap_large` of boxes; where masks are found, the same of masks as `mask_ap` and so on. What has no objects to
        speak of is left out.
    """
    figures = _figures(images, num_classes, "bbox")
    if all(image.masks is not None for image in images) and any(image.objects.masks for image in images):
        figures |= {f"mask_{name}": value for name, value in _figures(images, num_classes, "segm").items()}
    return figures


def _figures(images: Sequence[Judged], num_classes: int, kind: str) -> dict[str, float]:
    results = _results(images, kind)
    make_truth, make_evaluation = _tools(kind)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = make_truth()
        truth.dataset = _truth(images, num_classes)
        truth.createIndex()
        if not results:
            return {"ap": 0.0}
        evaluation = make_evaluation(truth, truth.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats = [float(value) for value in evaluation.stats[: len(FIGURES)]]
    return {name: 100 * value for name, value in zip(FIGURES, stats, strict=True) if value >= 0}


def _tools(kind: str) -> tuple[Any, Any]:
    """Returns the classes COCO and COCOeval."""
    if kind == "bbox":
        with contextlib.suppress(ImportError):
            import faster_coco_eval

            return faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return COCO, COCOeval


def _truth(images: Sequence[Judged], num_classes: int) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    for number, image in enumerate(images):
        objects = image.objects
        for n, (left, top, right, bottom) in enumerate(objects.boxes_n4.astype(float).tolist()):
            annotations.append(
                {
                    "id": len(annotations) + 1,  # pycocotools takes 0 for no match
                    "image_id": number,
                    "category_id": int(objects.labels_n[n]),
                    "bbox": [left, top, right - left, bottom - top],
                    "area": float(objects.areas_n[n]),
                    "iscrowd": int(objects.crowd_n[n]),
                    **({"segmentation": run_lengths(objects.masks[n], image.size)} if objects.masks else {}),
                }
            )
    sizes = [{"id": n, "height": image.size[0], "width": image.size[1]} for n, image in enumerate(images)]
    categories = [{"id": label, "name": str(label)} for label in range(1, num_classes + 1)]
    return {"info": {}, "images": sizes, "annotations": annotations, "categories": categories}


def _results(images: Sequence[Judged], kind: str) -> list[dict[str, Any]]:
    results = []
    for number, image in enumerate(images):
        found = zip(image.boxes_n4.tolist(), image.labels_n.tolist(), image.scores_n.tolist(), strict=True)
        for n, ((left, top, right, bottom), label, score) in enumerate(found):
            what: dict[str, Any] = {"bbox": [left, top, right - left, bottom - top]}
            if kind == "segm" and image.masks is not None:
                what = {"segmentation": dict(image.masks[n])}
            results.append({"image_id": number, "category_id": label, "score": score, **what})
    return results
