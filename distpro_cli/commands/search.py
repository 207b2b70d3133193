"""distpro search: learn a process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distpro_cli.commands.options import Overrides, RecipeName, RunOptions, with_run_options
from distpro_cli.commands.running import print_figures, print_json, read_recipe, run
from distpro_cli.errors import DistproError

if TYPE_CHECKING:
    from distpro_cli.process.process import Process
    from distpro_cli.recipe.schema import Recipe
    from distpro_cli.runs.context import RunContext
    from distpro_cli.runs.folder import RunFolder


@with_run_options
def search(
    recipe: RecipeName,
    overrides: Overrides = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Process file; default: processes/<recipe>.safetensors.")
    ] = None,
    *,
    options: RunOptions,
) -> None:
    """Learn a weight over time for every pathway of a teacher/student pair, and write it as a process.

    A tenth of the images (data.train_images) can be enough for a process that drives all of them: docs/results.md.
    """
    from distpro_cli.files import check_writable
    from distpro_cli.recipe.load import recipe_name

    resolved = read_recipe(recipe, overrides, options.seed)
    name = recipe_name(recipe)
    target = output or Path("processes") / f"{name}.safetensors"
    check_writable(target, force=options.force or options.resume)

    def work(folder: RunFolder, context: RunContext) -> dict[str, Any]:
        from distpro_cli.workflows.search import search as search_process

        return search_process(resolved, target, folder, context, force=options.force).summary

    summary = run("search", name, resolved, options, work, output=target)
    if options.json:
        print_json(summary)
        return
    from distpro_cli.process.file import load_process
    from distpro_cli.report.process_table import print_process_table
    from distpro_cli.report.terminal import say

    process = load_process(Path(summary["process"]))
    print_process_table(summary["process"], process)
    print_figures(summary, resolved)
    say(f"process: {summary['process']}   run: {summary['run_dir']}   {summary['seconds']:.0f} s")
    say(f"next: distpro transfer --process {summary['process']}{_trust(process, resolved)}")


def _trust(process: Process, recipe: Recipe) -> str:
    """Returns ` --trust` where the process names Python or places that transfer does not take from a file unasked."""
    from distpro_cli.process.trust import check_trusted

    try:
        check_trusted("", process, recipe)
    except DistproError:
        return " --trust"
    return ""
