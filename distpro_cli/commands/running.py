"""What the commands that run something have in common: the recipe, the run's context, its result."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distpro_cli.commands.options import RunOptions
from distpro_cli.errors import DiskFullError, DistproError
from distpro_cli.files import DISK_FULL
from distpro_cli.world import current_world

if TYPE_CHECKING:
    from distpro_cli.recipe.schema import Recipe
    from distpro_cli.runs.context import RunContext
    from distpro_cli.runs.folder import RunFolder


def read_recipe(source: str, overrides: Sequence[str] | None, seed: int | None) -> Recipe:
    """Loads a recipe under its overrides; `--seed` is one more of them."""
    from distpro_cli.recipe.load import load_recipe

    return load_recipe(source, with_seed(overrides, seed))


def with_seed(overrides: Sequence[str] | None, seed: int | None) -> list[str]:
    """Returns the overrides, with `--seed` as the last of them."""
    return [*(overrides or []), *([f"seed={seed}"] if seed is not None else [])]


def run(
    verb: str,
    name: str,
    recipe: Recipe,
    options: RunOptions,
    work: Callable[[RunFolder, RunContext], dict[str, Any]],
    inputs: Mapping[str, str | float | None] | None = None,
    output: Path | None = None,
) -> dict[str, Any]:
    """Opens the run folder, does `work` in it and returns its summary; a finished run is not repeated.

    A run that torchrun has started again resumes by itself.
    """
    from distpro_cli.runs.folder import open_run_folder

    resume = options.resume or current_world().restarted
    folder = open_run_folder(verb, name, recipe, options.run_dir, resume=resume, force=options.force, inputs=inputs)
    # What a network or a library prints does not belong among the results.
    try:
        finished = folder.finished_summary(output)
        if finished is not None:
            return finished
        with in_context(options, folder.path) as context, redirect_stdout(sys.stderr):
            summary = work(folder, context)
        current_world().barrier()  # the main rank has written everything
        return summary
    except InterruptedRunError:
        raise
    except Exception:
        folder.forget_if_nothing_made()
        raise
    finally:
        folder.close()


@contextmanager
def in_context(options: RunOptions, path: Path) -> Iterator[RunContext]:
    """Gives a run in the folder at `path` its context; an interrupted one says how to resume it."""
    from distpro_cli.runs.signals import Interruption

    how = f"resume with: {_resume_command(path)}"
    with Interruption(last=True) as interruption:
        try:
            # Inside, since these imports take seconds, in which a signal may come.
            from distpro_cli.report.progress import make_reporter
            from distpro_cli.workflows.session import run_context

            interruption.check()
            with run_context(options.device, make_reporter(options.quiet), interruption) as context:
                yield context
        except KeyboardInterrupt:
            interruption.end()
            raise InterruptedRunError(f"interrupted; {how}") from None
        except DiskFullError as error:
            raise DiskFullError(f"{error}; make room, then {how}") from error
        except Exception as error:
            if interruption.at_once:  # a library made something else of it
                raise InterruptedRunError(f"interrupted; {how}") from None
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                place = error.filename or "output"
                raise DiskFullError(f"{place}: {error.strerror}; make room, then {how}") from error
            raise


def _resume_command(path: Path) -> str:
    """Returns the command line of this process, with what resumes the run in the folder at `path`."""
    kept: list[str] = []
    arguments = iter(sys.argv[1:])
    for argument in arguments:
        if argument == "--run-dir":
            next(arguments, None)
        elif argument not in ("--resume", "--force") and not argument.startswith("--run-dir="):
            kept.append(argument)
    return shlex.join([*current_world().command, *kept, "--run-dir", str(path), "--resume"])


class InterruptedRunError(DistproError):
    """The run stopped at a signal; the message holds the command that resumes it; exit status 130."""


def print_figures(summary: Mapping[str, Any], recipe: Recipe) -> None:
    """Prints how good the networks of a finished run are: the teacher that taught, the network that was trained."""
    from distpro_cli.metric import Metric
    from distpro_cli.report.terminal import say

    if "metric" in summary:
        metric = Metric(**summary["metric"])
    else:  # a run folder of an earlier version
        from distpro_cli.tasks.task import find_task

        metric = find_task(recipe.task).metric
    for role in ("teacher", "student"):
        figures = summary.get(role, {})
        fixed, last, best = (figures.get(f"{metric.name}{end}") for end in ("", "_last", "_best"))
        if fixed is not None:
            say(f"{role} {metric.label} {metric.with_unit(fixed)}")
        elif last is not None:
            shown = f"{metric.with_unit(last)} after the last epoch, {metric.with_unit(best)} at best"
            say(f"{role} {metric.label} {shown}")
        if (of_average := figures.get("ema", {}).get(f"{metric.name}_last")) is not None:
            say(f"{role}, running average: {metric.label} {metric.with_unit(of_average)} after the last epoch")


def print_json(value: dict[str, Any]) -> None:
    """Prints the command's one machine-readable object."""
    json.dump(value, sys.stdout, indent=2)
    sys.stdout.write("\n")
