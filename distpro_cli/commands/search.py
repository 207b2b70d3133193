"""distpro search: learn a process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distpro_cli.commands.options import (
    Device,
    Force,
    Json,
    Overrides,
    Quiet,
    RecipeName,
    Resume,
    RunDir,
    Seed,
)
from distpro_cli.commands.running import RunOptions, print_json, read_recipe, run

if TYPE_CHECKING:
    from distpro_cli.runs.folder import RunFolder
    from distpro_cli.workflows.session import Surroundings


def search(
    recipe: RecipeName,
    overrides: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Process file; default: processes/<recipe>.safetensors."),
    ] = None,
    device: Device = None,
    seed: Seed = None,
    run_dir: RunDir = None,
    resume: Resume = False,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Learn a weight over time for every pathway of a teacher/student pair, and write it as a process."""
    from distpro_cli.files import check_writable
    from distpro_cli.recipe.load import recipe_name

    resolved = read_recipe(recipe, overrides, seed)
    name = recipe_name(recipe)
    target = output or Path("processes") / f"{name}.safetensors"
    check_writable(target, force=force or resume)
    options = RunOptions(device, seed, run_dir, resume, force, quiet)

    def work(folder: RunFolder, around: Surroundings) -> dict[str, Any]:
        from distpro_cli.workflows.search import search as search_process

        return search_process(resolved, target, folder, around, force=force)

    summary = run("search", name, resolved, options, work, output=target)
    if json:
        print_json(summary)
    else:
        _print_result(summary)


def _print_result(summary: dict[str, Any]) -> None:
    from distpro_cli.commands.inspect import print_process

    print_process(Path(summary["process"]))
    student = summary["student"]
    print(f"teacher top-1 {summary['teacher']['top1']:.2f} %")
    print(f"student top-1 {student['top1_last']:.2f} % after the last epoch, {student['top1_best']:.2f} % at best")
    print(f"process: {summary['process']}   run: {summary['run_dir']}   {summary['seconds']:.0f} s")
    print(f"next: distpro transfer --process {summary['process']}")
