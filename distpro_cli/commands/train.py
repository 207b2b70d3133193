"""distpro train: train the student or the teacher of a recipe alone."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distpro_cli.commands.options import Overrides, RecipeName, RunOptions, with_run_options
from distpro_cli.commands.running import print_figures, print_json, read_recipe, run

if TYPE_CHECKING:
    from distpro_cli.runs.context import RunContext
    from distpro_cli.runs.folder import RunFolder


class Role(StrEnum):
    """Which of the pair is trained."""

    TEACHER = "teacher"
    STUDENT = "student"


@with_run_options
def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    network: Annotated[Role, typer.Option("--network", help="Which of the pair to train.")] = Role.STUDENT,
    *,
    options: RunOptions,
) -> None:
    """Train the student (as in `distill`) or the teacher (as in `teacher.train`) without distillation."""
    from distpro_cli.recipe.load import recipe_name

    resolved = read_recipe(recipe, overrides, options.seed)

    def work(folder: RunFolder, context: RunContext) -> dict[str, Any]:
        from distpro_cli.workflows.train import train_student, train_teacher_alone

        run_training = train_student if network is Role.STUDENT else train_teacher_alone
        return run_training(resolved, folder, context)

    summary = run(f"train-{network}", recipe_name(recipe), resolved, options, work)
    if options.json:
        print_json(summary)
        return
    from distpro_cli.report.terminal import say

    print_figures(summary, resolved)
    say(f"weights: {summary[network.value]['weights']}   run: {summary['run_dir']}   {summary['seconds']:.0f} s")
