"""The command line: registers the commands and turns errors into exit statuses; imports nothing heavy."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn, TextIO

import typer

from distpro_cli.commands.compare import compare
from distpro_cli.commands.doctor import doctor
from distpro_cli.commands.edit import edit
from distpro_cli.commands.inspect import inspect
from distpro_cli.commands.publish import publish
from distpro_cli.commands.running import InterruptedRunError
from distpro_cli.commands.schema import schema
from distpro_cli.commands.search import search
from distpro_cli.commands.train import train
from distpro_cli.commands.transfer import transfer
from distpro_cli.errors import DistproError, escaped, first_line
from distpro_cli.world import joined, several_are_named

_TOO_MANY_FILES = "too many open files"
DONE, WRONG_INPUT, INTERRUPTED = 0, 2, 130

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Learn how a student network should be distilled from a teacher, and distil it that way.",
    epilog="--debug, anywhere, shows the traceback of an error. --version prints the version.",
)
for command in (search, transfer, compare, inspect, edit, publish, train, schema, doctor):
    app.command()(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits: 0 done, 2 the user's input is wrong, 130 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    _open_closed_streams()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        status = _run(given)
    finally:
        for number, handler in handlers.items():
            with contextlib.suppress(ValueError):  # not the main thread
                signal.signal(number, handler)
    if several_are_named():
        _end_rank(status)
    sys.exit(status)


def _run(given: list[str]) -> int:
    """Runs a command line; returns the exit status."""
    debug = "--debug" in given
    if given[:1] == ["--version"]:
        from importlib.metadata import version

        print(f"distpro {version('distpro-cli')}")
        return DONE
    try:
        with joined():
            status = app([a for a in given if a != "--debug"], prog_name="distpro", standalone_mode=False)
            sys.stdout.flush()  # here, since a failure at the interpreter's exit could not be reported
            if status == INTERRUPTED:  # so does typer answer a KeyboardInterrupt
                raise KeyboardInterrupt
    except (KeyboardInterrupt, typer.Abort):
        _tell("interrupted")
        status = INTERRUPTED
    except BrokenPipeError:
        _drop_output(sys.stdout)  # the reader has closed the pipe
        status = 1
    except Exception as error:
        # A usage error; typer brings its own copy of click, whose class has no public name.
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            error.message = escaped(getattr(error, "message", None) or "")  # type: ignore[attr-defined]
            error.show()
            return WRONG_INPUT
        explained = explain(error)
        if explained is None or debug:
            raise
        _tell(explained)
        if isinstance(error, OSError):
            _drop_output(sys.stdout)
        if _TOO_MANY_FILES in explained:
            _drop_output(sys.stderr)  # what cleans up after a run fails aloud without descriptors
        status = INTERRUPTED if isinstance(error, InterruptedRunError) else WRONG_INPUT
    _flush_errors()
    return int(status or DONE)


def _end_rank(status: int) -> NoReturn:
    """Ends one of several ranks at once: torch's threads may abort the interpreter's own end, or wait for others."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def _tell(text: str) -> None:
    """Prints to stderr, if there still is one."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def _open_closed_streams() -> None:
    """Refuses a closed stdout; a closed stdin or stderr becomes the null device, or a file would take its number."""
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        try:
            os.fstat(number)
        except OSError:
            if name == "stdout" and sys.stderr is not None:
                print("error: stdout is closed; send it to a file, or to /dev/null", file=sys.stderr)
                sys.exit(WRONG_INPUT)
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, os.fdopen(number, "r" if name == "stdin" else "w", closefd=False))


def _flush_errors() -> None:
    try:
        sys.stderr.flush()
    except (OSError, ValueError):
        _drop_output(sys.stderr)


def _drop_output(stream: TextIO) -> None:
    """Points a stream at the null device, so that flushing it at the interpreter's exit cannot fail."""
    with contextlib.suppress(OSError, ValueError):
        number = stream.fileno()
        os.close(number)  # first: there may be no other to be had
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def explain(error: Exception) -> str | None:
    """Returns what to tell the user about `error`, safe to print, or None for a bug in distpro."""
    if isinstance(error, InterruptedRunError):
        return str(error)
    if isinstance(error, DistproError):
        return "\n".join(f"error: {line}" for line in str(error).split("\n"))
    text = _of_environment(error, str(error))
    return None if text is None else f"error: {escaped(text)}"


def _of_environment(error: Exception, text: str) -> str | None:
    """Returns what is wrong with the machine or with what is installed, or None."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in text:
        return (
            "out of memory; try a smaller distill.batch_size or data.image_size, precision=bfloat16 or another --device"
        )
    if "Too many open files" in text or "ancdata" in text:
        return f"{_TOO_MANY_FILES}; raise the limit (ulimit -n 1024), or set data.workers=0"
    if isinstance(error, ImportError | RuntimeError | AttributeError) and "torchvision" in text:
        return (
            f"torchvision does not fit torch ({first_line(error)}); "
            "fix: pip install --upgrade --force-reinstall torch torchvision"
        )
    if isinstance(error, ImportError) and "failed to map" in text:
        return f"out of memory while importing ({first_line(error)}); raise the limit on address space (ulimit -v)"
    if isinstance(error, ImportError) and not (error.name or "").startswith("distpro_cli"):
        return f"{error.name or 'a package'} cannot be imported ({first_line(error)}); try: distpro doctor"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'output'}: {error.strerror}"
    if "can't start new thread" in text:
        return "no thread can be started; raise the limit on processes (ulimit -u) or on address space (ulimit -v)"
    return None
