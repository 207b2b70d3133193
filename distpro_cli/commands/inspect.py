"""distpro inspect: show recipes and processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distpro_cli.commands.options import Allow, Force, Json, Match, Quiet, parse_shares, parse_thresholds, to_how
from distpro_cli.commands.running import print_json
from distpro_cli.errors import DistproError, ProcessError, escaped

if TYPE_CHECKING:
    from distpro_cli.commands.targets import Targets
    from distpro_cli.process.fitting import How
    from distpro_cli.process.machine import Machine
    from distpro_cli.process.process import Process

# The thresholds and the shares kept under which a process is shown: `thresholds` and `keeps` of `summarize`.
Marks = Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Picture:
    """A plot to draw: where, in which form, whether of shares, whether over a file that is there."""

    path: Path
    form: str
    normalized: bool
    force: bool


def inspect(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PATH | KEY=VALUE]...",
            help="Process files, folders of them, recipes and overrides of their keys; without any: all that "
            "ships and all in processes/.",
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw the weights over time into this .png, .svg or .pdf.")
    ] = None,
    form: Annotated[
        str, typer.Option("--form", help="Of the plot: overlaid lines, columns (one per process), or heat-map.")
    ] = "overlaid",
    normalized: Annotated[
        bool, typer.Option("--normalized", help="Plot shares of all weight at each moment, not the weights.")
    ] = False,
    export: Annotated[
        Path | None,
        typer.Option("--export", help="Write the tables of a process into this .csv or .yaml; edit --table reads it."),
    ] = None,
    thresholds: Annotated[
        str, typer.Option("--thresholds", help="Thresholds for which the entries left and the cost are shown.")
    ] = "0.3,0.5,0.6,0.7",
    keep: Annotated[
        str | None, typer.Option("--keep", help="Shares of the entries for which the cost is shown: 0.8,0.5.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            help="cpu, cuda or mps, as measured by doctor --calibrate: where costs are told for; default: the best "
            "measured, else built-in constants.",
        ),
    ] = None,
    match: Match = "level",
    allow: Allow = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show processes, what a recipe resolves to and, given both, what of the process drives what of the pair."""
    _import_numpy()
    how = to_how(match, allow)
    marks = {"thresholds": parse_thresholds(thresholds), "keeps": parse_shares(keep) if keep is not None else ()}
    picture = _picture(plot, form, normalized=normalized, force=force)
    if export is not None:
        _export(paths or [], export, force=force)
        if not quiet:
            print(escaped(f"table: {export}"), file=sys.stderr)
        return
    machines = _machines(device, quiet=quiet)
    if not paths:
        _inspect_all(marks, picture, machines, json=json)
    else:
        _inspect_paths(paths, marks, picture, how, machines, json=json)
    if plot is not None and not quiet:
        print(escaped(f"plot: {plot}"), file=sys.stderr)


def _picture(plot: Path | None, form: str, *, normalized: bool, force: bool) -> Picture | None:
    """Returns the plot that is asked for, once it is known that it can be drawn."""
    if plot is None:
        if form != "overlaid" or normalized:
            raise DistproError("--form and --normalized say how to plot; give --plot FILE")
        return None
    from distpro_cli.report.plots import check_form, check_plot_path

    check_form(form)
    check_plot_path(plot, force=force)
    return Picture(plot, form, normalized, force)


def _import_numpy() -> None:
    # numpy's linear algebra starts one thread per core when it is imported: half of the time of this import, and
    # nothing here needs them. A process started from here gets the environment as it was.
    name = "OPENBLAS_NUM_THREADS"
    if name not in os.environ:
        os.environ[name] = "1"
        import numpy  # noqa: F401

        del os.environ[name]


def _machines(device: str | None, *, quiet: bool) -> Mapping[str, Machine]:
    """Returns the machines that costs are told for, by precision; none: the built-in one.

    Raises:
        DistproError: a device is asked for that was not measured.
    """
    from distpro_cli.costs.machines import KINDS, machines, machines_or_built_in

    if device is None:
        return machines_or_built_in(None, lambda text: None if quiet else print(escaped(text), file=sys.stderr))
    kind = device.partition(":")[0]
    if kind not in KINDS:
        raise DistproError(f"--device {device}: there is no such kind of device; allowed: {', '.join(sorted(KINDS))}")
    if not (found := machines(kind)):
        raise DistproError(
            f"--device {device}: not measured here; measure it: distpro doctor --calibrate --device {device}"
        )
    return found


def _inspect_paths(
    paths: Sequence[str],
    marks: Marks,
    picture: Picture | None,
    how: How,
    machines: Mapping[str, Machine],
    *,
    json: bool,
) -> None:
    from distpro_cli.commands.targets import find_targets

    overrides = [text for text in paths if "=" in text and not os.path.lexists(text)]
    paths = [text for text in paths if text not in overrides]
    targets = find_targets(paths)
    _weigh(targets, machines)
    if overrides and not targets.recipes:
        raise DistproError(f"{overrides[0]}: an override applies only to recipes, and none is given; give a RECIPE")
    reports = [(source, _recipe_report(source, overrides)) for source in targets.recipes]
    fits = [
        {"process": label, "recipe": source, **_fit(process, source, overrides, how)}
        for source in targets.recipes
        for label, process in targets.sound
    ]
    _plot(targets.sound, picture)
    listed = any(Path(path).is_dir() for path in paths)
    if json:
        processes = _summaries(targets, marks, listed=listed)
        recipes = [{"path": source, **report} for source, report in reports]
        several = {
            "processes": processes,
            **_likeness(targets),
            **({"recipes": recipes} if recipes else {}),
            **({"fits": fits} if fits else {}),
        }
        print_json([*processes, *recipes][0] if len(paths) == 1 and not listed else several)
        return
    from distpro_cli.report.process_table import print_process_list, print_process_table, print_side_by_side

    if listed:
        print_process_list("processes", _summaries(targets, marks, listed=True))
    elif len(targets.sound) == 1:
        label, process = targets.sound[0]
        print_process_table(label, process, **marks)
    elif targets.sound:
        print_side_by_side(targets.sound, **marks)
    if reports:
        from distpro_cli.report.recipe_table import print_recipe_table

        for source, report in reports:
            print_recipe_table(source, report)
    for entry in fits:
        from distpro_cli.report.recipe_table import print_fit

        print_fit(entry["process"], entry["recipe"], entry)


