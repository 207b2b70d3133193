"""distpro compare: every way to distil a pair under equal conditions, with error bars."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distpro_cli.commands.options import (
    Overrides,
    RecipeName,
    RunOptions,
    Trust,
    parse_shares,
    parse_thresholds,
    with_run_options,
)
from distpro_cli.commands.running import in_context, print_json, read_recipe
from distpro_cli.errors import DistproError, escaped, nearest
from distpro_cli.recipe.scheme_names import ONLINE_METHODS, SCHEME_NAMES
from distpro_cli.world import current_world

if TYPE_CHECKING:
    from distpro_cli.process.process import Process
    from distpro_cli.recipe.schema import Recipe


Methods = Annotated[
    str,
    typer.Option(
        "--methods",
        help="Separated by commas: student, a scheme (kd, uniform, hint, attention-transfer, reviewkd, reviewkd+kd), "
        "process, process-mean (its weights averaged over time), online (a search in the run that counts) and its "
        f"rivals ({', '.join(name for name in ONLINE_METHODS if name != 'online')}).",
    ),
]
Processes = Annotated[
    list[str] | None,
    typer.Option(
        "--process",
        "-p",
        help="Process file, or a name as transfer takes it; may be repeated. Without it a process is searched first.",
    ),
]
Thresholds = Annotated[
    str | None, typer.Option("--thresholds", help="Each process also under these thresholds, such as 0.3,0.5.")
]
Keep = Annotated[
    str | None, typer.Option("--keep", help="Each process also with these shares of its entries, such as 0.8,0.5.")
]
Seeds = Annotated[int, typer.Option("--seeds", min=1, help="Number of seeds per method, counted from the recipe's.")]
Epochs = Annotated[int | None, typer.Option("--epochs", min=1, help="Epochs of every run; replaces the recipe's.")]
Plot = Annotated[
    Path | None, typer.Option("--plot", help="Also draw the metric over the cost into this .png, .svg or .pdf.")
]
AsMarkdown = Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")]


@with_run_options
def compare(
    recipe: RecipeName,
    overrides: Overrides = None,
    methods: Methods = "student,kd,uniform,reviewkd,process,process-mean",
    processes: Processes = None,
    thresholds: Thresholds = None,
    keep: Keep = None,
    seeds: Seeds = 3,
    epochs: Epochs = None,
    plot: Plot = None,
    markdown: AsMarkdown = False,
    trust: Trust = False,
    *,
    options: RunOptions,
) -> None:
    """Compare ways to distil a pair, under the same data, schedule and epochs, over several seeds.

    Runs already done in the same folder are kept; an interrupted one is resumed. --force starts them all again.
    """
    from distpro_cli.recipe.load import recipe_name
    from distpro_cli.runs.lock import locked

    if current_world().size > 1:
        raise DistproError("compare runs in one process; start it without torchrun, one per GPU with other --run-dir")
    if options.json and markdown:
        raise DistproError("--json and --markdown exclude each other; give one of them")
    given = [*(overrides or []), *([f"distill.epochs={epochs}"] if epochs is not None else [])]
    resolved = read_recipe(recipe, given, options.seed)
    wanted = _checked_names(methods)
    limits = parse_thresholds(thresholds) if thresholds else (), parse_shares(keep) if keep else ()
    loaded = _load(processes or [])
    if not trust:
        _check_trusted(loaded, resolved)
    if not any(name.startswith("process") for name in wanted):
        _refuse_unused(processes, thresholds, keep)
    if plot is not None:
        _check_plot(plot, may_replace=options.force or options.resume)
    name = recipe_name(recipe).replace("/", "-")
    path = options.run_dir if options.run_dir is not None else Path("runs") / f"compare-{name}"
    with locked(path), in_context(options, path) as context, redirect_stdout(sys.stderr):
        from distpro_cli.workflows.compare import Comparison
        from distpro_cli.workflows.methods import make_methods

        compared = make_methods(wanted, loaded, *limits)
        comparison = Comparison(resolved, compared, seeds, path, context, anew=options.force)
        summary = comparison.summary()
    _write(path, plot, summary)
    _show(summary, as_json=options.json, as_markdown=markdown)
    if summary["diverged"]:
        raise DistproError(*(one["message"] for one in summary["diverged"]))


def _check_plot(plot: Path, *, may_replace: bool) -> None:
    from distpro_cli.report.plots import check_plot_path

    if plot.exists() and not may_replace:
        raise DistproError(f"--plot {plot}: exists already; --resume replaces it and keeps the finished runs")
    check_plot_path(plot, force=True)


def _write(path: Path, plot: Path | None, summary: dict[str, Any]) -> None:
    """Writes the result into the folder, as JSON, Markdown and a plot, and the plot where the user wants it, too."""
    import json

    from distpro_cli.files import write_atomically
    from distpro_cli.report.comparison import markdown
    from distpro_cli.report.comparison_plot import plot_comparison

    write_atomically(path / "summary.json", json.dumps(summary, indent=2) + "\n")
    write_atomically(path / "comparison.md", markdown(summary))
    for target in (path / "comparison.png", plot):
        if target is not None:
            plot_comparison(summary, target, force=True)


def _show(summary: dict[str, Any], *, as_json: bool, as_markdown: bool) -> None:
    from distpro_cli.report.comparison import markdown, print_comparison
    from distpro_cli.report.terminal import encodable

    if as_json:
        print_json(summary)
    elif as_markdown:
        print(encodable(escaped(markdown(summary), keep="\n"), sys.stdout.encoding), end="")
    else:
        print_comparison(summary)


def _checked_names(text: str) -> list[str]:
    allowed = ["student", *SCHEME_NAMES, "process", "process-mean", *ONLINE_METHODS]
    names = [name.strip() for name in text.split(",") if name.strip()]
    problems = [
        f"--methods: there is no '{name}'{nearest(name, allowed)}; there are: {', '.join(allowed)}"
        for name in names
        if name not in allowed
    ]
    problems += [f"--methods: '{name}' is given twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    if not names:
        problems.append(f"--methods names none; there are: {', '.join(allowed)}")
    if problems:
        raise DistproError(*problems)
    return names


def _load(names: Sequence[str]) -> list[tuple[str, Process]]:
    """Returns every process with a unique label: its file's name, with a number where that is taken."""
    from distpro_cli.process.library import load_named

    loaded: dict[str, Process] = {}
    problems: list[str] = []
    for name in names:
        stem = escaped(Path(name).stem)
        labels = [stem, *(f"{stem}-{number}" for number in range(2, len(names) + 1))]
        label = next(label for label in labels if label not in loaded)
        try:
            loaded[label] = load_named(name)
        except DistproError as error:
            problems += error.lines
    if problems:
        raise DistproError(*problems)
    return list(loaded.items())


def _check_trusted(loaded: Sequence[tuple[str, Process]], recipe: Recipe) -> None:
    from distpro_cli.process.trust import check_trusted

    for label, process in loaded:
        check_trusted(label, process, recipe, given=recipe)


def _refuse_unused(processes: list[str] | None, thresholds: str | None, keep: str | None) -> None:
    for option, value in (("--process", processes), ("--thresholds", thresholds), ("--keep", keep)):
        if value:
            raise DistproError(f"{option} applies only to processes, and --methods names none; add process to it")
