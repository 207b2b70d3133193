"""Process files: one safetensors file, written atomically, read strictly and without torch.

`docs/process-format.md` describes the format byte for byte.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from distpro_cli.errors import ProcessError
from distpro_cli.files import check_writable, write_atomically
from distpro_cli.process.container import (
    LENGTH_BYTES,
    MAX_BYTES,
    MAX_HEADER_BYTES,
    decode_header,
    decode_tables,
    encode,
)
from distpro_cli.process.fields import MAX_PATHWAYS, NEW_IN_2, decode_fields, encode_fields, needs_version_2
from distpro_cli.process.process import Process

FORMAT = "distpro-process"
VERSION = 2  # 1 where a process has neither a scale nor what else came with 2
MAX_ROWS = 10_000
_TABLES = ("alpha", "progress", "weights")
_OPTIONAL_TABLES = ("scale",)  # since version 2


class NotAProcessError(ProcessError):
    """A sound safetensors file that holds something else, such as a network's weights."""


def save_process(process: Process, path: Path, force: bool = False) -> None:
    """Writes a process, see `to_bytes`.

    Args:
        process: What to write.
        path: Where; missing folders are made.
        force: Whether a file that is there may be replaced.

    Raises:
        DistproError: `path` exists and `force` is not set, or it cannot be written; what was there is intact.
        ProcessError: the process cannot be expressed in the format.
    """
    check_writable(path, force=force)
    write_atomically(path, to_bytes(process))


def to_bytes(process: Process) -> bytes:
    """Returns the content of a process file; equal processes give equal bytes.

    Raises:
        ProcessError: the process cannot be expressed in the format.
    """
    if len(process.progress) > MAX_ROWS or len(process.pathways) > MAX_PATHWAYS:
        raise ProcessError(f"a process file holds at most {MAX_ROWS} rows and {MAX_PATHWAYS} pathways")
    metadata = encode_fields(process)
    decode_fields(metadata)  # What could not be read back is not written.
    tables = {"alpha": process.alpha, "progress": process.progress, "weights": process.weights}
    if process.scale is not None:
        tables["scale"] = process.scale
    return encode(tables, {"format": FORMAT, "version": str(version_of(process)), **metadata})


def version_of(process: Process) -> int:
    """Returns the version of the file format that the process needs."""
    return 2 if needs_version_2(process) else 1


def load_process(path: Path) -> Process:
    """Reads a process file.

    Raises:
        ProcessError: it is missing, unreadable, malformed, truncated, oversized, of a newer version or not a
            process; one line that begins with the path.
        NotAProcessError: it is a safetensors file of another kind.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise ProcessError("is a folder, not a process file")
        if path.exists() and not path.is_file():
            raise ProcessError("is not a regular file")
        with path.open("rb") as file:
            return _read(file)
    except ProcessError as error:
        raise type(error)(f"{path}: {error.lines[0]}", *error.lines[1:]) from None
    except FileNotFoundError:
        raise ProcessError(f"{path}: no such file") from None
    except OSError as error:
        raise ProcessError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # A path with a null character.
        raise ProcessError(f"{str(path)!r}: cannot be read: {error}") from None


def _read(file: IO[bytes]) -> Process:
    size = os.fstat(file.fileno()).st_size
    metadata, entries = _read_header(file, size)
    _check_format(metadata)
    if size > MAX_BYTES:
        raise ProcessError(f"{size / 2**20:.0f} MiB; a process file has at most {MAX_BYTES // 2**20} MiB")
    _check_names(entries, () if int(metadata["version"]) == 1 else _OPTIONAL_TABLES)
    tables = decode_tables(entries, file.read(MAX_BYTES))
    if tables["progress"].size > MAX_ROWS:
        raise ProcessError(f"{tables['progress'].size} rows; at most {MAX_ROWS} are allowed")
    if int(metadata["version"]) == 1:  # of which it says nothing of them
        metadata = {key: value for key, value in metadata.items() if key not in NEW_IN_2}
    progress, weights, alpha = (tables[name] for name in ("progress", "weights", "alpha"))
    return Process(progress, weights, alpha, scale=tables.get("scale"), **decode_fields(metadata))


def _read_header(file: IO[bytes], size: int) -> tuple[dict[str, str], dict[str, Any]]:
    if size == 0:
        raise ProcessError("the file is empty")
    if size < LENGTH_BYTES:
        raise ProcessError(f"truncated: {size} bytes, shorter than the length of a header")
    length = int.from_bytes(file.read(LENGTH_BYTES), "little")
    if length > max(size, MAX_HEADER_BYTES):
        raise ProcessError("not a process file (its first bytes are not the length of a safetensors header)")
    if length > MAX_HEADER_BYTES:
        raise ProcessError(f"the header has {length} bytes; at most {MAX_HEADER_BYTES} are allowed")
    text = file.read(length)
    if len(text) < length:
        raise ProcessError(f"truncated or not a process file: {len(text)} bytes of a header of {length}")
    return decode_header(text)


def _check_format(metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise NotAProcessError(f"a safetensors file, but not a process: its metadata has no format {FORMAT!r}")
    version = metadata.get("version", "")
    if not (version.isascii() and version.isdigit() and 0 < len(version) <= 9 and int(version) > 0):
        raise ProcessError(f"the metadata's version is {version[:40]!r}; expected a whole number such as '{VERSION}'")
    if int(version) > VERSION:
        raise ProcessError(
            f"made by a newer distpro: format version {int(version)}, this one reads up to {VERSION}; "
            "update with: pip install --upgrade distpro-cli"
        )


def _check_names(entries: Mapping[str, Any], optional: Sequence[str]) -> None:
    missing, names = [name for name in _TABLES if name not in entries], (*_TABLES, *optional)
    if missing:
        raise ProcessError(f"the file lacks the tensor {', '.join(missing)}")
    unknown = sorted(set(entries) - set(names))
    if unknown:
        raise ProcessError(f"unknown tensor {unknown[0][:60]!r}; a process has {', '.join(names)}")
