"""Train: one network of a recipe, without distillation."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from distpro_cli.errors import DistproError
from distpro_cli.recipe.schema import Recipe
from distpro_cli.runs.context import RunContext
from distpro_cli.runs.folder import RunFolder
from distpro_cli.training.step import Solo
from distpro_cli.training.weights import NoWeights
from distpro_cli.workflows.session import Session
from distpro_cli.workflows.teacher import teacher_cache, train_teacher
from distpro_cli.workflows.transfer import train_student_with


def train_student(recipe: Recipe, folder: RunFolder, context: RunContext) -> dict[str, Any]:
    """Trains the recipe's student alone by `distill`; returns the summary."""
    session = Session(recipe, context)
    student = Solo(session.build(recipe.student, "student"))
    weights = NoWeights(session.stepper(student, recipe.distill))
    summary = train_student_with(session, weights, folder, "train student")
    folder.write_summary(summary)
    return summary


def train_teacher_alone(recipe: Recipe, folder: RunFolder, context: RunContext) -> dict[str, Any]:
    """Trains the recipe's teacher by `teacher.train` (else `distill`) into the cache; returns the summary."""
    if not recipe.teacher.head:
        raise DistproError("teacher.head is false: without a head there is nothing to train it by; leave head out")
    session = Session(recipe.model_copy(update={"seed": recipe.teacher.seed}), context)
    metric = session.task.metric
    teacher = session.build(recipe.teacher, "teacher")
    progress, average = train_teacher(session, teacher, teacher_cache(session), folder)
    training = recipe.teacher.train or recipe.distill
    session.save(teacher, recipe.teacher, folder.teacher, training, by="distpro train")
    found: dict[str, Any] = {**metric.last_and_best(progress.history), "weights": str(folder.teacher)}
    if average is not None:
        session.save(average, recipe.teacher, folder.teacher_average, training, by="distpro train")
        found["ema"] = {**metric.last_and_best(progress.average_history), "weights": str(folder.teacher_average)}
    summary = {
        "teacher": found,
        "seconds": round(progress.train_seconds, 2),
        "metric": asdict(metric),
        "run_dir": str(folder.path),
    }
    folder.write_summary(summary)
    return summary
