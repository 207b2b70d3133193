"""Options that several commands share."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distpro_cli.errors import DistproError

if TYPE_CHECKING:
    from distpro_cli.process.fitting import How

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout and nothing else there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no messages; errors only.")]
Force = Annotated[bool, typer.Option("--force", help="Replace existing files and runs.")]
Trust = Annotated[bool, typer.Option("--trust", help="Run the Python and read the places that a process file names.")]
Match = Annotated[
    str,
    typer.Option(
        "--match",
        help="How pathways are matched: level (by the levels' numbers), exact (same sizes, too), reduction (by "
        "resolution), depth (by relative depth), or path/to/file.py:Name.",
    ),
]
Allow = Annotated[
    list[str] | None,
    typer.Option(
        "--allow",
        help="What may differ: lost (pathways of the process that drive nothing), new (pathways of the pair that it "
        "does not have; left out), count (of levels), kind (of a level), transform, distance; may be repeated.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides of recipe keys, such as search.epochs=5."),
]
RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.")]


@dataclass(frozen=True)
class RunOptions:
    """The options of every command that runs something."""

    device: Annotated[
        str | None, typer.Option("--device", help="cpu, cuda, cuda:N or mps; default: the best available.")
    ] = None
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed of the run; replaces the recipe's.")] = None
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", help="Folder of the run; default: runs/<command>-<recipe>.")
    ] = None
    resume: Annotated[bool, typer.Option("--resume", help="Resume from the run folder's last checkpoint.")] = False
    force: Force = False
    json: Json = False
    quiet: Quiet = False


def to_how(match: str, allow: list[str] | None) -> How:
    """Returns what `--match` and `--allow` say; several allowances may stand in one text, with commas.

    Raises:
        DistproError: there is no such allowance.
    """
    from distpro_cli.process.fitting import How

    return How(match, frozenset(name.strip() for text in allow or () for name in text.split(",") if name.strip()))


def with_run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the fields of `RunOptions` to a command's options; the command gets them as one object, `options`."""

    @functools.wraps(command)
    def run(**values: object) -> None:
        command(options=RunOptions(**{name: values.pop(name) for name in shared}), **values)  # type: ignore[arg-type]

    shared = inspect.signature(RunOptions, eval_str=True).parameters
    own = inspect.signature(command, eval_str=True).parameters.values()
    parameters = [*(parameter for parameter in own if parameter.name != "options"), *shared.values()]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def parse_thresholds(text: str) -> tuple[float, ...]:
    """Reads thresholds in [0, 1] separated by commas.

    Raises:
        DistproError: one is not a number in [0, 1].
    """
    return _parse(text, "--thresholds: '{}' is not a number from 0 to 1; for example 0.3,0.5", lowest=0.0)


def parse_shares(text: str) -> tuple[float, ...]:
    """Reads shares to keep, in (0, 1], separated by commas.

    Raises:
        DistproError: one is not a number above 0, up to 1.
    """
    smallest = math.nextafter(0.0, 1.0)
    return _parse(text, "--keep: '{}' is not a number above 0, up to 1; for example 0.8,0.5", lowest=smallest)


def _parse(text: str, refusal: str, lowest: float) -> tuple[float, ...]:
    values = []
    for part in text.split(","):
        try:
            value = float(part)
        except ValueError:
            value = -1.0
        if not lowest <= value <= 1:
            raise DistproError(refusal.format(part))
        values.append(value)
    return tuple(values)
