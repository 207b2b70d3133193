"""Transfer: distil a student with a process."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from distpro_cli.files import write_atomically
from distpro_cli.process.file import save_process
from distpro_cli.process.fitting import BY_LEVEL, How, Match, fitted, match_that_fits, other_taps
from distpro_cli.process.library import measured_unit
from distpro_cli.process.schedule import Schedule
from distpro_cli.recipe.schema import Recipe
from distpro_cli.runs.context import RunContext
from distpro_cli.runs.folder import RunFolder
from distpro_cli.training.scale import SCALES
from distpro_cli.training.step import Pair, Solo
from distpro_cli.training.weights import NoWeights, ScheduledWeights, Weights
from distpro_cli.workflows.pairs import FindParts, make_ready, parts_of
from distpro_cli.workflows.session import Session
from distpro_cli.workflows.sources import SchemeSource, Source


@dataclass(frozen=True)
class Dropping:
    """Which part of a process is left out: below a threshold, or all but the strongest share; not both."""

    threshold: float | None = None
    keep: float | None = None


@dataclass(frozen=True)
class Distilled:
    """What a run made.

    Attributes:
        student: The trained network, in eval mode, without taps.
        mean: What it expects to be subtracted from images in [0, 1], per channel.
        std: What it expects them to be divided by.
        summary: What `--json` prints.
    """

    student: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    summary: dict[str, Any]


def transfer(
    recipe: Recipe,
    source: Source,
    dropping: Dropping,
    folder: RunFolder,
    context: RunContext,
    *,
    how: How = BY_LEVEL,
    teacher_figure: float | None = None,
    title: str = "transfer",
    find_parts: FindParts = parts_of,
) -> Distilled:
    """Distils the recipe's student with the process of a source.

    Args:
        recipe: What to distil. One without pathways takes the process's own.
        source: Of the process.
        dropping: What of it is left out.
        folder: Of this run; the process lies there, too, whole.
        context: Device, progress, signals.
        how: As in the source: how the process is fitted to its pair.
        teacher_figure: The teacher's, if it is known; else it is measured. Neither where nothing is ever on.
        title: What progress shows.
        find_parts: Tells what a step costs.

    Raises:
        ProcessError: the process does not fit the pair.
        DistproError: anything else wrong with the user's input.
        Interrupted: a signal came.
    """
    session = Session(recipe, context)
    metric, training = session.task.metric, recipe.distill
    pair, process = source.set_up(session)
    match = match_that_fits(process, pair.infos, how, (pair.teacher.levels, pair.student.levels))
    if not process.parts and match.columns == tuple(range(len(process.pathways))):
        process = replace(process, parts=find_parts(session, pair, training.batch_size))
    for tap in other_taps(process, match):
        context.say_once(tap)
    unit = measured_unit(training, process)
    driving = process if unit is None else process.in_units()
    schedule = fitted(driving, match).schedule(threshold=dropping.threshold, keep=dropping.keep)
    num_used = _num_used(schedule)
    weights: Weights
    if num_used:
        weights = scheduled = _scheduled(session, pair, schedule, unit)
        teacher_figure = make_ready(session, pair, scheduled.distiller, folder, teacher_figure)
    else:
        weights, teacher_figure = NoWeights(session.stepper(Solo(pair.student), training)), None
    save_process(process, folder.process, force=True)
    matched = {} if isinstance(source, SchemeSource) else _note_match(match, folder)
    result = train_student_with(session, weights, folder, title, **matched)
    summary = {
        **result,
        "teacher": metric.fixed(teacher_figure),
        "pathways_used": num_used,
        "remaining_percent": round(schedule.remaining_percent, 2) if num_used else 0.0,
    }
    folder.write_summary(summary)
    mean, std = (tuple(values.flatten().tolist()) for values in (pair.student.mean, pair.student.std))
    return Distilled(pair.student.released(), mean, std, summary)


def _scheduled(session: Session, pair: Pair, schedule: Schedule, unit: str | None) -> ScheduledWeights:
    """Returns the weights of a schedule, in a unit that the run measures if one is named."""
    training = session.recipe.distill
    distiller, total_steps = session.distiller(pair, training), session.total_steps(training)
    scale = None if unit is None else SCALES[unit](distiller, total_steps)
    return ScheduledWeights(distiller, schedule, total_steps, scale)


def _note_match(match: Match, folder: RunFolder) -> dict[str, Any]:
    """Writes what was matched to what into the run folder, and returns it for the student's metadata."""
    values = match.values()
    write_atomically(folder.matching, json.dumps(values, indent=2) + "\n")
    return {"process": values}


def train_student_with(
    session: Session, weights: Weights, folder: RunFolder, title: str, **facts: Any
) -> dict[str, Any]:
    """Trains a student by `distill` under a source of weights, writes it and its average; returns what to report.

    `facts` are written beside the weights, to what trained them.
    """
    metric, student = session.task.metric, weights.stepper.student
    progress = session.train(
        weights, session.recipe.distill, title, folder.checkpoint, folder.metrics, resume=folder.resuming
    )
    recipe, pathways = session.recipe, weights.stepper.trained.infos
    distilled = {"by": "distpro transfer", "teacher": recipe.teacher.name, "pathways": len(pathways)}
    trained = {**(distilled if pathways else {"by": "distpro train"}), **facts}
    session.save(student, recipe.student, folder.student, recipe.distill, **trained)
    found: dict[str, Any] = {**metric.last_and_best(progress.history), "weights": str(folder.student)}
    if (average := weights.stepper.average) is not None:
        session.save(average, recipe.student, folder.average, recipe.distill, **trained)
        found["ema"] = {**metric.last_and_best(progress.average_history), "weights": str(folder.average)}
    return {
        "student": found,
        "seconds": round(progress.train_seconds, 2),
        "device_seconds": round(progress.device_seconds, 2),
        "metric": asdict(metric),
        "run_dir": str(folder.path),
    }


def _num_used(schedule: Schedule) -> int:
    """Returns how many pathways are on at some time: kept, and with a weight above 0."""
    return sum(
        kept and bool(column.max() > 0) for kept, column in zip(schedule.ever_on, schedule.weights.T, strict=True)
    )
