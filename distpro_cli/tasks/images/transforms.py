"""From a decoded image to what the networks see, in uint8 until the batch is made.

Everything random is drawn from the global generators of Python, NumPy and torch, which the caller seeds for each
sample: timm's transforms know no other way. Resizing is bilinear with antialias.

Shape legend: h height, w width, c channels; H, W those of the networks' input.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data.auto_augment import augment_and_mix_transform, auto_augment_transform, rand_augment_transform
from timm.data.constants import IMAGENET_DEFAULT_MEAN
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation as ResizedCrop
from torchvision.transforms import ColorJitter

from distpro_cli.errors import DistproError
from distpro_cli.recipe import schema
from distpro_cli.tasks.images.sources import Picture, Pixels

_BILINEAR, _MIRROR = Image.Resampling.BILINEAR, Image.Transpose.FLIP_LEFT_RIGHT
# By timm's prefix; a policy without one of these is AutoAugment's.
_POLICIES = {"rand": rand_augment_transform, "augmix": augment_and_mix_transform}


def resize(image: Picture, height: int, width: int) -> Pixels:
    """Returns the image at that size; the very same pixels where it has the size already."""
    if height_width_of(image) == (height, width):
        return np.asarray(image)
    return np.asarray(_as_picture(image).resize((width, height), _BILINEAR))


def height_width_of(image: Picture) -> tuple[int, int]:
    """Returns an image's height and width in pixels."""
    return (image.height, image.width) if isinstance(image, Image.Image) else (image.shape[0], image.shape[1])


def _as_picture(image: Picture) -> Image.Image:
    return image if isinstance(image, Image.Image) else Image.fromarray(np.ascontiguousarray(image))


class TestTransform:
    """Scales the image to cover image_size / crop_share, then takes the centre; crop: none squeezes the whole image.

    Of a square size the shorter side decides; of another one the side that needs the larger scale, as in timm.
    """

    __test__ = False  # pytest takes classes called Test... for tests
    takes_pictures = True

    def __init__(self, data: schema.Data) -> None:
        self._rows, self._columns = data.height_width
        share = data.crop_share or (0.875 if min(data.height_width) >= 64 else 1.0)
        self._covered = None if data.augment.crop == "none" else [round(side / share) for side in data.height_width]

    def __call__(self, image: Picture) -> Pixels:
        """Returns the image as uint8 [H, W, 3]."""
        rows, columns = self._rows, self._columns
        if self._covered is None:
            return resize(image, rows, columns)
        height, width = height_width_of(image)
        scale = max(self._covered[0] / height, self._covered[1] / width)
        height, width = max(round(height * scale), rows), max(round(width * scale), columns)
        image_hwc = resize(image, height, width)
        top, left = (height - rows) // 2, (width - columns) // 2
        return image_hwc[top : top + rows, left : left + columns]


class TrainTransform:
    """Crop, flip, automatic augmentation, colour jitter, random erasing: in this order, if asked for.

    Raises:
        DistproError: `auto_augment` is not a policy timm understands.
    """

    takes_pictures = True

    def __init__(self, data: schema.Data) -> None:
        self._augment = augment = data.augment
        self._rows, self._columns = data.height_width
        mean = data.mean or IMAGENET_DEFAULT_MEAN
        self._fill = np.array([round(255 * value) for value in (mean * 3 if len(mean) == 1 else mean)], dtype=np.uint8)
        self._on_pil: list[Callable[[Image.Image], Image.Image]] = []
        if augment.auto_augment:
            self._on_pil.append(_policy(augment.auto_augment, min(data.height_width), self._fill))
        if augment.color_jitter:
            strength = augment.color_jitter
            self._on_pil.append(ColorJitter(brightness=strength, contrast=strength, saturation=strength))
        self._eraser = RandomErasing(augment.random_erasing, mode="const", device="cpu")

    def __call__(self, image: Picture) -> Pixels:
        """Returns the augmented image as uint8 [H, W, 3]."""
        image = self._crop(image)
        if self._augment.flip and random.random() < self._augment.flip:
            image = image.transpose(_MIRROR) if isinstance(image, Image.Image) else image[:, ::-1]
        if self._on_pil:
            picture = _as_picture(image)
            for step in self._on_pil:
                picture = step(picture)
            image = picture
        return self._erase(np.asarray(image)) if self._augment.random_erasing else np.asarray(image)

    def _crop(self, image: Picture) -> Picture:
        rows, columns, augment = self._rows, self._columns, self._augment
        if augment.crop == "resized":
            image = _as_picture(image)
            top, left, height, width = ResizedCrop.get_params(image, augment.scale, (3 / 4, 4 / 3))
            return image.resize((columns, rows), _BILINEAR, box=(left, top, left + width, top + height))
        image_hwc = resize(image, rows, columns)
        padding = augment.padding if augment.crop == "pad" else 0
        if not padding:
            return image_hwc
        top, left = padding - random.randint(-padding, padding), padding - random.randint(-padding, padding)
        padded_hwc = np.zeros((rows + 2 * padding, columns + 2 * padding, 3), dtype=np.uint8)
        padded_hwc[padding : padding + rows, padding : padding + columns] = image_hwc
        return padded_hwc[top : top + rows, left : left + columns]

    def _erase(self, image_hwc: Pixels) -> Pixels:
        """Fills what timm's eraser zeroes with the mean colour, which zero is only once normalised."""
        kept_hw1 = self._eraser(torch.ones(1, self._rows, self._columns)).permute(1, 2, 0).numpy().astype(bool)
        return np.where(kept_hw1, image_hwc, self._fill)


def _policy(text: str, size: int, fill: Pixels) -> Any:
    """Returns timm's policy; `size` is that of the shorter side in pixels."""
    options = {"translate_const": int(size * 0.45), "img_mean": tuple(fill.tolist())}
    try:
        policy = _POLICIES.get(text.split("-")[0], auto_augment_transform)(text, options)
    except (AssertionError, ValueError, KeyError, IndexError) as error:
        raise DistproError(
            f"data.augment.auto_augment: timm does not understand '{text}' "
            f"({error or type(error).__name__}); examples: rand-m9-mstd0.5-inc1, original, v0, augmix-m5-w3"
        ) from error
    for operation in chain(*getattr(policy, "policy", None) or [policy.ops]):
        if operation.name.startswith("Posterize"):
            operation.aug_fn = _posterize
    return policy


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keeps at least one bit: at the highest magnitude timm asks for none, which Pillow refuses."""
    return image if bits >= 8 else ImageOps.posterize(image, max(bits, 1))
