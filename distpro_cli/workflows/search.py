"""Search: learn the weights over time of a pair's pathways, and write them as a process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distpro_cli.costs.step_costs import step_parts
from distpro_cli.errors import DistproError
from distpro_cli.networks.dry_run import first_line
from distpro_cli.networks.levels import TappedNetwork
from distpro_cli.networks.weights import save_weights
from distpro_cli.pathways.connections import joins_logits, resolve_pathways
from distpro_cli.pathways.module import Pathways
from distpro_cli.process.cost import Part
from distpro_cli.process.file import save_process
from distpro_cli.process.pathway import PathwayInfo
from distpro_cli.process.process import Process
from distpro_cli.randomness import derived_seed
from distpro_cli.recipe.load import dump_recipe
from distpro_cli.recipe.schema import PathwayGroup, Recipe, Training
from distpro_cli.runs.folder import RunFolder
from distpro_cli.runs.metrics import MetricsFile
from distpro_cli.training.alpha import AlphaOptimizer
from distpro_cli.training.hypergradients import BILEVEL_STEPS
from distpro_cli.training.loop import Progress, SearchedWeights, Weights
from distpro_cli.training.step import Pair, Stepper
from distpro_cli.versions import installed_versions
from distpro_cli.workflows.session import Session, Surroundings
from distpro_cli.workflows.teacher import build_teacher, prepare_teacher


def search(recipe: Recipe, output: Path, folder: RunFolder, around: Surroundings, *, force: bool) -> dict[str, Any]:
    """Runs a search and returns its summary; the process is at `output`, the rest in the run folder.

    Args:
        recipe: What to search.
        output: Where the process goes.
        folder: Of this run; when it is resuming, the run starts from its checkpoint.
        around: Device, progress, signals.
        force: Whether `output` may be replaced; a resumed run may always replace its own.

    Raises:
        DistproError: anything wrong with the recipe's data, networks or pathways.
        NonFiniteLossError: the search diverged.
        Interrupted: a signal came.
    """
    session = Session(recipe, around, outer_share=recipe.search.outer_share)
    pair = make_ready(session, build_pair(session, recipe.pathways), folder)
    assert pair.teacher is not None and pair.pathways is not None
    teacher_top1 = session.evaluate(pair.teacher)["top1"]
    around.reporter.message(f"teacher {recipe.teacher.name}: top-1 {teacher_top1:.2f} %")
    training = search_training(recipe)
    parts = parts_of(session, pair, training.batch_size)
    sources: list[SearchedWeights] = []

    def make_weights(stepper: Stepper, total_steps: int) -> Weights:
        sources.append(searched_weights(session, stepper, total_steps, training.batch_size))
        return sources[0]

    trainer = session.trainer(
        pair,
        training,
        title="search",
        seed=recipe.seed,
        checkpoint=folder.checkpoint,
        metrics=MetricsFile(folder.metrics),
        make_weights=make_weights,
    )
    if folder.resuming and folder.checkpoint.exists():
        trainer.resume()
    progress = trainer.run()
    process = to_process(recipe, sources[0].alpha, pair.pathways.infos, parts, progress, teacher_top1)
    save_process(process, output, force=force or folder.resuming)
    save_weights(pair.student.model, folder.weights, {"network": recipe.student.name})
    summary = {
        "process": str(output),
        "pathways": len(process.pathways),
        "rows": len(process.progress),
        "steps": progress.step,
        "seconds": round(progress.train_seconds, 2),
        "device_seconds": round(progress.device_seconds, 2),
        "teacher": teacher_summary(teacher_top1),
        "student": top1_summary(progress),
        "metric": asdict(session.metric),
        "run_dir": str(folder.path),
    }
    folder.write_summary(summary)
    return summary


def build_pair(session: Session, groups: Sequence[PathwayGroup]) -> Pair:
    """Builds teacher, student and the pathways between them, on the device; a teacher to be trained is not yet."""
    student, teacher = build_networks(session, logits=joins_logits(groups))
    return join(session, student, teacher, groups)


def build_networks(session: Session, *, logits: bool, weights: bool = True) -> tuple[TappedNetwork, TappedNetwork]:
    """Builds student and teacher.

    Args:
        session: The run.
        logits: Whether default levels end with the logits.
        weights: Whether the teacher's weights are wanted, not its levels alone.
    """
    student = session.build(session.recipe.student, "student", logits=logits)
    return student, build_teacher(session, logits=logits, weights=weights)


def join(session: Session, student: TappedNetwork, teacher: TappedNetwork, groups: Sequence[PathwayGroup]) -> Pair:
    """Returns the pair of two networks with the pathways between them.

    Raises:
        RecipeError: everything wrong with the groups.
    """
    infos = resolve_pathways(groups, teacher.levels, student.levels)
    return Pair(student, teacher, build_pathways(session, infos))


def make_ready(session: Session, pair: Pair, folder: RunFolder, *, announce: bool = True) -> Pair:
    """Returns the pair with its teacher ready to teach; all that can be wrong with the pair is found before.

    Args:
        session: The run.
        pair: As it was built.
        folder: Of the run.
        announce: Whether to say where the teacher comes from.
    """
    assert pair.teacher is not None
    prepare_teacher(session, pair.teacher, folder, announce=announce)
    return pair


def build_pathways(session: Session, infos: Sequence[PathwayInfo]) -> Pathways:
    """Builds the transform blocks of pathways, with weights drawn from the run's seed."""
    torch.manual_seed(derived_seed(session.recipe.seed, "weights", "pathways"))
    return session.place(Pathways(infos))


