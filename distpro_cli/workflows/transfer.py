"""Transfer: distil a student with a process read from a file. Training alone is the same without a process."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from distpro_cli.errors import RecipeError
from distpro_cli.networks.weights import save_weights
from distpro_cli.pathways.connections import joins_logits
from distpro_cli.process.file import save_process
from distpro_cli.process.matching import fit
from distpro_cli.process.process import Process
from distpro_cli.process.schedule import Schedule
from distpro_cli.recipe.schema import PathwayGroup, Recipe
from distpro_cli.runs.folder import RunFolder
from distpro_cli.runs.metrics import MetricsFile
from distpro_cli.training.loop import ScheduledWeights, Weights
from distpro_cli.training.step import Pair, Stepper
from distpro_cli.workflows.schemes import find_scheme, scheme_process, scheme_recipe, under_its_name, with_logits
from distpro_cli.workflows.search import (
    build_networks,
    build_pair,
    join,
    make_ready,
    parts_of,
    teacher_summary,
    top1_summary,
)
from distpro_cli.workflows.session import Session, Surroundings
from distpro_cli.workflows.teacher import cache_folder, teacher_key, train_teacher


@dataclass(frozen=True)
class Dropping:
    """Which part of a process is left out: below a threshold, or all but the strongest share; not both."""

    threshold: float | None = None
    keep: float | None = None


def transfer(
    recipe: Recipe,
    source: Process | str,
    dropping: Dropping,
    folder: RunFolder,
    around: Surroundings,
    *,
    mode: str = "strict",
    teacher_top1: float | None = None,
    title: str = "transfer",
) -> dict[str, Any]:
    """Distils the recipe's student with a process, or with the scheme of that name; returns the summary.

    Args:
        recipe: What to distil. One that says nothing of pathways takes the process's own.
        source: A process, or the name of a scheme.
        dropping: What of it is left out.
        folder: Of this run; the process lies there, too, whole.
        around: Device, progress, signals.
        mode: How pathways are matched.
        teacher_top1: The teacher's accuracy in percent, if it is known; else it is measured. Neither where
            nothing is ever on.
        title: What progress shows.

    Raises:
        ProcessError: the process does not fit the pair.
        DistproError: anything else wrong with the user's input.
        Interrupted: a signal came.
    """
    session = Session(recipe, around)
    pair, process = set_up(session, source)
    assert pair.teacher is not None and pair.pathways is not None
    fitted = fit(process, pair.pathways.infos, mode)
    schedule = fitted.schedule(threshold=dropping.threshold, keep=dropping.keep)
    if isinstance(source, str):
        process = replace(process, parts=parts_of(session, pair, recipe.distill.batch_size))
    num_used = _num_used(schedule)
    if num_used:
        make_ready(session, pair, folder, announce=teacher_top1 is None)
        if teacher_top1 is None:
            teacher_top1 = session.evaluate(pair.teacher)["top1"]
            around.reporter.message(f"teacher {recipe.teacher.name}: top-1 {teacher_top1:.2f} %")
    else:
        pair, teacher_top1 = Pair(pair.student), None
    save_process(process, folder.process, force=True)
    result = distil(session, pair, schedule if num_used else None, folder, title=title)
    summary = {
        "student": {**result["top1"], "weights": str(folder.weights)},
        "teacher": teacher_summary(teacher_top1),
        "pathways_used": num_used,
        "remaining_percent": round(schedule.remaining_percent, 2) if num_used else 0.0,
        "seconds": result["seconds"],
        "device_seconds": result["device_seconds"],
        "run_dir": str(folder.path),
    }
    folder.write_summary(summary)
    return summary


def set_up(session: Session, source: Process | str) -> tuple[Pair, Process]:
    """Builds the pair that a process drives, and the process itself where `source` is the name of a scheme.

    The teacher is not made ready; that of a scheme that needs none keeps random weights.

    Raises:
        DistproError: there is no such scheme, or the pair cannot be built.
    """
    recipe = session.recipe
    if isinstance(source, Process):
        given = "pathways" in recipe.model_fields_set
        return build_pair(session, recipe.pathways if given else pathway_groups(source)), source
    scheme = find_scheme(source)
    if scheme.on_logits:
        session = session.under(with_logits(recipe))
    logits = scheme.on_logits or (scheme.groups is None and joins_logits(recipe.pathways))
    student, teacher = build_networks(session, logits=logits, weights=scheme.teaches)
    recipe = scheme_recipe(source, session.recipe, teacher.levels, student.levels)
    try:
        pair = join(session, student, teacher, recipe.pathways)
    except RecipeError as error:
        raise error if scheme.groups is None else under_its_name(source, error) from None
    assert pair.pathways is not None
    return pair, scheme_process(source, recipe, pair.pathways.infos)


def train_student(recipe: Recipe, folder: RunFolder, around: Surroundings) -> dict[str, Any]:
    """Trains the recipe's student alone by `distill`; returns the summary."""
    session = Session(recipe, around)
    pair = Pair(session.build(recipe.student, "student"))
    result = distil(session, pair, None, folder, title="train student")
    summary = {
        "student": {**result["top1"], "weights": str(folder.weights)},
        "seconds": result["seconds"],
        "device_seconds": result["device_seconds"],
        "run_dir": str(folder.path),
    }
    folder.write_summary(summary)
    return summary


