"""SIGINT and SIGTERM during a run: say so at once, finish the step, write the checkpoint, say how to resume."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType

from distpro_cli.world import current_world

_NUMBERS = (signal.SIGINT, signal.SIGTERM)
_PATIENCE_SECONDS = 3.0  # in which signals after the second are taken for one that was sent again
_ACKNOWLEDGED = b"stopping; a checkpoint is written first (once more: stop at once)\n"


class Interrupted(KeyboardInterrupt):
    """The run stopped at a signal; its checkpoint is written."""


class Interruption:
    """Context in which the first SIGINT or SIGTERM is noted, and a second one stops at once.

    Args:
        last: Whether the process ends after a run that was interrupted: then later signals do not cut its last words.

    Attributes:
        pending: Whether a signal came; the run stops as soon as its state is whole.
        at_once: Whether a second one came.
    """

    def __init__(self, *, last: bool = False) -> None:
        self._last = last
        self.pending = False
        self.at_once = False
        self._previous: dict[int, object] = {}
        self._second_at = 0.0
        self._pipe: tuple[int, int] | None = None
        self._wakeup_before = -1
        self._tickets = itertools.count()  # whoever draws 0 acknowledges the signal

    def __enter__(self) -> Interruption:
        """Starts to note signals.

        Raises:
            KeyboardInterrupt: one came while libraries were imported, and got lost there.
        """
        if any(getattr(signal.getsignal(number), "came", False) for number in _NUMBERS):
            raise KeyboardInterrupt
        for number in _NUMBERS:
            try:
                self._previous[number] = signal.signal(number, self._note)
            except ValueError:  # not in the main thread: its owner handles signals
                continue
        if self._previous:
            self._start_watching()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_IGN if self._last and self.pending else handler)  # type: ignore[arg-type]
        self._previous.clear()
        if self._pipe is not None:
            signal.set_wakeup_fd(self._wakeup_before)
            os.close(self._pipe[1])  # ends the thread
            self._pipe = None

    def check(self) -> None:
        """Raises Interrupted if a signal came; called where nothing would be lost."""
        if self.pending:
            raise Interrupted

    def end(self) -> None:
        """The run is over: a signal from now on finds nothing more to stop."""
        self.pending = self.at_once = True
        self._second_at = time.monotonic()

    def _start_watching(self) -> None:
        """Starts a thread that acknowledges the first signal while the main thread is inside a long computation."""
        with contextlib.suppress(OSError, ValueError):  # no descriptors, or no pipe for signals: not worth a run
            read, write = os.pipe()
            os.set_blocking(write, False)
            self._pipe = (read, write)
            self._wakeup_before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
            threading.Thread(target=_watch, args=(read, self._tickets), daemon=True).start()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.pending:
            self.pending = True
            _acknowledge(self._tickets)
            return
        if not self.at_once:
            self.at_once, self._second_at = True, time.monotonic()
            raise KeyboardInterrupt
        if time.monotonic() - self._second_at > _PATIENCE_SECONDS:
            os._exit(130)  # what the second one set off hangs


def _watch(read: int, tickets: Iterator[int]) -> None:
    """Reads the numbers of signals until the pipe is closed; acknowledges the first that stops a run."""
    with contextlib.suppress(OSError):
        while numbers := os.read(read, 64):
            if any(number in _NUMBERS for number in numbers):
                _acknowledge(tickets)
    with contextlib.suppress(OSError):
        os.close(read)


def _acknowledge(tickets: Iterator[int]) -> None:
    if next(tickets) == 0 and current_world().is_main:
        with contextlib.suppress(OSError):
            os.write(2, _ACKNOWLEDGED)  # not through sys.stderr, which the signal may have come into the middle of


def _forget_in_child() -> None:
    with contextlib.suppress(ValueError):
        signal.set_wakeup_fd(-1)  # signals to a process that loads data are not the run's


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
