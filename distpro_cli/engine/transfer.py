"""Transfer: distil a student with a process read from a file. Training alone is the same without a process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distpro_cli.engine.loop import ScheduledWeights, Weights
from distpro_cli.engine.runs import RunFolder
from distpro_cli.engine.schemes import SCHEMES
from distpro_cli.engine.search import build_pair, make_ready, teacher_summary, top1_summary
from distpro_cli.engine.session import Session, Surroundings
from distpro_cli.engine.step import Pair, Stepper
from distpro_cli.engine.teacher import cache_folder, teacher_key, train_teacher
from distpro_cli.networks.weights import save_weights
from distpro_cli.process.matching import match
from distpro_cli.process.process import Process, Schedule
from distpro_cli.recipe.schema import PathwayGroup, Recipe
from distpro_cli.report.metrics import MetricsFile


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
    mode: str,
) -> dict[str, Any]:
    """Distils the recipe's student with a process, or with the scheme of that name; returns the summary.

    A recipe that says nothing of pathways takes the process's own.

    Raises:
        ProcessError: the process does not fit the pair.
        DistproError: anything else wrong with the user's input.
        Interrupted: a signal came.
    """
    session = Session(recipe, around)
    groups = recipe.pathways
    if isinstance(source, Process) and "pathways" not in recipe.model_fields_set:
        groups = pathway_groups(source)
    pair = build_pair(session, groups)
    assert pair.teacher is not None and pair.pathways is not None
    process = SCHEMES[source](recipe, pair.pathways.infos) if isinstance(source, str) else source
    schedule = process.schedule(threshold=dropping.threshold, keep=dropping.keep)
    columns = match(process, pair.pathways.infos, mode)
    make_ready(session, pair, folder)
    teacher_top1 = session.evaluate(pair.teacher)["top1"]
    around.reporter.message(f"teacher {recipe.teacher.name}: top-1 {teacher_top1:.2f} %")
    result = distil(session, pair, schedule, columns, folder, title="transfer")
    summary = {
        "student": {**result["top1"], "weights": str(folder.weights)},
        "teacher": teacher_summary(teacher_top1),
        "pathways_used": int(sum(schedule.ever_on)),
        "remaining_percent": round(schedule.remaining_percent, 2),
        "seconds": result["seconds"],
        "run_dir": str(folder.path),
    }
    folder.write_summary(summary)
    return summary


def train_student(recipe: Recipe, folder: RunFolder, around: Surroundings) -> dict[str, Any]:
    """Trains the recipe's student alone by `distill`; returns the summary."""
    session = Session(recipe, around)
    pair = Pair(session.build(recipe.student, "student"))
    result = distil(session, pair, None, [], folder, title="train student")
    summary = {
        "student": {**result["top1"], "weights": str(folder.weights)},
        "seconds": result["seconds"],
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


def distil(
    session: Session,
    pair: Pair,
    schedule: Schedule | None,
    columns: list[int],
    folder: RunFolder,
    *,
    title: str,
) -> dict[str, Any]:
    """Trains the pair's student by `distill` under `schedule`; writes its weights; returns top1 and seconds."""

    def make_weights(stepper: Stepper, total_steps: int) -> Weights:
        return ScheduledWeights(stepper, total_steps, schedule, columns)

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
    return {"top1": top1_summary(progress), "seconds": round(progress.train_seconds, 2)}


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
