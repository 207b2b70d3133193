"""From a decoded image and its objects to what the networks see.

Everything random is drawn from Python's global generator and torch's, which the caller seeds for each sample.

Shape legend: n objects, h height, w width, c channels.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import ColorJitter

from distpro_cli.recipe import schema
from distpro_cli.tasks.detection.annotations import Objects
from distpro_cli.tasks.images.sources import Pixels
from distpro_cli.tasks.images.transforms import resize
from distpro_cli.tasks.images.workers import empty_batch
from distpro_cli.tasks.task import Sizes

MULTIPLE = 32  # of which the sides of a batch are
LONGEST = 5 / 3  # of the longer side by the shorter one, as 1333 by 800 pixels

Target = dict[str, Any]


def shorter_side(data: schema.Data) -> int:
    """Returns the pixels of the shorter side of an image, which is what `image_size` says here."""
    return min(data.height_width)


def longest_side(data: schema.Data) -> int:
    """Returns the most pixels of the longer side of an image that is scaled to `image_size`."""
    return round(shorter_side(data) * LONGEST) if data.longest_side is None else data.longest_side


def scaled_size(height: int, width: int, shorter: float, longest: float) -> tuple[int, int]:
    """Returns the size of an image whose shorter side becomes `shorter`, unless the longer one exceeded `longest`."""
    scale = min(shorter / min(height, width), longest / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


class DetectionTransform:
    """Scales an image and its objects, and in training flips it and changes its colours.

    Args:
        data: Sizes and augmentation.
        training: Whether to augment.
        masks: Whether targets have masks.
    """

    def __init__(self, data: schema.Data, *, training: bool, masks: bool) -> None:
        self._size, self._longest = shorter_side(data), longest_side(data)
        self._training, self._masks = training, masks
        self._augment = data.augment
        strength = data.augment.color_jitter
        self._colors = ColorJitter(brightness=strength, contrast=strength, saturation=strength) if strength else None

    def __call__(self, image_hwc: Pixels, objects: Objects) -> tuple[Pixels, Target]:
        """Returns the image as uint8 [H, W, 3] and its targets.

        These are `boxes` float32 [N, 4] (left, top, right, bottom in pixels of the scaled image), `labels` int64 [N]
        from 1 and, if wanted, `masks` uint8 [N, H, W]. Crowds are left out; N may be 0.
        """
        factor, flipped = 1.0, False
        if self._training:
            factor = random.uniform(*self._augment.resize)
            flipped = random.random() < self._augment.flip
        before = (image_hwc.shape[0], image_hwc.shape[1])
        height, width = scaled_size(before[0], before[1], self._size * factor, self._longest * max(factor, 1.0))
        image_hwc = resize(image_hwc, height, width)
        if flipped:
            image_hwc = image_hwc[:, ::-1]
        if self._training and self._colors is not None:
            image_hwc = np.asarray(self._colors(Image.fromarray(np.ascontiguousarray(image_hwc))))
        single = ~objects.crowd_n
        scale = np.array([width / before[1], height / before[0]] * 2, dtype=np.float32)
        boxes_n4 = objects.boxes_n4[single] * scale
        if flipped:
            boxes_n4 = np.stack([width - boxes_n4[:, 2], boxes_n4[:, 1], width - boxes_n4[:, 0], boxes_n4[:, 3]], 1)
        target: Target = {
            "boxes": torch.from_numpy(np.ascontiguousarray(boxes_n4)),
            "labels": torch.from_numpy(objects.labels_n[single]),
        }
        if self._masks:
            masks = [mask for mask, kept in zip(objects.masks, single, strict=True) if kept]
            target["masks"] = drawn_masks(masks, before, (height, width), flipped=flipped)
        return image_hwc, target


def drawn_masks(
    masks: Sequence[Any], before: tuple[int, int], size: tuple[int, int], *, flipped: bool = False
) -> Tensor:
    """Returns masks as uint8 [N, H, W]: polygons drawn at the size asked for, run lengths scaled to it.

    Args:
        masks: As COCO's files have them.
        before: Height and width that they are of.
        size: H and W.
        flipped: Whether left and right change places.
    """
    drawn_nhw = np.zeros((len(masks), *size), dtype=np.uint8)
    for number, mask in enumerate(masks):
        if isinstance(mask, Mapping):
            whole_hw = np.asarray(_decoded(mask, before))
            drawn_nhw[number] = np.asarray(
                Image.fromarray(whole_hw).resize((size[1], size[0]), Image.Resampling.NEAREST)
            )
        else:
            factors = np.array([size[1] / before[1], size[0] / before[0]])
            polygons = [(np.reshape(polygon, (-1, 2)) * factors).flatten().tolist() for polygon in mask]
            drawn_nhw[number] = _decoded(polygons, size)
    if flipped:
        drawn_nhw = np.ascontiguousarray(drawn_nhw[:, :, ::-1])
    return torch.from_numpy(drawn_nhw)


def run_lengths(mask: Any, size: tuple[int, int]) -> Any:
    """Returns COCO's polygons or run lengths as compressed run lengths.

    Args:
        mask: Polygons, or run lengths, compressed or not.
        size: Height and width of the image.
    """
    from pycocotools import mask as coco_masks

    if isinstance(mask, Mapping) and not isinstance(mask["counts"], list):
        return mask
    found = coco_masks.frPyObjects(mask, *size)
    return coco_masks.merge(found) if isinstance(found, list) else found


def _decoded(mask: Any, size: tuple[int, int]) -> NDArray[np.uint8]:
    from pycocotools import mask as coco_masks

    with warnings.catch_warnings():  # pycocotools 2.0 does not know an argument of numpy 2's
        warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
        decoded: NDArray[np.uint8] = coco_masks.decode(run_lengths(mask, size))
    return decoded


def padded(images: Sequence[Pixels]) -> tuple[Tensor, Sizes]:
    """Returns images as uint8 [B, 3, H, W], padded at the bottom and to the right, and their sizes.

    H and W are the smallest multiples of 32 that hold them all.
    """
    sizes = tuple((image.shape[0], image.shape[1]) for image in images)
    height, width = (-(-max(size[axis] for size in sizes) // MULTIPLE) * MULTIPLE for axis in (0, 1))
    images_bhwc = empty_batch(len(images), height, width, 3).zero_()
    for place, image_hwc, (rows, columns) in zip(images_bhwc.numpy(), images, sizes, strict=True):
        place[:rows, :columns] = image_hwc
    return images_bhwc.permute(0, 3, 1, 2), sizes
