"""A folder that one process at a time may write to; the lock dies with its process, however that ends."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distpro_cli.errors import DistproError

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there
    fcntl = None  # type: ignore[assignment]

LOCK_NAME = ".lock"
_held: set[int] = set()  # descriptors, which processes forked from this one must not keep


class FolderLock:
    """The lock of a folder, held from `acquire` to `release`. A file system without locks locks nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: int | None = None

    def acquire(self) -> None:
        """Takes the lock of a folder that exists.

        Raises:
            DistproError: another process holds it.
        """
        path = self.folder / LOCK_NAME
        while fcntl is not None and self._file is None:
            try:
                file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError:  # a folder to be read alone: nothing will be written there
                return
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.pread(file, 20, 0).decode("ascii", "replace").strip()
                os.close(file)
                raise DistproError(
                    f"{self.folder} is in use by a run that is going on (process {owner or 'unknown'}); wait for it, "
                    "or name another folder with --run-dir"
                ) from None
            except OSError:  # a file system without locks
                os.close(file)
                return
            if not _is_same(file, path):  # its last owner has removed it meanwhile
                os.close(file)
                continue
            os.truncate(file, 0)
            os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
            self._file = file
            _held.add(file)

    def release(self, *, remove: bool = False) -> None:
        """Gives the lock up; `remove` takes its file away, too."""
        if self._file is None:
            return
        if remove:
            with contextlib.suppress(OSError):
                (self.folder / LOCK_NAME).unlink()
        _held.discard(self._file)
        os.close(self._file)
        self._file = None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes a folder and holds its lock; what it made is taken away again if nothing came into it.

    Raises:
        DistproError: another process holds it, or the folder cannot be made.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DistproError(f"{folder}: the run folder cannot be made ({error.strerror})") from None
    lock = FolderLock(folder)
    lock.acquire()
    try:
        yield
    finally:
        is_empty = [entry.name for entry in folder.iterdir()] == [LOCK_NAME] if folder.is_dir() else False
        lock.release(remove=is_empty)
        with contextlib.suppress(OSError):
            for path in made if is_empty else ():
                path.rmdir()


def _is_same(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _close_in_child() -> None:
    for file in _held:
        with contextlib.suppress(OSError):
            os.close(file)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
