"""Options that several commands share."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from distpro_cli.errors import DistproError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout and nothing else there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no messages; errors only.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:N or mps; default: the best there is.")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Seed of the run; in place of the recipe's.")]
RunDir = Annotated[Path | None, typer.Option("--run-dir", help="Folder of the run; default: runs/<command>-<recipe>.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the run folder's last checkpoint.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Overrides of recipe keys, such as search.epochs=5.",
        show_default=False,
    ),
]
RecipeName = Annotated[
    str,
    typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.", show_default=False),
]


def parse_thresholds(text: str) -> tuple[float, ...]:
    """Reads thresholds in [0, 1] between commas.

    Raises:
        DistproError: one is not a number in [0, 1].
    """
    return _parse(text, "--thresholds: '{}' is not a number from 0 to 1; an example: 0.3,0.5", lowest=0.0)


def parse_shares(text: str) -> tuple[float, ...]:
    """Reads shares to keep, in (0, 1], between commas.

    Raises:
        DistproError: one is not a number above 0, up to 1.
    """
    smallest = math.nextafter(0.0, 1.0)
    return _parse(text, "--keep: '{}' is not a number above 0, up to 1; an example: 0.8,0.5", lowest=smallest)


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