def _weigh(targets: Targets, machines: Mapping[str, Machine]) -> None:
    """Tells the costs of all processes for the machine of their precision, where there is one."""
    if not machines:
        return
    from distpro_cli.process.library import precision_of

    for place, (label, process) in enumerate(targets.processes):
        if not isinstance(process, str) and process.holds_work:
            machine = machines.get(precision_of(process))
            targets.processes[place] = (label, process if machine is None else process.on_machine(machine))


def _inspect_all(marks: Marks, picture: Picture | None, machines: Mapping[str, Machine], *, json: bool) -> None:
    from distpro_cli.commands.targets import Targets, add_folder
    from distpro_cli.process.file import load_process
    from distpro_cli.recipe.shipped import shipped_processes, shipped_recipes

    targets = Targets()
    add_folder(targets, Path("processes"))
    # By content: beside an installed package, a checkout's processes/ holds copies of those that ship.
    seen = {Path(label).read_bytes() for label, _ in targets.sound}
    for name, path in shipped_processes().items():
        if path.read_bytes() not in seen:
            targets.processes.append((name, load_process(path)))
    _weigh(targets, machines)
    recipes = [_recipe_entry(name, path) for name, path in shipped_recipes().items()]
    _plot(targets.sound, picture)
    summaries = _summaries(targets, marks, listed=True)
    if json:
        print_json({"recipes": recipes, "processes": summaries})
        return
    from distpro_cli.report.process_table import print_process_list
    from distpro_cli.report.recipe_table import print_recipe_list

    print_recipe_list("recipes that ship", recipes)
    print_process_list("processes", summaries)


def _export(paths: Sequence[str], export: Path, *, force: bool) -> None:
    from distpro_cli.commands.targets import find_targets
    from distpro_cli.process.tables import export_table

    found = find_targets(paths).sound
    if len(found) != 1:
        raise DistproError(f"--export writes the tables of one process, and {len(found)} are given")
    export_table(found[0][1], export, force=force)


def _summaries(targets: Targets, marks: Marks, *, listed: bool) -> list[dict[str, Any]]:
    """Returns what there is to say of every process; in a list also `about`, for which a recipe may have to be read."""
    from distpro_cli.process.summary import summarize

    found: list[dict[str, Any]] = []
    for label, process in targets.processes:
        if isinstance(process, str):
            found.append({"path": label, "error": process})
            continue
        found.append({"path": label, **summarize(process, **marks)})
        if listed:
            from distpro_cli.process.library import about

            found[-1]["about"] = about(process, targets.files.get(label))
    return found


def _likeness(targets: Targets) -> dict[str, Any]:
    """Returns how alike several processes are, each with itself and those before it in the list."""
    if len(targets.sound) < 2 or len(targets.sound) < len(targets.processes):
        return {}
    from distpro_cli.process.likeness import likenesses

    return {"likeness": likenesses([process for _, process in targets.sound])}


def _recipe_report(source: str, overrides: Sequence[str]) -> dict[str, Any]:
    from distpro_cli.recipe.load import load_recipe

    recipe = load_recipe(source, overrides)  # first: what is wrong with it is said before torch is imported
    from distpro_cli.costs.complexity import build_for_costs, recipe_report
    from distpro_cli.training.step import Pair
    from distpro_cli.workflows.step_memory import memory_report

    teacher, student, pathways = built = build_for_costs(recipe)
    return {**recipe_report(recipe, built), "memory": memory_report(recipe, Pair(student, teacher, pathways))}


def _fit(process: Process, source: str, overrides: Sequence[str], how: How) -> dict[str, Any]:
    from distpro_cli.recipe.load import load_recipe
    from distpro_cli.workflows.explain import explain_fit

    try:
        return explain_fit(process, load_recipe(source, overrides), how)
    except ProcessError as error:
        return {"fits": None, "error": str(error)}


def _recipe_entry(name: str, path: Path) -> dict[str, Any]:
    from distpro_cli.recipe.load import load_recipe

    entry = {"name": name, "path": str(path)}
    try:
        recipe = load_recipe(path)
    except DistproError as error:
        return {**entry, "error": str(error)}
    return {**entry, "teacher": recipe.teacher.name, "student": recipe.student.name, "data": recipe.data.name}


def _plot(processes: Sequence[tuple[str, Any]], picture: Picture | None) -> None:
    if picture is None:
        return
    if not processes:
        raise DistproError("--plot draws processes, and there is none; give a process file or a folder of them")
    from distpro_cli.report.plots import plot_processes

    named = [(Path(label).stem if label.endswith(".safetensors") else label, process) for label, process in processes]
    plot_processes(named, picture.path, force=picture.force, form=picture.form, normalized=picture.normalized)
