"""`distpro` and `python -m distpro_cli`; a signal at any moment, also while libraries load, ends in one line."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn


def main() -> NoReturn:
    """Runs the command line and exits."""
    try:
        interrupt = _Interrupt()
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as for jobs in the background of a script
                signal.signal(number, interrupt)
        from distpro_cli.cli import main as run

        try:
            run()
        finally:
            _ignore()  # all is said; the interpreter's end must not change the status
    except KeyboardInterrupt:
        pass
    _end()


def _end() -> NoReturn:
    _ignore()
    if sys.stderr is not None:
        print("interrupted", file=sys.stderr)
    os._exit(130)  # the interpreter's own end may hang in a library that was half imported


def _ignore() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class _Interrupt:
    """Raises KeyboardInterrupt at the first signal, and remembers it: a library in its import may swallow that.

    A second one ends the process, wherever the first has got to.
    """

    came = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.came:
            _end()
        self.came = True
        raise KeyboardInterrupt


if __name__ == "__main__":
    main()
