"""Where images come from: the digits, and folders, tars and data sets through timm's dataset factory.

Shape letters: hwc an image. timm finds the images and their classes; they are decoded here, because timm's
dataset silently takes the next image for one that it cannot read.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import resources
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distpro_cli.errors import DistproError

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Source:
    """One split: random access to decoded images.

    Attributes:
        place: What the user knows it by, for messages.
        class_names: Name of each class, by number.
        targets: Class numbers, one per image.
        read: Decodes image i to uint8 [H, W, 3].
        label: Names image i, for messages.
    """

    place: str
    class_names: tuple[str, ...]
    targets: NDArray[np.int64]
    read: Callable[[int], Pixels]
    label: Callable[[int], str]
    _kept: dict[int, Pixels] = field(default_factory=dict, repr=False)

    def load(self, index: int) -> Pixels:
        """Returns image `index`, uint8 [H, W, 3], not to be written to.

        Raises:
            DistproError: It cannot be decoded; the message names it.
        """
        kept = self._kept.get(index)
        if kept is not None:
            return kept
        try:
            return self.read(index)
        except Exception as error:  # decoders raise almost anything on broken files
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DistproError(f"{self.label(index)}: not a readable image ({reason}); repair or remove it") from error

    def keep(self, indices: Iterable[int]) -> None:
        """Decodes these images once and holds them in memory; processes forked later share it."""
        for index in indices:
            if index not in self._kept:
                self._kept[index] = self.load(index)


def decode(file: IO[bytes]) -> Pixels:
    """Returns the image in an open file as uint8 [H, W, 3]; grey is repeated, transparency dropped."""
    with Image.open(file) as image:
        return as_pixels(image)


def as_pixels(image: Image.Image) -> Pixels:
    """Returns a PIL image as uint8 [H, W, 3]."""
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


@dataclass(frozen=True)
class DigitImages:
    """The digits: grey 8×8 values of 0..16, spread over 0..255."""

    images: Pixels

    def read(self, index: int) -> Pixels:
        """Returns image `index` as uint8 [8, 8, 3]."""
        grey_hw = np.rint(self.images[index] * (255 / 16)).astype(np.uint8)
        return np.repeat(grey_hw[:, :, None], 3, axis=2)

    def label(self, index: int) -> str:
        """Names image `index`."""
        return f"digits, image {index}"


@functools.cache
def open_digits(split: str) -> Source:
    """Opens the handwritten digits inside the package: splits `train` (1,437 images) and `test` (360).

    Raises:
        DistproError: There is no such split.
    """
    if split not in ("train", "test"):
        raise DistproError(f"data: the digits have no split '{split}'; there are: train, test")
    file = resources.files("distpro_cli.tasks.images").joinpath("digits/digits.npz")
    with np.load(io.BytesIO(file.read_bytes())) as arrays:
        chosen = arrays["test"] if split == "test" else ~arrays["test"]
        images, targets = arrays["images"][chosen], arrays["labels"][chosen].astype(np.int64)
    digits = DigitImages(images)
    return Source(f"digits, {split}", tuple("0123456789"), targets, digits.read, digits.label)
