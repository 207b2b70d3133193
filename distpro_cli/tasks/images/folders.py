"""Image folders and archives: finding a split under a root, and the images and classes in it.

The class of an image is the first folder below the split, as torchvision has it.
"""

from __future__ import annotations

import functools
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

from distpro_cli.errors import DistproError, first_line, nearest
from distpro_cli.files import expand_path
from distpro_cli.tasks.images.archives import (
    ENDINGS,
    Archive,
    Member,
    archive_source,
    list_archive,
    open_archive,
    stem,
)
from distpro_cli.tasks.images.listing import (
    Names,
    Sieve,
    classes_of,
    folders_of,
    image_endings,
    is_hidden,
    natural_key,
    skipped_text,
    without_wrapping,
)
from distpro_cli.tasks.images.sources import Picture, Pixels, Source, decode_picture, hash_of_files

TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "validation", "val", "valid")
_DIRECT = "to report on a part of the train images, set data.test_on=held-out"
_ARCHIVES = ", ".join(ENDINGS)


def open_folder(root_text: str | None, split: str | None) -> Source:
    """Opens one split of an image folder or archive.

    Args:
        root_text: `data.root` as the user wrote it: a folder with `<split>/` or an archive such as `<split>.tar` in
            it; an archive with `<split>/` in it; or a folder or archive of class folders, which then is the train
            split itself.
        split: Name of the split; `None` looks for a test split by its usual names.

    Raises:
        DistproError: the root or the split is not there, holds no images, or cannot be read.
    """
    if root_text is None:
        raise DistproError("data.root is not set: name the folder or archive that holds the images")
    place, inside = find_split(expand_path(root_text), split)
    status = place.stat()
    return _open(place, inside, status.st_mtime_ns, status.st_size)


def find_split(root: Path, split: str | None) -> tuple[Path, str]:
    """Returns the folder or archive that holds the split, and the split's folder in an archive of several, else "".

    Arguments and errors as in `open_folder`.
    """
    if not root.exists():
        siblings = [entry.name for entry in root.parent.iterdir()] if root.parent.is_dir() else []
        raise DistproError(f"data.root: '{root}' does not exist{nearest(root.name, siblings)}")
    wanted = TEST_NAMES if split is None else TRAIN_NAMES if split == "train" else (split,)
    if root.is_file():
        return root, _find_inside(root, split, wanted)
    for place in (root / f"{name}{ending}" for name in wanted for ending in ("", *ENDINGS)):
        if place.exists():
            return place, ""
    entries = sorted(entry.name for entry in root.iterdir())
    has_tests = any((stem(name) or name) in TEST_NAMES for name in entries)
    if split == "train" and not has_tests and any((root / name).is_dir() for name in entries):
        return root, ""  # it holds the class folders themselves
    raise _no_split(root, split, wanted, entries, "folder or archive")


def _find_inside(root: Path, split: str | None, wanted: Sequence[str]) -> str:
    """Returns the folder of a split in an archive; empty where the archive is the train split itself."""
    if stem(root.name) is None:
        raise DistproError(f"data.root: '{root}' is neither a folder nor an archive ({_ARCHIVES})")
    sieve = Sieve()
    with _explaining(root, sieve):
        members = list_archive(open_archive(root)).members
    folders = [folders_of(member.path) for member in members if sieve.takes(member.path)]
    below = without_wrapping(folders)
    entries = sorted({parts[0] for parts in below if parts})
    splits = entries if all(len(parts) > 1 for parts in below) else []  # else they are classes, of whatever name
    for name in wanted:
        if name in splits:
            return "/".join((*folders[0][: len(folders[0]) - len(below[0])], name))
    if split == "train" and not any(name in TEST_NAMES for name in splits):
        return ""
    raise _no_split(root, split, wanted, entries, "folder")


def _no_split(root: Path, split: str | None, wanted: Sequence[str], entries: Sequence[str], kind: str) -> DistproError:
    found = ", ".join(entries[:8]) + (", ..." if len(entries) > 8 else "")
    hint = nearest(split, entries) if split else ""
    remedy = f"data.test_split; {_DIRECT}" if split is None else "data.train_split or data.test_split"
    return DistproError(
        f"data.root: '{root}' has no {quoted(wanted)}, as a {kind}{hint}; "
        f"it holds: {found or 'nothing'}; name another with {remedy}"
    )


def quoted(names: Sequence[str]) -> str:
    """Returns names for a message, as alternatives."""
    return " or ".join(f"'{name}'" for name in names)


