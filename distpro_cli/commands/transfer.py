"""distpro transfer: distil with a process."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distpro_cli.commands.options import Device, Force, Json, Overrides, Quiet, Resume, RunDir, Seed
from distpro_cli.commands.running import RunOptions, print_json, read_recipe, run, with_seed
from distpro_cli.errors import DistproError, nearest
from distpro_cli.recipe.scheme_names import SCHEME_NAMES

if TYPE_CHECKING:
    from distpro_cli.process.process import Process
    from distpro_cli.recipe.schema import Recipe
    from distpro_cli.runs.folder import RunFolder
    from distpro_cli.workflows.session import Surroundings


def transfer(
    process: Annotated[
        str,
        typer.Option(
            "--process", "-p", help=f"Process file, or a scheme: {', '.join(SCHEME_NAMES)}.", show_default=False
        ),
    ],
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="[RECIPE]", help="The pair to distil; default: the recipe inside the process file."),
    ] = None,
    overrides: Overrides = None,
    threshold: Annotated[
        float | None,
        typer.Option("--threshold", min=0, max=1, help="Drop what lies below this, alpha scaled to [0, 1]."),
    ] = None,
    keep: Annotated[
        float | None,
        typer.Option("--keep", min=0, max=1, help="Keep only the strongest share of the entries."),
    ] = None,
    match: Annotated[
        str, typer.Option("--match", help="How pathways are matched: strict, or your own as file.py:Name.")
    ] = "strict",
    device: Device = None,
    seed: Seed = None,
    run_dir: RunDir = None,
    resume: Resume = False,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Distil a student with the weights over time of a process, whatever the length of the run."""
    path = Path(process)
    source = _load(process)
    name, resolved = _resolve(recipe, overrides, source, path, seed)
    options = RunOptions(device, seed, run_dir, resume, force, quiet)

    def work(folder: RunFolder, around: Surroundings) -> dict[str, Any]:
        from distpro_cli.workflows.transfer import Dropping
        from distpro_cli.workflows.transfer import transfer as transfer_process

        return transfer_process(resolved, source, Dropping(threshold, keep), folder, around, mode=match)

    inputs = {
        "process": process if isinstance(source, str) else sha256(path.read_bytes()).hexdigest(),
        "threshold": threshold,
        "keep": keep,
        "match": match,
    }
    summary = run("transfer", name, resolved, options, work, inputs)
    if json:
        print_json(summary)
        return
    student = summary["student"]
    if summary["teacher"]["top1"] is not None:
        print(f"teacher top-1 {summary['teacher']['top1']:.2f} %")
    print(f"student top-1 {student['top1_last']:.2f} % after the last epoch, {student['top1_best']:.2f} % at best")
    print(f"pathways used: {summary['pathways_used']}, {summary['remaining_percent']:g} % of the process")
    print(f"weights: {student['weights']}   run: {summary['run_dir']}   {summary['seconds']:.0f} s")


def _load(process: str) -> Process | str:
    """Returns the process in the file of this name, else the name of a scheme."""
    if process in SCHEME_NAMES and not Path(process).is_file():
        return process
    if not os.path.lexists(process):
        raise DistproError(
            f"--process {process}: there is no such file, and no scheme of that name"
            f"{nearest(process, SCHEME_NAMES)}; schemes: {', '.join(SCHEME_NAMES)}"
        )
    from distpro_cli.process.file import load_process

    return load_process(Path(process))


def _resolve(
    recipe: str | None, overrides: list[str] | None, source: Process | str, path: Path, seed: int | None
) -> tuple[str, Recipe]:
    """Returns the name and the recipe of the run: the one given, else the one inside the process."""
    from distpro_cli.recipe.load import parse_recipe, recipe_name

    if recipe is not None and "=" not in recipe:
        return recipe_name(recipe), read_recipe(recipe, overrides, seed)
    if isinstance(source, str):
        raise DistproError(f"--process {source} says nothing of the pair: name a recipe, too")
    # Without RECIPE the first override stands in its place.
    given = [*([recipe] if recipe is not None else []), *(overrides or [])]
    return path.stem, parse_recipe(source.recipe, with_seed(given, seed), filename=f"recipe inside {path}")
