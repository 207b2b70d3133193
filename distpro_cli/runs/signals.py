"""SIGINT and SIGTERM during a run: finish the step, write the checkpoint, say how to resume."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType


class Interrupted(KeyboardInterrupt):
    """The run stopped at a signal; its checkpoint is written."""


class Interruption:
    """Context in which the first SIGINT or SIGTERM is noted, and a second one stops at once."""

    def __init__(self) -> None:
        self.pending = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Interruption:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, self._note)
            except ValueError:  # not in the main thread: its owner handles signals
                continue
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.pending:
            raise KeyboardInterrupt
        self.pending = True
