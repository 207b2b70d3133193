"""From a decoded image to what the networks see, in uint8 until the batch is made.

Everything random is drawn from the global generators of Python, NumPy and torch, which the caller seeds for each
sample: timm's transforms know no other way. Resizing is bilinear with antialias.

Shape legend: h height, w width, c channels, s image size.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data.auto_augment import augment_and_mix_transform, auto_augment_transform, rand_augment_transform
from timm.data.constants import IMAGENET_DEFAULT_MEAN
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import ColorJitter

from distpro_cli.errors import DistproError
from distpro_cli.recipe import schema
from distpro_cli.tasks.images.sources import Pixels

_BILINEAR = Image.Resampling.BILINEAR


def resize(image_hwc: Pixels, height: int, width: int) -> Pixels:
    """Returns the image at that size; the very same pixels where it has the size already."""
    if image_hwc.shape[:2] == (height, width):
        return image_hwc
    return np.asarray(Image.fromarray(image_hwc).resize((width, height), _BILINEAR))


def crop_share(data: schema.Data) -> float:
    """Returns the share of the test image kept by the centre crop: 0.875 from 64 pixels on, else 1."""
    if data.crop_share is not None:
        return data.crop_share
    return 0.875 if data.image_size >= 64 else 1.0


class TestTransform:
    """Shorter side to image_size / crop_share, then the centre; crop: none squeezes the whole image."""

    __test__ = False  # pytest takes classes called Test... for tests

    def __init__(self, data: schema.Data) -> None:
        self._size = data.image_size
        self._shorter = None if data.augment.crop == "none" else round(data.image_size / crop_share(data))

    def __call__(self, image_hwc: Pixels) -> Pixels:
        """Returns the image as uint8 [S, S, 3]."""
        size = self._size
        if self._shorter is None:
            return resize(image_hwc, size, size)
        height, width = image_hwc.shape[:2]
        scale = self._shorter / min(height, width)
        height, width = max(round(height * scale), size), max(round(width * scale), size)
        image_hwc = resize(image_hwc, height, width)
        top, left = (height - size) // 2, (width - size) // 2
        return image_hwc[top : top + size, left : left + size]


class TrainTransform:
    """Crop, flip, automatic augmentation, colour jitter, random erasing: in this order, if asked for.

    Raises:
        DistproError: `auto_augment` is not a policy timm understands.
    """

    def __init__(self, data: schema.Data) -> None:
        augment = data.augment
        self._size = data.image_size
        self._flip = augment.flip
        self._padding = augment.padding if augment.crop == "pad" else 0
        self._scale: tuple[float, float] | None = None
        if augment.crop == "resized":
            self._scale = (augment.scale[0], augment.scale[1])
        mean = data.mean or list(IMAGENET_DEFAULT_MEAN)
        self._fill = np.array([round(255 * value) for value in mean], dtype=np.uint8)
        self._on_pil: list[Callable[[Image.Image], Image.Image]] = []
        if augment.auto_augment:
            self._on_pil.append(_policy(augment.auto_augment, data.image_size, self._fill))
        if augment.color_jitter:
            strength = augment.color_jitter
            self._on_pil.append(ColorJitter(brightness=strength, contrast=strength, saturation=strength))
        self._eraser: RandomErasing | None = None
        if augment.random_erasing:
            self._eraser = RandomErasing(augment.random_erasing, mode="const", device="cpu")

    def __call__(self, image_hwc: Pixels) -> Pixels:
        """Returns the augmented image as uint8 [S, S, 3]."""
        image_hwc = self._crop(image_hwc)
        if self._flip and random.random() < self._flip:
            image_hwc = image_hwc[:, ::-1]
        if self._on_pil:
            image = Image.fromarray(np.ascontiguousarray(image_hwc))
            for step in self._on_pil:
                image = step(image)
            image_hwc = np.asarray(image)
        return image_hwc if self._eraser is None else self._erase(image_hwc, self._eraser)

    def _crop(self, image_hwc: Pixels) -> Pixels:
        size, padding = self._size, self._padding
        if self._scale is not None:
            image = Image.fromarray(image_hwc)
            top, left, height, width = RandomResizedCropAndInterpolation.get_params(image, self._scale, (3 / 4, 4 / 3))
            box = (left, top, left + width, top + height)
            return np.asarray(image.resize((size, size), _BILINEAR, box=box))
        image_hwc = resize(image_hwc, size, size)
        if not padding:
            return image_hwc
        down, right = random.randint(-padding, padding), random.randint(-padding, padding)
        out = np.zeros_like(image_hwc)
        to_y, from_y = _overlap(down, size)
        to_x, from_x = _overlap(right, size)
        out[to_y, to_x] = image_hwc[from_y, from_x]
        return out

    def _erase(self, image_hwc: Pixels, eraser: RandomErasing) -> Pixels:
        """Fills what timm's eraser zeroes with the mean colour, which zero is only once normalised."""
        kept_hw = eraser(torch.ones(1, self._size, self._size))[0].numpy().astype(bool)
        if kept_hw.all():
            return image_hwc
        image_hwc = image_hwc.copy()
        image_hwc[~kept_hw] = self._fill
        return image_hwc


def _overlap(shift: int, size: int) -> tuple[slice, slice]:
    """Returns where in the output, and from where in the input, a shifted axis is copied."""
    length = max(size - abs(shift), 0)
    start_to, start_from = max(shift, 0), max(-shift, 0)
    return slice(start_to, start_to + length), slice(start_from, start_from + length)


def _policy(text: str, size: int, fill: Pixels) -> Callable[[Image.Image], Image.Image]:
    options = {"translate_const": int(size * 0.45), "img_mean": tuple(int(value) for value in fill)}
    try:
        if text.startswith("rand"):
            policy = rand_augment_transform(text, options)
        elif text.startswith("augmix"):
            policy = augment_and_mix_transform(text, options)
        else:
            policy = auto_augment_transform(text, options)
    except (AssertionError, ValueError, KeyError, IndexError) as error:
        raise DistproError(
            f"data.augment.auto_augment: timm does not understand '{text}' "
            f"({error or type(error).__name__}); examples: rand-m9-mstd0.5-inc1, original, v0, augmix-m5-w3"
        ) from error
    _keep_a_bit(policy)
    made: Callable[[Image.Image], Image.Image] = policy
    return made


def _keep_a_bit(policy: Any) -> None:
    """Makes posterize keep one bit: at the highest magnitude timm asks for none, which Pillow refuses."""
    groups = getattr(policy, "policy", None) or [policy.ops]
    for operation in (operation for group in groups for operation in group):
        if operation.name.startswith("Posterize"):
            operation.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    return image if bits >= 8 else ImageOps.posterize(image, max(bits, 1))
