"""Random access to the images of one split, and what is to be learnt about each.

Images are decoded here, because timm's dataset silently takes the next image for one that it cannot read.

Shape legend: m images of the split, h height, w width, c channels.
"""

from __future__ import annotations

import hashlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import IO, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from distpro_cli.errors import DistproError, first_line

Indices = NDArray[np.int64]
Pixels = NDArray[np.uint8]
Picture = Pixels | Image.Image  # uint8 [H, W, 3], or mode RGB
Read = TypeVar("Read")
_LISTED_CLASSES = 6
# By EXIF's orientation.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Where Pillow keeps what may say how an image is to be turned.
_WITH_ORIENTATION = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}


@dataclass(frozen=True, eq=False)
class Source(ABC):
    """One split: images and their targets. `dataclasses.replace` gives it other targets.

    Attributes:
        place: What the user knows it by, for messages: a path, or the names of a data set and a split.
        targets: What is to be learnt, an array [M, ...].
        strata: Groups [M], numbered from 0, which subsets and parts draw from evenly: the class of each image. None
            where all images are alike.
        class_names: Name of each class, by number; empty without classes.
        skipped: Kinds and numbers of the files that were found beside the images and left out.
    """

    place: str
    targets: NDArray[Any]
    strata: Indices | None = None
    class_names: tuple[str, ...] = ()
    skipped: tuple[tuple[str, int], ...] = ()
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

    def found(self, part: str) -> str:
        """Says in words what was found: how many images of a part of the data, in which classes; may be empty."""
        images = f"{len(self):,} {part} images"
        if self.strata is None or not self.class_names:
            return images
        counts = np.bincount(self.strata, minlength=len(self.class_names)).tolist()
        if len(set(counts)) == 1:
            each = f"{counts[0]:,} each"
        elif len(counts) <= _LISTED_CLASSES:
            each = ", ".join(f"{name} {count:,}" for name, count in zip(self.class_names, counts, strict=True))
        else:
            each = f"{min(counts):,} to {max(counts):,} each"
        return f"{images} in {len(counts):,} class{'es' if len(counts) > 1 else ''} ({each})"

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
        return self._kept[index] if index in self._kept else self._explained(self.read, index)

    def _explained(self, read: Callable[[int], Read], index: int) -> Read:
        """Reads an image; says of one that cannot be decoded which and why."""
        try:
            return read(index)
        except Exception as error:  # decoders raise almost anything on broken files
            if isinstance(error, OSError) and error.strerror:  # of the disk, not of a decoder
                raise DistproError(
                    f"{self.label(index)}: cannot be read ({error.strerror}), though it was there when the data were "
                    "opened; put it back, or start again without it"
                ) from error
            # Pillow names the address of an open file.
            unknown = isinstance(error, UnidentifiedImageError)
            reason = "no format that Pillow knows" if unknown else first_line(error)
            raise DistproError(f"{self.label(index)}: not a readable image ({reason}); fix or remove it") from error

    def picture(self, index: int) -> Picture:
        """Returns image `index` as `load` does, or as Pillow's image in RGB where it comes as one."""
        return self._kept[index] if index in self._kept else self._explained(self.read_picture, index)

    def read_picture(self, index: int) -> Picture:
        """Decodes image `index` for `picture`; by default as `read` does."""
        return self.read(index)

    def keep(self, indices: Iterable[int]) -> None:
        """Decodes these images once and holds them in memory; processes forked later share it."""
        for index in indices:
            self._kept[index] = self.load(index)


def decode(file: IO[bytes]) -> Pixels:
    """Returns the image in an open file as uint8 [H, W, 3], turned as its EXIF orientation says; see `as_pixels`."""
    return np.asarray(decode_picture(file))


def decode_picture(file: IO[bytes]) -> Picture:
    """Returns the same image; if it is stored in RGB, as Pillow's own, which spares a copy in and out of it."""
    with Image.open(file) as opened:
        if opened.format in ("PNG", "TIFF"):
            opened.load()  # a PNG may say behind its pixels how it is turned, and Pillow turns a TIFF itself
        turn = None if _WITH_ORIENTATION.isdisjoint(opened.info) else _TURNS.get(_orientation(opened))
        image = opened if turn is None else opened.transpose(turn)
        if image.mode != "RGB":
            return as_pixels(image)
        image.load()
        return image


def as_pixels(image: Image.Image) -> Pixels:
    """Returns a PIL image as uint8 [H, W, 3].

    Grey is repeated, transparency dropped. Of 16 bits the upper 8 are kept, as Pillow does for colour; numbers with a
    fraction are in 0..1 or in 0..255.

    Raises:
        ValueError: the values of an image of 32 bits are in no such range.
    """
    if image.mode == "RGB":
        return np.asarray(image)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    elif image.mode == "F" or image.mode.startswith("I"):
        return np.repeat(_in_8_bits(np.asarray(image))[:, :, None], 3, axis=2)
    return np.asarray(image.convert("RGB"))


def _orientation(image: Image.Image) -> Any:
    with warnings.catch_warnings():  # a broken EXIF block is no reason to lose the image, or to speak of every one
        warnings.simplefilter("ignore")
        try:
            return image.getexif().get(ExifTags.Base.Orientation)
        except Exception:  # as with decoders
            return None


def _in_8_bits(values_hw: NDArray[Any]) -> Pixels:
    least, most = values_hw.min(), values_hw.max()
    if values_hw.dtype.kind == "f":
        values_hw = values_hw * 255 if most <= 1 else values_hw
        top, expected = (1 if most <= 1 else 255), "0 to 1 or 0 to 255"
    else:
        top, expected = 65535, "0 to 65535"
    if not (least >= 0 and most <= top):
        raise ValueError(f"its values lie in {least} to {most}, expected: {expected}")
    return (np.rint(values_hw) if values_hw.dtype.kind == "f" else values_hw >> 8).astype(np.uint8)


def hash_of_files(names_and_sizes: Iterable[tuple[str, int]]) -> str:
    """Returns a hash over the relative names and the sizes in bytes of files, in their order."""
    content = hashlib.sha256()
    for name, size in names_and_sizes:
        content.update(f"{name}\0{size}\n".encode("utf-8", "surrogateescape"))
    return content.hexdigest()
