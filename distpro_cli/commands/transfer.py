"""distpro transfer: distil with a process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distpro_cli.commands.options import Allow, Match, Overrides, RunOptions, Trust, to_how, with_run_options
from distpro_cli.commands.running import print_figures, print_json, read_recipe, run, with_seed
from distpro_cli.errors import DistproError, ProcessError
from distpro_cli.recipe.scheme_names import SCHEME_NAMES

if TYPE_CHECKING:
    from distpro_cli.process.process import Process
    from distpro_cli.recipe.schema import Recipe
    from distpro_cli.runs.context import RunContext
    from distpro_cli.runs.folder import RunFolder


@with_run_options
def transfer(
    process: Annotated[
        str,
        typer.Option(
            "--process",
            "-p",
            help="Process file, the name of one that ships or lies in processes/, hf://owner/repo/file.safetensors, "
            f"or a scheme: {', '.join(SCHEME_NAMES)}.",
        ),
    ],
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="[RECIPE]", help="The pair to distil; default: the recipe inside the process file."),
    ] = None,
    overrides: Overrides = None,
    threshold: Annotated[
        float | None,
        typer.Option("--threshold", min=0, max=1, help="Drop the entries below this, alpha scaled to [0, 1]."),
    ] = None,
    keep: Annotated[
        float | None, typer.Option("--keep", min=0, max=1, help="Keep only the strongest share of the entries.")
    ] = None,
    match: Match = "level",
    allow: Allow = None,
    trust: Trust = False,
    *,
    options: RunOptions,
) -> None:
    """Distil a student with the weights over time of a process, for a run of any length."""
    from distpro_cli.runs.identity import transfer_inputs

    loaded, how = _load(process), to_how(match, allow)
    name, resolved, check = _resolve(recipe, overrides, loaded, Path(process), options.seed)
    if not trust:
        check()

    def work(folder: RunFolder, context: RunContext) -> dict[str, Any]:
        from distpro_cli.workflows.sources import source_of
        from distpro_cli.workflows.transfer import Dropping
        from distpro_cli.workflows.transfer import transfer as transfer_process

        dropping = Dropping(threshold, keep)
        return transfer_process(resolved, source_of(loaded, how), dropping, folder, context, how=how).summary

    inputs = transfer_inputs(loaded, threshold, keep, how)
    summary = run("transfer", name, resolved, options, work, inputs)
    if options.json:
        print_json(summary)
        return
    from distpro_cli.report.terminal import say

    print_figures(summary, resolved)
    say(f"pathways used: {summary['pathways_used']}, {summary['remaining_percent']:g} % of the process")
    say(f"weights: {summary['student']['weights']}   run: {summary['run_dir']}   {summary['seconds']:.0f} s")


def _load(process: str) -> Process | str:
    """Returns the process in the file of this name, else the name of a scheme."""
    if process in SCHEME_NAMES and not Path(process).is_file():
        return process
    from distpro_cli.process.library import load_named

    try:
        return load_named(process, SCHEME_NAMES)
    except ProcessError:
        raise
    except DistproError as error:
        raise DistproError(*(f"--process {line}" for line in error.lines)) from None


def _resolve(
    recipe: str | None, overrides: list[str] | None, loaded: Process | str, path: Path, seed: int | None
) -> tuple[str, Recipe, Callable[[], None]]:
    """Returns the name and the recipe of the run, the one given, else the one inside the process; and what checks that
    the process names nothing outside itself that the user did not.
    """
    from distpro_cli.process.trust import check_trusted
    from distpro_cli.recipe.load import parse_recipe, recipe_name

    if recipe is not None and "=" not in recipe:
        resolved = read_recipe(recipe, overrides, seed)
        if isinstance(loaded, str):
            return recipe_name(recipe), resolved, lambda: None
        return recipe_name(recipe), resolved, partial(check_trusted, str(path), loaded, resolved, given=resolved)
    if isinstance(loaded, str):
        raise DistproError(f"--process {loaded} names no networks; give a RECIPE")
    # Without RECIPE the first override takes its place.
    given = [*([recipe] if recipe is not None else []), *(overrides or [])]
    resolved = parse_recipe(loaded.recipe, with_seed(given, seed), filename=f"recipe inside {path}")
    return path.stem, resolved, partial(check_trusted, str(path), loaded, resolved, overrides=given)
