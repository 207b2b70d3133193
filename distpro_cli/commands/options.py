"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
