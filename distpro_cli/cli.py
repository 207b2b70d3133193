"""The command line: registers the commands and turns errors into exit statuses; imports nothing heavy."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence

import typer

from distpro_cli.commands.compare import compare
from distpro_cli.commands.inspect import inspect
from distpro_cli.commands.running import InterruptedRunError
from distpro_cli.commands.schema import schema
from distpro_cli.commands.search import search
from distpro_cli.commands.train import train
from distpro_cli.commands.transfer import transfer
from distpro_cli.errors import DistproError

DONE, WRONG_INPUT, INTERRUPTED = 0, 2, 130

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Learn how a student network should be distilled from a teacher, and distil it that way.",
    epilog="--debug, anywhere, shows the traceback of an error. --version prints the version.",
)
for command in (search, transfer, compare, inspect, train, schema):
    app.command()(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits: 0 done, 2 the user's input is wrong, 130 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    if given[:1] == ["--version"]:
        from importlib.metadata import version

        print(f"distpro {version('distpro-cli')}")
        sys.exit(DONE)
    try:
        status = app([a for a in given if a != "--debug"], prog_name="distpro", standalone_mode=False)
        sys.stdout.flush()  # here, since a failure at the interpreter's exit could not be reported
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        status = INTERRUPTED
    except BrokenPipeError:
        _drop_output()  # the reader has closed the pipe
        status = 1
    except Exception as error:
        # A usage error; typer brings its own copy of click, whose class has no public name.
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            error.show()
            sys.exit(WRONG_INPUT)
        explained = explain(error)
        if explained is None or debug:
            raise
        print(explained, file=sys.stderr)
        if isinstance(error, OSError):
            _drop_output()
        status = INTERRUPTED if isinstance(error, InterruptedRunError) else WRONG_INPUT
    sys.exit(status)


def _drop_output() -> None:
    """Points stdout at the null device, so that flushing it at the interpreter's exit cannot fail."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def explain(error: Exception) -> str | None:
    """Returns what to tell the user about `error`, or None for a bug in distpro."""
    text = str(error)
    if isinstance(error, InterruptedRunError):
        return text
    if isinstance(error, DistproError):
        return "\n".join(f"error: {line}" for line in text.splitlines())
    if isinstance(error, ImportError | RuntimeError | AttributeError) and "torchvision" in text:
        return (
            f"error: torchvision does not fit torch ({text.splitlines()[0]}); "
            "fix: pip install --upgrade --force-reinstall torch torchvision"
        )
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in text:
        return (
            "error: out of memory; try a smaller distill.batch_size or data.image_size, precision=bfloat16 or "
            "another --device"
        )
    if isinstance(error, OSError) and error.strerror:
        return f"error: {error.filename or 'output'}: {error.strerror}"
    return None