def searched_weights(session: Session, stepper: Stepper, total_steps: int, batch_size: int) -> SearchedWeights:
    """Makes the source of weights that the recipe's `search` describes."""
    spec = session.recipe.search
    assert stepper.pair.pathways is not None
    alpha = AlphaOptimizer(len(stepper.pair.pathways.infos), spec, total_steps, session.device)
    num_updates = -(-total_steps // spec.interval)
    outer_batches = session.batches("outer", batch_size, num_updates)
    return SearchedWeights(stepper, BILEVEL_STEPS[spec.hypergradient](stepper), alpha, outer_batches)


def search_training(recipe: Recipe) -> Training:
    """Returns how the student is trained in a search: `distill`, with what `search` sets in its place."""
    spec = recipe.search
    own = {key: getattr(spec, key) for key in ("batch_size", "optimizer", "schedule") if getattr(spec, key) is not None}
    return recipe.distill.model_copy(update={"epochs": spec.epochs, **own})


def to_process(
    recipe: Recipe,
    alpha: AlphaOptimizer,
    infos: Sequence[PathwayInfo],
    parts: tuple[Part, ...],
    progress: Progress,
    teacher_top1: float,
) -> Process:
    """Returns the process that a finished search found."""
    progress_t, weight_tk, alpha_tk = alpha.table()
    if not np.isfinite(alpha_tk).all():
        raise DistproError("the search ended with an alpha that is not finite; try a smaller search.alpha_lr")
    return Process(
        progress=progress_t,
        weights=weight_tk,
        alpha=alpha_tk,
        pathways=tuple(infos),
        normalization=recipe.search.normalization,
        recipe=dump_recipe(recipe),
        versions=installed_versions(),
        seed=recipe.seed,
        measured={
            "steps": progress.step,
            "teacher_top1": teacher_top1,
            "student_top1_last": progress.top1[-1],
            "student_top1_best": max(progress.top1),
        },
        parts=parts,
    )


def parts_of(session: Session, pair: Pair, batch_size: int) -> tuple[Part, ...]:
    """Returns what a step of the pair costs, part by part; nothing, and a message, where that cannot be told."""
    assert pair.teacher is not None and pair.pathways is not None
    try:
        return step_parts(pair.teacher, pair.student, pair.pathways, session.recipe.data.image_size, batch_size)
    except Exception as error:
        # An estimate: a network that runs on this device alone is no reason not to train.
        session.around.reporter.message(f"the cost of a step cannot be estimated: {first_line(error)}")
        return ()


def teacher_summary(top1: float | None) -> dict[str, float | None]:
    """Returns the teacher's accuracy under the keys that its student's has; it does not move. None: no teacher."""
    return {"top1": None} if top1 is None else {"top1": top1, "top1_last": top1, "top1_best": top1}


def top1_summary(progress: Progress) -> dict[str, float]:
    """Returns the accuracy after the last epoch, and the best of all epochs, in percent."""
    return {"top1_last": progress.top1[-1], "top1_best": max(progress.top1)}
