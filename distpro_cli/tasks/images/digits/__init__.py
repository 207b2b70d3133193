"""The handwritten digits that lie inside the package; see SOURCE.md for where they come from."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from typing_extensions import override

from distpro_cli.errors import DistproError
from distpro_cli.tasks.images.sources import Pixels, Source


@dataclass(frozen=True, eq=False, kw_only=True)
class DigitSource(Source):
    """Grey 8×8 values of 0..16, spread over 0..255."""

    values: Pixels

    @override
    def read(self, index: int) -> Pixels:
        grey_hw = np.rint(self.values[index] * (255 / 16)).astype(np.uint8)
        return np.repeat(grey_hw[:, :, None], 3, axis=2)

    @override
    def found(self, part: str) -> str:
        return ""  # they are always the same

    @override
    def content(self) -> str:
        return self.place


@functools.cache
def open_digits(split: str) -> Source:
    """Opens a split: `train` (1,437 images) or `test` (360); targets are class numbers.

    Raises:
        DistproError: there is no such split.
    """
    if split not in ("train", "test"):
        raise DistproError(f"data: the digits have no split '{split}'; there are: train, test")
    with np.load(Path(__file__).with_name("digits.npz")) as arrays:
        chosen = arrays["test"] if split == "test" else ~arrays["test"]
        values, targets = arrays["images"][chosen], arrays["labels"][chosen].astype(np.int64)
    return DigitSource(f"digits, {split}", targets, targets, tuple("0123456789"), values=values)
