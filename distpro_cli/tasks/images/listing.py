"""Which files of a split are images, and of which class each is; what is left out is counted."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np
from PIL import Image

from distpro_cli.errors import DistproError

# Pillow only names these, or hands them to another program.
_UNREADABLE = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
_NUMBERS = re.compile(r"(\d+)")


@functools.cache
def image_endings() -> frozenset[str]:
    """Returns the endings of the files that Pillow reads, such as `.png`; plug-ins registered before are among them."""
    Image.preinit()  # formats are tried in the order of their loading; with the usual ones last a JPEG takes 1.4 ×
    endings = Image.registered_extensions()
    return frozenset(end for end, kind in endings.items() if kind in Image.OPEN and kind not in _UNREADABLE)


class Names(Sequence[str]):
    """Texts in one buffer: forked processes share it, while every text of a tuple that one looks at is copied for it.

    Args:
        names: The texts.
    """

    def __init__(self, names: Iterable[str]) -> None:
        packed = [name.encode("utf-8", "surrogateescape") for name in names]
        self._ends = np.cumsum([0, *map(len, packed)], dtype=np.int64)
        self._bytes = np.frombuffer(b"".join(packed), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Names: ...
    def __getitem__(self, index: int | slice) -> str | Names:
        if isinstance(index, slice):
            return Names(self[number] for number in range(*index.indices(len(self))))
        place = range(len(self))[index]
        return self._bytes[self._ends[place] : self._ends[place + 1]].tobytes().decode("utf-8", "surrogateescape")


class Sieve:
    """Tells images from other files by their names.

    Attributes:
        skipped: Files left out so far, by kind: `hidden`, an ending, or what else they are.
    """

    def __init__(self) -> None:
        self.skipped: Counter[str] = Counter()

    def takes(self, path: str) -> bool:
        """Says whether the file at a path below the split, with `/` between folders, is an image; else counts it."""
        taken = not any(is_hidden(part) for part in path.split("/")) and _ending(path) in image_endings()
        if not taken:
            self.drop(path)
        return taken

    def drop(self, path: str) -> None:
        """Counts the file at a path below the split as left out."""
        hidden = any(is_hidden(part) for part in path.split("/"))
        self.skipped["hidden" if hidden else _ending(path) or "without ending"] += 1

    def counts(self) -> tuple[tuple[str, int], ...]:
        """Returns kinds and numbers of what was left out, the most frequent first."""
        return tuple(sorted((+self.skipped).items(), key=lambda item: (-item[1], item[0])))


def _ending(path: str) -> str:
    _, dot, ending = path.rpartition("/")[2].rpartition(".")
    return f"{dot}{ending}".lower() if dot else ""


def is_hidden(name: str) -> bool:
    """Says whether a file or folder is hidden: its name begins with a dot, or it is what macOS adds to a zip."""
    return name == "__MACOSX" or (name.startswith(".") and name not in (".", ".."))


def natural_key(text: str) -> list[str | int]:
    """Returns what sorts names with numbers by the numbers, as timm does: img2 before img10, capitals as small."""
    return [int(part) if odd % 2 else part for odd, part in enumerate(_NUMBERS.split(text.lower()))]


def folders_of(path: str) -> tuple[str, ...]:
    """Returns the folders of a path below the split, from the top."""
    return tuple(part for part in path.split("/")[:-1] if part not in ("", "."))


def without_wrapping(folders: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Drops the folders that hold everything and no image directly: an archive of `train/` has it at the top."""
    if not folders:
        return []
    first, last, shortest = min(folders), max(folders), min(map(len, folders))
    shared = 0
    while shared < shortest - 1 and first[shared] == last[shared]:
        shared += 1
    return [parts[shared:] for parts in folders]


def classes_of(place: str, names: Iterable[str]) -> tuple[tuple[str, ...], list[int]]:
    """Returns the class names in their order, and the number of each image's class.

    Args:
        place: Of the split, for messages.
        names: The first folder below the split of every image; empty for an image directly in it.

    Raises:
        DistproError: an image is directly in the split.
    """
    of_images = list(names)
    class_names = sorted(set(of_images), key=lambda name: (natural_key(name), name))
    if "" in class_names:
        raise DistproError(f"{place}: images are directly in it; each must be in the folder of its class")
    numbers = {name: number for number, name in enumerate(class_names)}
    return tuple(class_names), [numbers[name] for name in of_images]


def skipped_text(counts: Iterable[tuple[str, int]], shown: int = 4) -> str:
    """Returns counts of left-out files in words, such as `3 hidden, 2 .txt`; empty where there are none."""
    parts = [f"{count:,} {kind}" for kind, count in counts]
    more = len(parts) - shown
    return ", ".join(parts[:shown]) + (f", {more} more kinds" if more > 0 else "")