@functools.lru_cache(maxsize=8)
def _open(place: Path, inside: str, _modified: int, _bytes: int) -> Source:
    """Scans a split, once per process: the time of change in the arguments renews what has changed."""
    if place.is_file() and stem(place.name) is None:
        raise DistproError(f"{place}: neither a folder nor an archive ({_ARCHIVES})")
    sieve = Sieve()
    with _explaining(place, sieve):
        if place.is_file():
            return _open_archives(place, [open_archive(place)], inside, sieve)
        entries = [entry for entry in sorted(place.iterdir()) if not is_hidden(entry.name)]
        archives = [entry for entry in entries if entry.is_file() and stem(entry.name) is not None]
        if archives and not any(entry.is_dir() for entry in entries):
            for entry in set(place.iterdir()) - set(archives):
                sieve.drop(entry.name)
            return _open_archives(place, [open_archive(path, path.name) for path in archives], "", sieve)
        return _open_images(place, sieve)


@contextmanager
def _explaining(place: Path, sieve: Sieve) -> Iterator[None]:
    """Says of a folder or archive that cannot be read why."""
    try:
        yield
    except (
        OSError,
        EOFError,
        ValueError,
        RuntimeError,
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
    ) as error:
        raise DistproError(f"{place}: cannot be read as images in class folders ({first_line(error)})") from error


@dataclass(frozen=True, eq=False, kw_only=True)
class FolderSource(Source):
    """Images as files of their own, below the folder that is the place."""

    paths: Sequence[str]

    @override
    def read(self, index: int) -> Pixels:
        return np.asarray(self.read_picture(index))

    @override
    def read_picture(self, index: int) -> Picture:
        with Path(self.paths[index]).open("rb") as file:
            return decode_picture(file)

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


def _open_images(place: Path, sieve: Sieve) -> Source:
    paths = [path for path in _walk(place, "") if sieve.takes(path)]
    paths.sort(key=lambda path: (natural_key(path), path))
    fields = _fields(str(place), [(folders_of(path) or ("",))[0] for path in paths], sieve)
    return FolderSource(str(place), paths=Names(f"{place}/{path}" for path in paths), **fields)


def _walk(folder: Path, below: str) -> Iterator[str]:
    """Yields the files below a folder, links followed; a link to a folder that it lies in is left out."""
    with os.scandir(folder / below) as entries:
        for entry in entries:
            path = f"{below}{entry.name}"
            if not entry.is_dir():
                yield path
            elif not (entry.is_symlink() and Path(entry.path).resolve() in _with_parents(folder / below)):
                yield from _walk(folder, f"{path}/")


def _with_parents(folder: Path) -> tuple[Path, ...]:
    resolved = folder.resolve()
    return (resolved, *resolved.parents)


def _open_archives(place: Path, archives: Sequence[Archive], inside: str, sieve: Sieve) -> Source:
    """Opens the images in archives: in the folder `inside` of a single one, or in all of them."""
    found: list[tuple[Archive, Member]] = []
    folders: list[tuple[str, ...]] = []
    start = f"{inside}/" if inside else ""
    for archive in archives:
        listing = list_archive(archive)
        sieve.skipped["links in a tar"] += sum(path.startswith(start) for path in listing.links)
        kept = [m for m in listing.members if m.path.startswith(start) and sieve.takes(m.path[len(start) :])]
        own = [folders_of(member.path[len(start) :]) for member in kept]
        if archive.below and not all(own):  # it is the folder of a class
            own = [(str(stem(archive.below)), *parts) for parts in own]
        found += [(archive, member) for member in kept]
        folders += own
    folders = folders if inside else without_wrapping(folders)
    order = sorted(range(len(found)), key=lambda number: natural_key(found[number][1].name))
    title = str(place / inside)
    fields = _fields(title, [(folders[number] or ("",))[0] for number in order], sieve)
    return archive_source(title, [found[number] for number in order], **fields)


def _fields(place: str, names: Sequence[str], sieve: Sieve) -> dict[str, Any]:
    """Returns the fields of a source of images with these class names, in their order.

    Raises:
        DistproError: there are none, or one without a class.
    """
    if not names:
        skipped = skipped_text(sieve.counts())
        raise DistproError(
            f"{place}: no images in class folders <class>/<name> found"
            f"{f' (skipped: {skipped})' if skipped else ''}; known endings: .jpg, .jpeg, .png, .webp, .tif and all "
            f"others that Pillow reads, {len(image_endings())} in all"
        )
    class_names, numbers = classes_of(place, names)
    targets = np.array(numbers, dtype=np.int64)
    return {"targets": targets, "strata": targets, "class_names": class_names, "skipped": sieve.counts()}
