"""Image folders and tars: finding a split under a root, and reading it through timm's readers."""

from __future__ import annotations

import functools
import io
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from timm.data.readers.img_extensions import get_img_extensions
from timm.data.readers.reader_image_folder import ReaderImageFolder
from timm.data.readers.reader_image_in_tar import ReaderImageInTar
from typing_extensions import override

from distpro_cli.errors import DistproError, first_line, nearest
from distpro_cli.files import expand_path
from distpro_cli.tasks.images.sources import Pixels, Source, decode, hash_of_files

TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "validation", "val", "valid")
_DIRECT = "to report on a part of the train images, set data.test_on=held-out"


def open_folder(root_text: str | None, split: str | None) -> Source:
    """Opens one split of an image folder or tar.

    Args:
        root_text: `data.root` as the user wrote it: a folder with `<split>/` or `<split>.tar` in it; or a
            folder of class folders or a tar, which then is the train split itself.
        split: Name of the split; `None` looks for a test split by its usual names.

    Raises:
        DistproError: the root or the split is not there, holds no images, or cannot be read.
    """
    if root_text is None:
        raise DistproError("data.root is not set: name the folder or tar that holds the images")
    place = find_split(expand_path(root_text), split)
    status = place.stat()
    return _open(place, status.st_mtime_ns, status.st_size)


def find_split(root: Path, split: str | None) -> Path:
    """Returns the folder or tar that holds the split. Arguments and errors as in `open_folder`."""
    if not root.exists():
        siblings = [entry.name for entry in root.parent.iterdir()] if root.parent.is_dir() else []
        raise DistproError(f"data.root: '{root}' does not exist{nearest(root.name, siblings)}")
    wanted = TEST_NAMES if split is None else TRAIN_NAMES if split == "train" else (split,)
    for place in (root / f"{name}{ending}" for name in wanted for ending in ("", ".tar")):
        if place.exists():
            return place
    if root.is_file():
        if split == "train" and root.suffix.lower() == ".tar":
            return root
        what = "one tar" if root.suffix == ".tar" else "not a tar (.tar)"
        remedy = _DIRECT if split is None else "name the folder that holds the tars of the splits"
        raise DistproError(f"data.root: '{root}' is {what}, split {quoted(wanted)} is not in it; {remedy}")
    entries = sorted(entry.name for entry in root.iterdir())
    has_tests = any(name.removesuffix(".tar") in TEST_NAMES for name in entries)
    if split == "train" and not has_tests and any((root / name).is_dir() for name in entries):
        return root  # it holds the class folders themselves
    found = ", ".join(entries[:8]) + (", ..." if len(entries) > 8 else "")
    hint = nearest(split, entries) if split else ""
    remedy = f"data.test_split; {_DIRECT}" if split is None else "data.train_split or data.test_split"
    raise DistproError(
        f"data.root: '{root}' has no {quoted(wanted)}, as a folder or .tar{hint}; "
        f"it holds: {found or 'nothing'}; name another with {remedy}"
    )


def quoted(names: Sequence[str]) -> str:
    """Returns names for a message, as alternatives."""
    return " or ".join(f"'{name}'" for name in names)


@functools.lru_cache(maxsize=8)
def _open(place: Path, _modified: int, _bytes: int) -> Source:
    """Scans a folder or tar, once per process: the time of change in the arguments renews what has changed."""
    if place.is_file() and place.suffix.lower() != ".tar":
        raise DistproError(f"{place}: neither a folder nor an uncompressed tar (.tar)")
    try:
        entries = [] if place.is_file() else list(place.iterdir())
        packed = any(entry.suffix == ".tar" for entry in entries) and not any(entry.is_dir() for entry in entries)
        return _open_tars(place) if place.is_file() or packed else _open_images(place)
    except (OSError, RuntimeError, AssertionError, ValueError, tarfile.TarError) as error:
        reason = f"cannot be read as images in class folders ({first_line(error)})"
        # Where timm finds no image, it raises one of these two, the second also for a broken index of tars.
        if isinstance(error, RuntimeError | ValueError) and "corrupt" not in str(error):
            endings = ", ".join(get_img_extensions())
            reason = f"no images in class folders <class>/<name> found; known endings: {endings}"
        raise DistproError(f"{place}: {reason}") from error