def train_teacher_alone(recipe: Recipe, folder: RunFolder, around: Surroundings) -> dict[str, Any]:
    """Trains the recipe's teacher by `teacher.train` (else `distill`) into the cache; returns the summary."""
    session = Session(recipe.model_copy(update={"seed": recipe.teacher.seed}), around)
    teacher = session.build(recipe.teacher, "teacher")
    cached = cache_folder() / "teachers" / f"{teacher_key(session)}.safetensors"
    progress = train_teacher(session, teacher, cached, folder)
    save_weights(teacher.model, folder.weights, {"network": recipe.teacher.name})
    summary = {
        "teacher": {**top1_summary(progress), "weights": str(folder.weights)},
        "seconds": round(progress.train_seconds, 2),
        "run_dir": str(folder.path),
    }
    folder.write_summary(summary)
    return summary


def distil(session: Session, pair: Pair, schedule: Schedule | None, folder: RunFolder, *, title: str) -> dict[str, Any]:
    """Trains the pair's student by `distill` under `schedule`; writes its weights; returns top1 and times."""

    def make_weights(stepper: Stepper, total_steps: int) -> Weights:
        return ScheduledWeights(stepper, total_steps, schedule)

    trainer = session.trainer(
        pair,
        session.recipe.distill,
        title=title,
        seed=session.recipe.seed,
        checkpoint=folder.checkpoint,
        metrics=MetricsFile(folder.metrics),
        make_weights=make_weights,
    )
    if folder.resuming and folder.checkpoint.exists():
        trainer.resume()
    progress = trainer.run()
    save_weights(pair.student.model, folder.weights, {"network": session.recipe.student.name})
    return {
        "top1": top1_summary(progress),
        "seconds": round(progress.train_seconds, 2),
        "device_seconds": round(progress.device_seconds, 2),
    }


def _num_used(schedule: Schedule) -> int:
    """Returns how many pathways are on at some time: kept, and with a weight above 0."""
    return sum(
        kept and bool(column.max() > 0) for kept, column in zip(schedule.ever_on, schedule.weights.T, strict=True)
    )


def pathway_groups(process: Process) -> list[PathwayGroup]:
    """Returns the process's own pathways as groups of a recipe, one a pathway."""
    return [
        PathwayGroup(
            connections=[[info.teacher.number, info.student.number]],
            transform=info.transform,
            transform_options=info.transform_options,
            distance=info.distance,
            distance_options=info.distance_options,
        )
        for info in process.pathways
    ]
