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
from timm.data import create_dataset
from timm.data.dataset import ImageDataset
from timm.data.readers.img_extensions import get_img_extensions
from timm.data.readers.reader_image_in_tar import ReaderImageInTar

from distpro_cli.errors import DistproError, nearest
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
    if root.is_dir():
        for name in wanted:
            for place in (root / name, root / f"{name}.tar"):
                if place.exists():
                    return place
    if split == "train" and _is_split_itself(root):
        return root
    if root.is_file():
        what = "one tar" if root.suffix == ".tar" else "not a tar (.tar)"
        remedy = _DIRECT if split is None else "name the folder that holds the tars of the splits"
        raise DistproError(f"data.root: '{root}' is {what}, split {_quoted(wanted)} is not in it; {remedy}")
    entries = sorted(entry.name for entry in root.iterdir())
    found = ", ".join(entries[:8]) + (", ..." if len(entries) > 8 else "")
    hint = nearest(split, entries) if split else ""
    remedy = f"data.test_split; {_DIRECT}" if split is None else "data.train_split or data.test_split"
    raise DistproError(
        f"data.root: '{root}' has no {_quoted(wanted)}, as a folder or .tar{hint}; "
        f"it holds: {found or 'nothing'}; name another with {remedy}"
    )


def _quoted(names: Sequence[str]) -> str:
    return " or ".join(f"'{name}'" for name in names)


def _is_split_itself(root: Path) -> bool:
    """Tells whether the root is a tar, or holds class folders and no splits."""
    if root.is_file():
        return root.suffix.lower() == ".tar"
    names = {entry.name.removesuffix(".tar") for entry in root.iterdir()}
    return not names & set(TEST_NAMES) and any(entry.is_dir() for entry in root.iterdir())


@functools.lru_cache(maxsize=8)
def _open(place: Path, _modified: int, _bytes: int) -> Source:
    """Scans a folder or tar, once per process: the time of change in the arguments renews what has changed."""
    tars = place.is_file() or (any(place.glob("*.tar")) and not any(entry.is_dir() for entry in place.iterdir()))
    if place.is_file() and place.suffix.lower() != ".tar":
        raise DistproError(f"{place}: neither a folder nor an uncompressed tar (.tar)")
    try:
        return _open_tars(place) if tars else _open_images(place)
    except (OSError, RuntimeError, AssertionError, ValueError, tarfile.TarError) as error:
        extensions = ", ".join(get_img_extensions())
        if _is_empty(place, tars):
            raise DistproError(
                f"{place}: no images in class folders <class>/<name> found; known endings: {extensions}"
            ) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DistproError(f"{place}: cannot be read as images in class folders ({reason})") from error


def _is_empty(place: Path, tars: bool) -> bool:
    """Tells whether a place that timm could not open is well-formed, but without images."""
    if not tars:
        return os.access(place, os.R_OK | os.X_OK)
    try:
        for file in [place] if place.is_file() else sorted(place.glob("*.tar")):
            with tarfile.open(file, mode="r:") as tar:
                tar.getmembers()
    except (OSError, tarfile.TarError):
        return False
    return True


@dataclass(frozen=True)
class FolderImages:
    """Images as files of their own, below a folder."""

    folder: str
    paths: tuple[str, ...]

    def read(self, index: int) -> Pixels:
        """Returns image `index` as uint8 [H, W, 3]."""
        with Path(self.paths[index]).open("rb") as file:
            return decode(file)

    def label(self, index: int) -> str:
        """Names image `index` by its path."""
        return self.paths[index]

    def content(self) -> str:
        """Returns a hash over the files' names below the folder and their sizes.

        Raises:
            DistproError: a file is gone.
        """
        start = len(self.folder) + 1
        try:
            return hash_of_files((path[start:], Path(path).stat().st_size) for path in self.paths)
        except OSError as error:
            raise DistproError(f"{error.filename}: cannot be read ({error.strerror})") from error