@dataclass(frozen=True, eq=False, kw_only=True)
class FolderSource(Source):
    """Images as files of their own, below the folder that is the place."""

    paths: tuple[str, ...]

    @override
    def read(self, index: int) -> Pixels:
        with Path(self.paths[index]).open("rb") as file:
            return decode(file)

    @override
    def label(self, index: int) -> str:
        return self.paths[index]

    @override
    def content(self) -> str:
        """Returns a hash over the files' names below the folder and their sizes.

        Raises:
            DistproError: a file is gone.
        """
        start = len(self.place) + 1
        try:
            return hash_of_files((path[start:], Path(path).stat().st_size) for path in self.paths)
        except OSError as error:
            raise DistproError(f"{error.filename}: cannot be read ({error.strerror})") from error


@dataclass(frozen=True, eq=False, kw_only=True)
class TarSource(Source):
    """Images inside uncompressed tars, read by offset: forked processes share no file position.

    Attributes:
        tars: Paths of the tars; one is the place itself, several lie below it.
        names: Of the images in their tars.
        extents: Of each image [M, 3]: the number of its tar, where it begins in it and its size, both in bytes.
    """

    tars: tuple[str, ...]
    names: tuple[str, ...]
    extents: NDArray[np.int64]

    @override
    def read(self, index: int) -> Pixels:
        tar, offset, size = self.extents[index].tolist()
        return decode(io.BytesIO(os.pread(_descriptor(self.tars[tar]), size, offset)))

    @override
    def label(self, index: int) -> str:
        return f"{self.tars[self.extents[index, 0]]}: {self.names[index]}"

    @override
    def content(self) -> str:
        """Returns a hash over the images' names in their tars and their sizes; a single tar's own name is left out."""
        below = [tar.removeprefix(self.place) for tar in self.tars]
        images = zip(self.names, self.extents.tolist(), strict=True)
        return hash_of_files((f"{below[tar]}/{name}".removeprefix("/"), size) for name, (tar, _, size) in images)


@functools.cache
def _descriptor(tar: str) -> int:
    """Opens a tar once per process; reading at an offset needs no position, so forks may share it."""
    return os.open(tar, os.O_RDONLY | os.O_CLOEXEC)


def _open_images(place: Path) -> Source:
    reader = ReaderImageFolder(str(place))
    paths, numbers = zip(*reader.samples, strict=True)
    targets = np.array(numbers, dtype=np.int64)
    return FolderSource(str(place), targets, targets, _class_names(place, reader.class_to_idx), paths=paths)


def _open_tars(place: Path) -> Source:
    folder = place if place.is_dir() else place.parent
    # timm keeps the index of large tars beside them, which must not fail in a read-only folder.
    index_kept = os.access(folder, os.W_OK) or any(folder.glob("*_tarinfos.pickle"))
    reader = ReaderImageInTar(str(place), cache_tarinfo=None if index_kept else False)
    infos, tars, children = zip(*reader.samples, strict=True)  # a child is a tar within a tar
    tar_numbers = {tar: number for number, tar in enumerate(sorted(set(tars)))}
    extents = [
        (tar_numbers[tar], info.offset_data + (child.offset_data if child else 0), info.size)
        for info, tar, child in zip(infos, tars, children, strict=True)
    ]
    targets = np.array(reader.targets, dtype=np.int64)
    return TarSource(
        str(place),
        targets,
        targets,
        _class_names(place, reader.class_name_to_idx),
        tars=tuple(str(place / (tar or "")) for tar in tar_numbers),
        names=tuple(info.name for info in infos),
        extents=np.array(extents, dtype=np.int64),
    )


def _class_names(place: Path, numbers: dict[str, int]) -> tuple[str, ...]:
    if "" in numbers:
        raise DistproError(f"{place}: images are directly in it; each must be in the folder of its class")
    return tuple(numbers)
