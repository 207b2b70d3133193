"""Search: learn the weights over time of a pair's pathways, and write them as a process."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from distpro_cli.errors import DistproError, escaped
from distpro_cli.image_size import size_text
from distpro_cli.pathways.connections import groups_of
from distpro_cli.pathways.defaults import groups_for
from distpro_cli.process.cost import Part
from distpro_cli.process.file import save_process
from distpro_cli.process.library import data_name
from distpro_cli.process.process import Facts, Process
from distpro_cli.recipe.load import dump_recipe
from distpro_cli.recipe.schema import Recipe, Training
from distpro_cli.runs.context import RunContext
from distpro_cli.runs.folder import RunFolder
from distpro_cli.training.alpha import AlphaOptimizer, Record
from distpro_cli.training.hypergradients import make_hypergradient
from distpro_cli.training.pull_back import missing_pull_back
from distpro_cli.training.rivals import RIVALS
from distpro_cli.training.scale import SCALES
from distpro_cli.training.step import Distiller, Pair
from distpro_cli.training.weights import MovedWeights, SearchedWeights
from distpro_cli.versions import installed_versions
from distpro_cli.workflows.pairs import FindParts, build_pair, make_ready, parts_of
from distpro_cli.workflows.session import Session

MOST_SHARE = 0.9  # of all weight on one pathway, before a search warns


@dataclass(frozen=True)
class Searched:
    """What a search found: the process, the student that it trained on the way, and its summary."""

    process: Process
    student: nn.Module
    summary: dict[str, Any]


def search(
    recipe: Recipe,
    output: Path,
    folder: RunFolder,
    context: RunContext,
    *,
    force: bool,
    teacher_figure: float | None = None,
    title: str = "search",
    find_parts: FindParts = parts_of,
) -> Searched:
    """Runs a search; the process is then at `output`, the rest in the run folder.

    Args:
        recipe: What to search.
        output: Where the process goes.
        folder: Of this run; when it is resuming, the run starts from its checkpoint.
        context: Device, progress, signals.
        force: Whether `output` may be replaced; a resumed run may always replace its own.
        teacher_figure: The teacher's, if it is known; else it is measured.
        title: What progress shows.
        find_parts: Tells what a step costs.

    Raises:
        DistproError: anything wrong with the recipe's data, networks or pathways.
        NonFiniteLossError: the search diverged.
        Interrupted: a signal came.
    """
    session = Session(recipe, context, outer_share=recipe.search.held_out_share)
    metric, training = session.task.metric, recipe.search_training
    pair = build_pair(session)
    distiller = session.distiller(pair, training)
    weights = searched_weights(session, distiller, training)
    parts = find_parts(session, pair, training.batch_size)
    teacher_figure = make_ready(session, pair, distiller, folder, teacher_figure)
    progress = session.train(weights, training, title, folder.checkpoint, folder.metrics, resume=folder.resuming)
    figures = metric.last_and_best(progress.history)
    known = {} if teacher_figure is None else {f"teacher_{metric.name}": teacher_figure}
    measured = {"steps": progress.step, **known, **{f"student_{name}": value for name, value in figures.items()}}
    process = to_process(recipe, weights, pair, parts, measured, searched_facts(session, training, progress.step))
    if isinstance(weights, SearchedWeights) and (collapsed := collapse(process)):
        context.reporter.message(collapsed)
    save_process(process, output, force=force or folder.resuming)
    taught = {"by": "distpro search", "teacher": recipe.teacher.name}
    session.save(pair.student, recipe.student, folder.student, training, **taught)
    summary = {
        "process": str(output),
        "pathways": len(process.pathways),
        "rows": len(process.progress),
        "steps": progress.step,
        "seconds": round(progress.train_seconds, 2),
        "device_seconds": round(progress.device_seconds, 2),
        "teacher": metric.fixed(teacher_figure),
        "student": {**figures, "weights": str(folder.student)},
        "metric": asdict(metric),
        "run_dir": str(folder.path),
    }
    folder.write_summary(summary)
    return Searched(process, pair.student.released(), summary)


def searched_weights(session: Session, distiller: Distiller, training: Training) -> MovedWeights:
    """Makes the source of weights that the recipe's `search` describes.

    Raises:
        DistproError: the hypergradient is unknown, or does not take its options.
    """
    spec, total_steps = session.recipe.search, session.total_steps(training)
    levels = distiller.teacher.levels, distiller.student.levels
    groups = groups_of(groups_for(session.recipe, session.task, *levels), *levels)
    factor_k = torch.tensor([group.weight for group in groups])
    interval = spec.steps_per_update(total_steps)
    num_updates = -(-total_steps // interval)
    record = Record(len(groups), total_steps, session.device)
    outer_size = spec.images_per_outer_batch(training.batch_size)
    outer_batches = session.batches(
        "outer",
        outer_size,
        num_updates,
        inner=(training.batch_size, interval),
        repeats=training.augment_repeats,
    )
    if spec.method != "hypergradient":
        steps_per_epoch = session.data.steps_per_epoch(training.batch_size)
        return RIVALS[spec.method](distiller, spec, factor_k, record, outer_batches, steps_per_epoch)
    starts = [spec.alpha_start if group.alpha_start is None else group.alpha_start for group in groups]
    alpha = AlphaOptimizer(torch.tensor(starts), factor_k, spec, num_updates, session.device)
    hypergradient = make_hypergradient(spec.hypergradient, distiller, spec.hypergradient_options)
    if as_sgd := missing_pull_back(distiller.optimizer):
        session.context.reporter.message(as_sgd)
    unit = None if spec.scale == "distance" else SCALES[spec.scale](distiller, total_steps)
    return SearchedWeights(distiller, hypergradient, alpha, record, outer_batches, unit)


def collapse(process: Process) -> str | None:
    """Returns a warning where one pathway has nearly all of the weight, in units of its scale, for a part of it."""
    totals_t = process.scaled_weights.sum(axis=1)
    share_tk = process.scaled_weights / np.where(totals_t > 0, totals_t, 1)[:, None]
    if len(process.pathways) == 1 or share_tk.max() <= MOST_SHARE:
        return None
    t, k = np.unravel_index(share_tk.argmax(), share_tk.shape)
    first = process.progress[share_tk[:, k] > MOST_SHARE][0]
    return (
        f"pathway {process.pathways[k].id} takes {100 * share_tk[t, k]:.0f} % of all weight (more than "
        f"{100 * MOST_SHARE:.0f} % from {100 * first:.0f} % of the search on): the others hardly count; a larger "
        "search.alpha_decay, or a smaller search.alpha_lr, spreads the weight"
    )


def to_process(
    recipe: Recipe,
    weights: MovedWeights,
    pair: Pair,
    parts: tuple[Part, ...],
    measured: Facts,
    searched: Facts,
) -> Process:
    """Returns the process that a finished search found."""
    tables = weights.record.table()
    if not np.isfinite(tables["alpha"]).all():
        raise DistproError("the search ended with an alpha that is not finite; try a smaller search.alpha_lr")
    return Process(
        progress=tables["progress"],
        weights=tables["weights"],
        alpha=tables["alpha"],
        scale=None if weights.scale_in_force() is None else tables["scale"],
        pathways=pair.infos,
        teacher_levels=pair.teacher.levels,
        student_levels=pair.student.levels,
        normalization=recipe.search.normalization if recipe.search.method == "hypergradient" else "none",
        recipe=dump_recipe(recipe),
        versions=installed_versions(),
        seed=recipe.seed,
        measured=measured,
        searched=searched,
        parts=parts,
    )


def searched_facts(session: Session, training: Training, steps: int) -> Facts:
    """Returns what the weights of a search mean, and where they come from; nothing that differs between equal ones."""
    search, data = session.recipe.search, session.recipe.data
    facts: dict[str, float | int | str] = {
        "method": search.method,
        "kappa": search.kappa,
        "scale": search.scale if search.method == "hypergradient" else "distance",
        "teacher": session.recipe.teacher.name,
        "student": session.recipe.student.name,
        "optimizer": training.optimizer.name,
        "lr": training.optimizer.lr,
        "schedule": training.schedule.name,
        "epochs": training.epochs,
        "batch_size": training.batch_size,
        "steps": steps,
        "images": steps * training.batch_size,
        "data": data_name(data.name, data.root),
        "train_images": session.data.train_size,
        "outer_images": session.data.outer_size,
        "image_size": data.image_size if isinstance(data.image_size, int) else size_text(data.image_size),
    }
    return {key: escaped(value)[:80] if isinstance(value, str) else value for key, value in facts.items()}
