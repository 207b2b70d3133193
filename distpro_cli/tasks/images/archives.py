"""Images inside archives: tars, plain or compressed, and zips; each is read by its offset.

A compressed tar is unpacked once per process to a temporary file that no name leads to, so that it is gone with the
process, however that ends; TMPDIR says where.
"""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import lzma
import os
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from distpro_cli.errors import DistproError
from distpro_cli.tasks.images.listing import Names, is_hidden
from distpro_cli.tasks.images.sources import Picture, Pixels, Source, decode_picture, hash_of_files

ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".zip")
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")  # the second: an empty one
_OPENERS: dict[bytes, Any] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}
_ENCRYPTED = 99  # AES's number in the format, here for every cipher
_LOCAL_HEADER = 30  # bytes before the name in front of each file of a zip


def stem(name: str) -> str | None:
    """Returns the name of an archive without its ending; None for the name of another file."""
    ending = max((end for end in ENDINGS if name.lower().endswith(end)), key=len, default=None)
    return None if ending is None else name[: -len(ending)]


@dataclass(frozen=True)
class Archive:
    """A tar or a zip on the disk.

    Attributes:
        path: Where it lies.
        below: Its name below the split; empty where it is the split itself.
        modified: Time of its last change, in ns: what was opened before is not taken for it.
    """

    path: str
    below: str
    modified: int


class Member(NamedTuple):
    """A file in an archive.

    Attributes:
        path: Where it lies in the archive, a tar within it counted as a folder; without `.` and empty parts.
        name: As its own archive names it.
        offset: Where it begins, in bytes: in a tar its content, in a zip what stands before it.
        stored: Bytes it takes there.
        size: Bytes it has.
        method: Of the compression in a zip, as the format numbers them; None in a tar.
    """

    path: str
    name: str
    offset: int
    stored: int
    size: int
    method: int | None = None


class Listing(NamedTuple):
    """The files in an archive, in its order, and the paths of links and other entries without content."""

    members: list[Member]
    links: list[str]


def open_archive(path: Path, below: str = "") -> Archive:
    """Returns the archive at `path`; see its attributes."""
    return Archive(str(path), below, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=1)  # an archive with several splits in it is read once
def list_archive(archive: Archive) -> Listing:
    """Returns what is in an archive.

    Raises:
        OSError, EOFError, ValueError, tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError: it cannot be
            read.
        DistproError: it cannot be unpacked for want of room.
    """
    listing = Listing([], [])
    with open(_descriptor(archive), "rb", closefd=False) as file:  # a descriptor has no path
        file.seek(0)
        is_zip = file.read(4) in _ZIP
        file.seek(0)
        if is_zip:
            _list_zip(file, listing)
        else:
            _list_tar(file, 0, "", listing)
    return listing


def _list_tar(file: IO[bytes], start: int, folder: str, listing: Listing) -> None:
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (info := tar.next()) is not None:
            # It keeps all it has seen, which of a large tar takes gigabytes.
            tar.members = []  # type: ignore[attr-defined]
            path = _plain(f"{folder}/{info.name}")
            if info.isfile() and path.lower().endswith(".tar") and not is_hidden(path.rpartition("/")[2]):
                inner = tar.extractfile(info)
                assert inner is not None
                _list_tar(inner, start + info.offset_data, path[: -len(".tar")], listing)
            elif info.isfile():
                listing.members.append(Member(path, info.name, start + info.offset_data, info.size, info.size))
            elif not info.isdir():
                listing.links.append(path)


def _list_zip(file: IO[bytes], listing: Listing) -> None:
    with zipfile.ZipFile(file) as opened:
        for info in opened.infolist():
            if info.is_dir():
                continue
            method = _ENCRYPTED if info.flag_bits & 1 else info.compress_type
            sizes = (info.compress_size, info.file_size)
            listing.members.append(Member(_plain(info.filename), info.filename, info.header_offset, *sizes, method))


def _plain(path: str) -> str:
    return "/".join(part for part in path.split("/") if part not in ("", "."))


@functools.cache
def _descriptor(archive: Archive) -> int:
    """Opens an archive once per process; reading at an offset needs no position, so forks may share it."""
    with Path(archive.path).open("rb") as file:
        start = file.read(8)
        opener = next((opener for magic, opener in _OPENERS.items() if start.startswith(magic)), None)
        if opener is None:
            return os.open(archive.path, os.O_RDONLY | os.O_CLOEXEC)
    with opener(Path(archive.path)) as packed, tempfile.TemporaryFile() as unpacked:
        try:
            shutil.copyfileobj(packed, unpacked, 1 << 20)
            unpacked.flush()
        except OSError as error:
            if error.strerror is None:  # not the disk: the archive is broken
                raise
            raise DistproError(
                f"{archive.path}: it cannot be unpacked under {tempfile.gettempdir()} ({error.strerror}); "
                "set TMPDIR to a folder with room for it, or unpack it and name the folder"
            ) from error
        return os.dup(unpacked.fileno())


@dataclass(frozen=True, eq=False, kw_only=True)
class ArchiveSource(Source):
    """Images inside archives, read by offset: forked processes share no file position.

    Attributes:
        archives: One that is the split itself or holds it, or several below the split.
        names: Of the images in their archives.
        extents: Of each image [M, 4]: the number of its archive; offset, stored and size as in `Member`.
        methods: Of each image [M], as in `Member`.
    """

    archives: tuple[Archive, ...]
    names: Sequence[str]
    extents: NDArray[np.int64]
    methods: tuple[int | None, ...]

    @override
    def read(self, index: int) -> Pixels:
        return np.asarray(self.read_picture(index))

    @override
    def read_picture(self, index: int) -> Picture:
        number, offset, stored, size = self.extents[index].tolist()
        descriptor, method = _descriptor(self.archives[number]), self.methods[index]
        if method is not None:
            header = os.pread(descriptor, _LOCAL_HEADER, offset)
            offset += _LOCAL_HEADER + sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
        content = os.pread(descriptor, stored, offset)
        if method == zipfile.ZIP_DEFLATED and size:
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, size)
        if len(content) != size:
            raise ValueError(f"{len(content)} of its {size} bytes are there")
        return decode_picture(io.BytesIO(content))

    @override
    def label(self, index: int) -> str:
        return f"{self.archives[self.extents[index, 0]].path}: {self.names[index]}"

    @override
    def content(self) -> str:
        """Returns a hash over the images' names in their archives and their sizes; a single one's name is left out."""
        images = zip(self.names, self.extents[:, [0, 3]].tolist(), strict=True)
        below = [archive.below for archive in self.archives]
        return hash_of_files((f"{below[number]}/{name}".removeprefix("/"), size) for name, (number, size) in images)


def archive_source(place: str, found: list[tuple[Archive, Member]], **fields: Any) -> ArchiveSource:
    """Makes a source of these images in this order; `fields` are those of any source.

    Raises:
        DistproError: one is encrypted, or packed in another way than by deflate.
    """
    for archive, member in found:
        if member.method not in (None, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            how = "encrypted" if member.method == _ENCRYPTED else f"packed by method {member.method}, not by deflate"
            raise DistproError(f"{archive.path}: {member.name} is {how}; unpack the zip and name the folder")
    numbers = {archive: number for number, archive in enumerate(dict.fromkeys(archive for archive, _ in found))}
    extents = [(numbers[archive], member.offset, member.stored, member.size) for archive, member in found]
    return ArchiveSource(
        place,
        archives=tuple(numbers),
        names=Names(member.name for _, member in found),
        extents=np.array(extents, dtype=np.int64),
        methods=tuple(member.method for _, member in found),
        **fields,
    )
