"""The handwritten digits that lie inside the package; see SOURCE.md for where they come from."""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass
from importlib import resources

import numpy as np

from distpro_cli.errors import DistproError
from distpro_cli.tasks.images.sources import Pixels, Source


@dataclass(frozen=True)
class DigitImages:
    """Grey 8×8 values of 0..16, spread over 0..255."""

    name: str
    values: Pixels

    def read(self, index: int) -> Pixels:
        """Returns image `index` as uint8 [8, 8, 3]."""
        grey_hw = np.rint(self.values[index] * (255 / 16)).astype(np.uint8)
        return np.repeat(grey_hw[:, :, None], 3, axis=2)

    def label(self, index: int) -> str:
        """Names image `index`."""
        return f"{self.name}, image {index}"

    def content(self) -> str:
        """Names the split."""
        return self.name


@functools.cache
def open_digits(split: str) -> Source:
    """Opens a split: `train` (1,437 images) or `test` (360); targets are class numbers.

    Raises:
        DistproError: there is no such split.
    """
    if split not in ("train", "test"):
        raise DistproError(f"data: the digits have no split '{split}'; there are: train, test")
    file = resources.files(__name__).joinpath("digits.npz")
    with np.load(io.BytesIO(file.read_bytes())) as arrays:
        chosen = arrays["test"] if split == "test" else ~arrays["test"]
        values, targets = arrays["images"][chosen], arrays["labels"][chosen].astype(np.int64)
    images = DigitImages(f"digits, {split}", values)
    return Source(images.name, images, targets, strata=targets, class_names=tuple("0123456789"))
