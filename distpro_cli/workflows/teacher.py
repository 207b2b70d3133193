"""The teacher: loaded, or trained first and kept in a cache, so that a second search does not train it."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

from distpro_cli.errors import DistproError
from distpro_cli.networks.levels import TappedNetwork
from distpro_cli.networks.weights import load_weights, save_weights
from distpro_cli.runs.folder import RunFolder
from distpro_cli.runs.metrics import MetricsFile
from distpro_cli.training.loop import Progress
from distpro_cli.training.step import Pair
from distpro_cli.workflows.session import Session


def build_teacher(session: Session, *, logits: bool = False, weights: bool = True) -> TappedNetwork:
    """Returns the recipe's teacher on the device, with its weights unless they are to be trained.

    Args:
        session: The run.
        logits: Whether its default levels end with the logits.
        weights: False: its levels are all that is wanted, so nothing is downloaded or read.

    Raises:
        DistproError: weights are wanted, and the recipe names neither them nor how to train them.
    """
    spec = session.recipe.teacher
    if weights and spec.weights is None and spec.train is None:
        raise DistproError(
            f"teacher {spec.name} has no weights: set teacher.weights to pretrained or to a file, "
            "or teacher.train to how it is trained"
        )
    return session.build(spec, "teacher", seed=spec.seed, logits=logits, pretrained_ok=weights)


def prepare_teacher(session: Session, teacher: TappedNetwork, folder: RunFolder, *, announce: bool = True) -> None:
    """Makes a teacher ready to teach: with its weights, trained if they are not there yet, frozen, in eval mode.

    Args:
        session: The run that needs it.
        teacher: As `build_teacher` returns it.
        folder: The run's folder; holds the checkpoint of a teacher being trained.
        announce: Whether to say that it is already trained.
    """
    recipe, spec = session.recipe, session.recipe.teacher
    if spec.weights is None:
        # The teacher is trained on the whole train set, under its own seed: the same one for every run.
        school = Session(recipe.model_copy(update={"seed": spec.seed}), session.around)
        cached = cache_folder() / "teachers" / f"{teacher_key(school)}.safetensors"
        if cached.exists() and announce:
            session.around.reporter.message(f"teacher {spec.name}: already trained, taken from {cached}")
        if not cached.exists():
            train_teacher(school, teacher, cached, folder)
        load_weights(teacher.model, cached)
    teacher.requires_grad_(False).eval()


def train_teacher(session: Session, teacher: TappedNetwork, target: Path, folder: RunFolder) -> Progress:
    """Trains the teacher by `teacher.train`, writes its weights to `target`; returns what it measured.

    The checkpoint and the metrics lie in `folder`; a checkpoint found there is resumed.
    """
    recipe = session.recipe
    training = recipe.teacher.train or recipe.distill
    _make_folder(target.parent)
    checkpoint = folder.teacher_checkpoint
    trainer = session.trainer(
        Pair(teacher),
        training,
        title=f"teacher {recipe.teacher.name}",
        seed=recipe.seed,
        checkpoint=checkpoint,
        metrics=MetricsFile(folder.teacher_metrics),
    )
    if checkpoint.exists():
        trainer.resume()
    progress = trainer.run()
    save_weights(teacher.model, target, {"network": recipe.teacher.name, "top1_last": f"{progress.top1[-1]:.2f}"})
    checkpoint.unlink(missing_ok=True)
    return progress


def _make_folder(folder: Path) -> None:
    """Makes the folder of trained teachers; called before the training, whose result could not be saved."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise DistproError(
            f"{folder}: nothing can be written there ({error.strerror}); set DISTPRO_CACHE to another folder"
        ) from None


def teacher_key(session: Session) -> str:
    """Returns what determines a trained teacher, hashed: network, training, data, precision."""
    recipe = session.recipe
    teacher = recipe.teacher.model_dump(include={"name", "options", "train", "mean", "std", "seed"})
    if recipe.teacher.weights is not None:  # what `train --network teacher` starts from
        teacher["weights"] = recipe.teacher.weights
    source = Path(recipe.teacher.name.rpartition(":")[0])
    if source.suffix == ".py" and source.is_file():
        teacher["source"] = hashlib.sha256(source.read_bytes()).hexdigest()
    free = {"workers", "cache", "test_split", "test_images"}
    if recipe.data.test_on == "test":
        free.add("held_out")
    content = {
        "teacher": teacher,
        "data": recipe.data.model_dump(exclude=free),
        "images": [session.data.train_size, *session.data.class_names],
        "precision": recipe.precision,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def cache_folder() -> Path:
    """Returns $DISTPRO_CACHE, else the platform's cache folder for distpro."""
    if named := os.environ.get("DISTPRO_CACHE"):
        return Path(named).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", "~/AppData/Local")).expanduser() / "distpro" / "cache"
    if sys.platform == "darwin":
        return Path("~/Library/Caches/distpro").expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "distpro"
