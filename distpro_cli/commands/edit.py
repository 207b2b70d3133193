"""distpro edit: make a process of one or several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from distpro_cli.commands.options import Force, Json, Quiet
from distpro_cli.commands.running import print_json
from distpro_cli.errors import DistproError


def edit(
    processes: Annotated[
        list[str], typer.Argument(metavar="PROCESS...", help="Process files or names; several are averaged.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Process file to write.")],
    table: Annotated[
        Path | None,
        typer.Option("--table", help="Take the numbers of this .csv or .yaml, as inspect --export writes it."),
    ] = None,
    pathways: Annotated[
        str | None, typer.Option("--pathways", help="Keep these pathways alone, such as 1-1,2-2.")
    ] = None,
    time: Annotated[
        str | None, typer.Option("--time", help="Keep this part of the run, such as 0.2:0.8, stretched over all of it.")
    ] = None,
    smooth: Annotated[
        float | None, typer.Option("--smooth", help="Average every weight over this share of the run, such as 0.05.")
    ] = None,
    factor: Annotated[float | None, typer.Option("--factor", help="Multiply all weights (kappa) by this.")] = None,
    rows: Annotated[int | None, typer.Option("--rows", help="Keep so many moments, evenly spread.")] = None,
    gained: Annotated[
        Path | None,
        typer.Option("--gained", help="Note what it gained, from the folder of a comparison with this process."),
    ] = None,
    date: Annotated[str | None, typer.Option("--date", help="Note when it was searched: 2026-11-30.")] = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a process of one or several, in the order of the options; the file's history keeps what was done."""
    from distpro_cli.files import check_writable
    from distpro_cli.process.editing import edit as edit_process
    from distpro_cli.process.file import save_process
    from distpro_cli.process.library import load_named
    from distpro_cli.process.notes import with_date, with_gain
    from distpro_cli.process.tables import read_table

    check_writable(output, force=force)
    changes = {
        "table": None if table is None else read_table(table),
        "pathways": None if pathways is None else [name.strip() for name in pathways.split(",") if name.strip()],
        "time": None if time is None else _moments(time),
        "smooth": smooth,
        "factor": factor,
        "rows": rows,
    }
    loaded = [load_named(name) for name in processes]
    if len(loaded) == 1 and gained is None and date is None and all(value is None for value in changes.values()):
        raise DistproError("there is nothing to do; distpro edit --help lists what can be done, or give several files")
    process = edit_process(loaded, **changes)  # type: ignore[arg-type]
    if gained is not None:
        process = with_gain(process, gained, Path(processes[0]).stem)
    if date is not None:
        process = with_date(process, date)
    save_process(process, output, force=force)
    if json:
        print_json({"process": str(output), "history": list(process.history), "gained": dict(process.gained)})
    elif not quiet:
        _say_all([*process.history, f"process: {output}"])


def _say_all(lines: Sequence[str]) -> None:
    from distpro_cli.report.terminal import say

    for line in lines:
        say(line)


def _moments(text: str) -> tuple[float, float]:
    start, colon, end = text.partition(":")
    try:
        return float(start or 0), float(end or 1) if colon else float("nan")
    except ValueError:
        raise DistproError(f"--time: '{text}' is no two moments; for example 0.2:0.8") from None
