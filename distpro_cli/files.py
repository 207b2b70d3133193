"""Atomic writing of files, paths as recipes write them, and the cache folder."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
import tempfile
import time
from pathlib import Path

from distpro_cli.errors import DiskFullError, DistproError
from distpro_cli.world import current_world

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OLD_SECONDS = 24 * 3600.0
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


def check_writable(path: Path, *, force: bool) -> None:
    """Refuses a target that cannot be written, or that exists when it may not be replaced.

    A long run checks this before it starts. A missing folder is created. Of many ranks, the main one does it.

    Raises:
        DistproError: with the remedy.
    """
    if not current_world().is_main:
        return
    if path.is_dir():
        raise DistproError(f"{path} is a folder; name a file")
    if path.exists() and not path.is_file():
        raise DistproError(f"{path} is not a regular file; name another")
    if not force and os.path.lexists(path):
        raise DistproError(f"{path} exists already; --force replaces it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise DistproError(f"{path} cannot be written: {error.strerror or error}") from None
    sweep(path.parent, older_than_seconds=_OLD_SECONDS)


def write_atomically(path: Path, content: bytes | memoryview | str) -> None:
    """Replaces `path` by a file of this content, text as UTF-8: written aside, flushed, renamed.

    A missing folder is created. On any failure the old file stays, and no temporary file is left. Of many ranks, the
    main one writes.

    Raises:
        DistproError: the folder is read-only, the disk full, or the like.
    """
    if not current_world().is_main:
        return
    target = Path(os.path.realpath(path))
    # A name of its own: two runs may write the same target, and a killed one may have left its file.
    aside = target.with_name(f".distpro-{os.urandom(6).hex()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(target)
    except OSError as error:
        kind = DiskFullError if error.errno in DISK_FULL else DistproError
        raise kind(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
    _flush_folder(target.parent)


def sweep(folder: Path, older_than_seconds: float = 0.0) -> None:
    """Removes what `write_atomically` of killed runs left in a folder.

    Args:
        folder: It need not exist.
        older_than_seconds: 0 where nobody else writes there; else an age that no writing takes.
    """
    with contextlib.suppress(OSError):
        for path in folder.glob(".distpro-*.tmp"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime >= older_than_seconds:
                    path.unlink()


def _flush_folder(folder: Path) -> None:
    # Best effort: some file systems refuse it, and the file itself is safe already.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def expand_path(text: str) -> Path:
    """Returns the path that `text` names, with `~` and environment variables (`$NAME`, `${NAME}`) expanded.

    Raises:
        DistproError: A variable is not set, or set to nothing.
    """
    unset = sorted({a or b for a, b in _VARIABLE.findall(text) if not os.environ.get(a or b)})
    if unset:
        names = ", ".join(f"${name}" for name in unset)
        example = f"{unset[0]}=/path/to/it distpro ..."
        raise DistproError(f"path '{text}': {names} is not set in the environment; set it, as in: {example}")
    expanded = _VARIABLE.sub(lambda match: os.environ[match[1] or match[2]], text)
    try:
        return Path(expanded).expanduser()
    except RuntimeError:
        raise DistproError(f"path '{text}': '~' cannot be resolved here; write the whole path") from None


def cache_folder() -> Path:
    """Returns $DISTPRO_CACHE, else the platform's cache folder for distpro."""
    if named := os.environ.get("DISTPRO_CACHE"):
        return Path(named).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", "~/AppData/Local")).expanduser() / "distpro" / "cache"
    if sys.platform == "darwin":
        return Path("~/Library/Caches/distpro").expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "distpro"
