"""Random access to the images of one split, and what is to be learnt about each.

timm finds the images and their classes; they are decoded here, because timm's dataset silently takes the next image
for one that it cannot read.

Shape legend: m images of the split, h height, w width, c channels.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distpro_cli.errors import DistproError, first_line

Indices = NDArray[np.int64]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Source(ABC):
    """One split: images and their targets. `dataclasses.replace` gives it other targets.

    Attributes:
        place: What the user knows it by, for messages: a path, or the names of a data set and a split.
        targets: What is to be learnt, an array [M, ...].
        strata: Groups [M], numbered from 0, which subsets and parts draw from evenly: the class of each image. None
            where all images are alike.
        class_names: Name of each class, by number; empty without classes.
    """

    place: str
    targets: NDArray[Any]
    strata: Indices | None = None
    class_names: tuple[str, ...] = ()
    _kept: dict[int, Pixels] = field(default_factory=dict, repr=False)

    @abstractmethod
    def read(self, index: int) -> Pixels:
        """Decodes image `index` to uint8 [H, W, 3]."""

    def label(self, index: int) -> str:
        """Names image `index` for messages."""
        return f"{self.place}, image {index}"

    def content(self) -> str:
        """Says what the images are, wherever they lie: the name of a data set, or a hash over the files."""
        return f"{self.place}, {len(self)} images"

    def __len__(self) -> int:
        return len(self.targets)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the split is, by content and not by place: values that JSON knows.

        It is computed once per source, and a source is opened once per process: files that change while a process
        runs do not change it.
        """
        targets = np.ascontiguousarray(self.targets)
        described = f"{targets.dtype.str} {targets.shape}\n".encode()
        return {
            "images": self.content(),
            "targets": hashlib.sha256(described + targets.tobytes()).hexdigest(),
            "class_names": list(self.class_names),
        }

    def strata_of(self, indices: Indices) -> Indices:
        """Returns the strata of these images; all zeros where there are none."""
        return np.zeros(len(indices), dtype=np.int64) if self.strata is None else self.strata[indices]

    def load(self, index: int) -> Pixels:
        """Returns image `index`, uint8 [H, W, 3], not to be written to.

        Raises:
            DistproError: it cannot be decoded; the message names it.
        """
        if index in self._kept:
            return self._kept[index]
        try:
            return self.read(index)
        except Exception as error:  # decoders raise almost anything on broken files
            reason = first_line(error)
            raise DistproError(f"{self.label(index)}: not a readable image ({reason}); fix or remove it") from error

    def keep(self, indices: Iterable[int]) -> None:
        """Decodes these images once and holds them in memory; processes forked later share it."""
        for index in indices:
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


def hash_of_files(names_and_sizes: Iterable[tuple[str, int]]) -> str:
    """Returns a hash over the relative names and the sizes in bytes of files, in their order."""
    content = hashlib.sha256()
    for name, size in names_and_sizes:
        content.update(f"{name}\0{size}\n".encode("utf-8", "surrogateescape"))
    return content.hexdigest()
