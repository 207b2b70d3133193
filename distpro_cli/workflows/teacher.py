"""The teacher: loaded, or trained first and kept in a cache, so that a second search does not train it."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

from distpro_cli.errors import DistproError, NonFiniteLossError
from distpro_cli.files import cache_folder, sweep
from distpro_cli.networks.levels import TappedNetwork
from distpro_cli.networks.preparation import is_trained_first, refusal
from distpro_cli.networks.weights import load_weights
from distpro_cli.runs.folder import RunFolder
from distpro_cli.training.loop import Progress
from distpro_cli.training.step import Solo
from distpro_cli.training.weights import NoWeights
from distpro_cli.workflows.session import Session
from distpro_cli.world import current_world


def build_teacher(session: Session, *, logits: bool = False, weights: bool = True) -> TappedNetwork:
    """Returns the recipe's teacher on the device, with its weights unless they are to be trained.

    Args:
        session: The run.
        logits: Whether its default levels end with the logits.
        weights: False: its levels are all that is wanted, so nothing is downloaded or read.

    Raises:
        DistproError: weights are wanted, and the recipe names neither them nor how to train them; or their head does
            not fit, and the recipe does not say how to train a new one.
    """
    spec = session.recipe.teacher
    if weights and spec.weights is None and spec.train is None:
        ways = ", or teacher.train to how it is trained" if spec.head else ""
        raise DistproError(f"teacher {spec.name} has no weights: set teacher.weights to pretrained or to a file{ways}")
    teacher = session.build(spec, "teacher", seed=spec.seed, logits=logits, pretrained_ok=weights)
    if spec.train is None and teacher.new_head is not None:
        raise DistproError(f"teacher {spec.name}: {refusal(teacher.new_head)}")
    return teacher


def prepare_teacher(session: Session, teacher: TappedNetwork, folder: RunFolder, *, announce: bool = True) -> None:
    """Makes a teacher ready to teach: with its weights, trained if they are not there yet, frozen, in eval mode.

    Args:
        session: The run that needs it.
        teacher: As `build_teacher` returns it.
        folder: The run's folder; holds the checkpoint of a teacher being trained.
        announce: Whether to say that it is already trained.
    """
    recipe, spec = session.recipe, session.recipe.teacher
    if is_trained_first(spec, teacher.new_head):
        # The teacher is trained on the whole train set, under its own seed: the same one for every run.
        school = Session(recipe.model_copy(update={"seed": spec.seed}), session.context)
        cached = teacher_cache(school)
        world = current_world()
        if not world.broadcast(cached.exists()):
            if teacher.new_head is not None:
                text = f"teacher {spec.name}: weights {spec.weights}, with {teacher.new_head}"
                session.context.reporter.message(text)
            try:
                train_teacher(school, teacher, cached, folder)
            except NonFiniteLossError as error:
                # Every method of a comparison needs this teacher: its fault is not theirs.
                raise DistproError(str(error)) from None
        elif announce:
            session.context.reporter.message(f"teacher {spec.name}: already trained, taken from {cached}")
        world.barrier()  # the main rank has written them
        load_weights(teacher.model, cached)
    teacher.requires_grad_(False).eval()


def measured_teacher(session: Session, teacher: TappedNetwork, folder: RunFolder, figure: float | None) -> float | None:
    """Makes a teacher ready to teach; returns its figure by the task's metric, measured unless `figure` is known.

    A teacher without a head has none.

    Raises:
        DistproError: its training diverged, or what it puts out is not finite.
    """
    prepare_teacher(session, teacher, folder, announce=figure is None)
    if not session.recipe.teacher.head:
        session.context.say_once(
            f"teacher {session.recipe.teacher.name}: without a head; its {session.task.metric.label} is not known"
        )
        return None
    if figure is None:
        metric = session.task.metric
        result = session.evaluate(teacher)
        figure = result[metric.name]
        if not all(map(math.isfinite, (figure, result.get("loss", 0.0)))):
            raise DistproError(
                f"teacher {session.recipe.teacher.name}: its output on the test images is not finite; train it with a "
                "smaller teacher.train.optimizer.lr, take other weights, or precision: float32"
            )
        text = f"teacher {session.recipe.teacher.name}: {metric.label} {metric.with_unit(figure)}"
        session.context.reporter.message(text)
    return figure


def train_teacher(
    session: Session, teacher: TappedNetwork, target: Path, folder: RunFolder
) -> tuple[Progress, TappedNetwork | None]:
    """Trains the teacher, or its head alone, by `teacher.train`, and writes the weights that teach to `target`.

    These are the running average where there is one (`ema_decay`), which timm's `load_checkpoint` takes as well.
    Without `teacher.train` it is trained by `distill`. The checkpoint and the metrics lie in `folder`; a checkpoint
    found there is resumed.

    Returns:
        What was measured, and the running average.
    """
    recipe, metric = session.recipe, session.task.metric
    training = recipe.teacher.train or recipe.distill
    _make_folder(target.parent)
    if recipe.teacher.freeze == "backbone":
        teacher.freeze_backbone()
    weights = NoWeights(session.stepper(Solo(teacher), training))
    progress = session.train(
        weights,
        training,
        f"teacher {recipe.teacher.name}",
        folder.teacher_checkpoint,
        folder.teacher_metrics,
        resume=True,
        network=f"teacher {recipe.teacher.name}",
    )
    average = weights.stepper.average
    figure = (progress.history if average is None else progress.average_history)[-1]
    if average is not None:
        last, averaged = metric.with_unit(progress.history[-1]), metric.with_unit(figure)
        session.context.reporter.message(
            f"teacher {recipe.teacher.name}: the running average of its weights teaches, {metric.label} {averaged} "
            f"(its last weights: {last})"
        )
    figures = {f"{metric.name}_last": round(figure, 2)}
    session.save(average or teacher, recipe.teacher, target, training, by="distpro train", **figures)
    folder.teacher_checkpoint.unlink(missing_ok=True)
    return progress, average


def teacher_cache(session: Session) -> Path:
    """Returns where the teacher of a session under the teacher's own seed lies once it is trained."""
    return cache_folder() / "teachers" / f"{session.identity.teacher()}.safetensors"


def _make_folder(folder: Path) -> None:
    """Makes the folder of trained teachers; called before the training, whose result could not be saved."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        sweep(folder, older_than_seconds=24 * 3600)
    except OSError as error:
        raise DistproError(
            f"{folder}: nothing can be written there ({error.strerror}); set DISTPRO_CACHE to another folder"
        ) from None