@dataclass(frozen=True)
class TarImages:
    """Images inside uncompressed tars, read by offset: forked processes share no file position.

    Attributes:
        tar_names: Names of the tars in their folder; one empty name for a single tar, whatever it is called.
        tars: Paths of the tars.
        names: Of the images in their tars.
        tar_numbers: Which tar each image is in.
        offsets: Where each image begins in its tar, in bytes.
        sizes: Of each image, in bytes.
    """

    tar_names: tuple[str, ...]
    tars: tuple[str, ...]
    names: tuple[str, ...]
    tar_numbers: NDArray[np.int32]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def read(self, index: int) -> Pixels:
        """Returns image `index` as uint8 [H, W, 3]."""
        descriptor = _descriptor(self.tars[self.tar_numbers[index]])
        return decode(io.BytesIO(os.pread(descriptor, int(self.sizes[index]), int(self.offsets[index]))))

    def label(self, index: int) -> str:
        """Names image `index` by tar and name."""
        return f"{self.tars[self.tar_numbers[index]]}: {self.names[index]}"

    def content(self) -> str:
        """Returns a hash over the images' names in their tars and their sizes."""
        numbers, sizes = self.tar_numbers.tolist(), self.sizes.tolist()
        places = (f"{self.tar_names[n]}/{name}" for n, name in zip(numbers, self.names, strict=True))
        return hash_of_files((place.removeprefix("/"), size) for place, size in zip(places, sizes, strict=True))


@functools.cache
def _descriptor(tar: str) -> int:
    """Opens a tar once per process; reading at an offset needs no position, so forks may share it."""
    return os.open(tar, os.O_RDONLY | os.O_CLOEXEC)


def _open_images(place: Path) -> Source:
    reader = create_dataset("", root=str(place), search_split=False).reader
    paths, targets = zip(*reader.samples, strict=True)
    numbers = np.array(targets, dtype=np.int64)
    names = _checked_names(place, reader.class_to_idx)
    return Source(str(place), FolderImages(str(place), paths), numbers, strata=numbers, class_names=names)


def _open_tars(place: Path) -> Source:
    if place.is_file():
        reader = create_dataset("", root=str(place)).reader
    else:  # the factory takes a folder for one of image files
        reader = ImageDataset(str(place), reader=ReaderImageInTar(str(place), cache_tarinfo=_index_kept(place))).reader
    tar_names = sorted({parent or "" for _, parent, _ in reader.samples})
    numbers = {name: number for number, name in enumerate(tar_names)}
    images = TarImages(
        tuple(tar_names),
        tuple(str(place / name) for name in tar_names),
        tuple(info.name for info, _, _ in reader.samples),
        np.array([numbers[parent or ""] for _, parent, _ in reader.samples], dtype=np.int32),
        np.array(
            [info.offset_data + (child.offset_data if child else 0) for info, _, child in reader.samples],
            dtype=np.int64,
        ),
        np.array([info.size for info, _, _ in reader.samples], dtype=np.int64),
    )
    targets = np.array(reader.targets, dtype=np.int64)
    names = _checked_names(place, reader.class_name_to_idx)
    return Source(str(place), images, targets, strata=targets, class_names=names)


def _index_kept(folder: Path) -> bool | None:
    """timm keeps the index of large tars beside them, which must not fail in a read-only folder."""
    return None if os.access(folder, os.W_OK) or any(folder.glob("*_tarinfos.pickle")) else False


def _checked_names(place: Path, numbers: dict[str, int]) -> tuple[str, ...]:
    if "" in numbers:
        raise DistproError(f"{place}: images are directly in it; each must be in the folder of its class")
    return class_names(numbers)


def class_names(numbers: dict[str, int]) -> tuple[str, ...]:
    """Returns the names of the classes in the order of their numbers."""
    return tuple(sorted(numbers, key=lambda name: numbers[name]))
