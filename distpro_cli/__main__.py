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
        signal.signal(signal.SIGTERM, _interrupt)
        from distpro_cli.cli import main as run

        try:
            run()
        finally:
            _ignore()  # all is said; the interpreter's end must not change the status
    except KeyboardInterrupt:
        _ignore()
        if sys.stderr is not None:
            print("interrupted", file=sys.stderr)
    os._exit(130)  # the interpreter's own end may hang in a library that was half imported


def _ignore() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
