"""The folder of a run: resolved recipe, metrics, checkpoint, student weights, summary."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distpro_cli.errors import DistproError
from distpro_cli.files import sweep, write_atomically
from distpro_cli.recipe.load import dump_recipe, load_recipe
from distpro_cli.recipe.schema import Recipe
from distpro_cli.runs.identity import differences
from distpro_cli.runs.lock import FolderLock
from distpro_cli.world import current_world


class _File:
    """A file of a run folder, by its name there."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, folder: RunFolder, _: type) -> Path:
        return folder.path / self.name


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run's files, and whether the run resumes from a checkpoint."""

    path: Path
    resuming: bool
    lock: FolderLock | None = None  # held until `close`

    recipe = _File("recipe.yaml")  # resolved
    inputs = _File("inputs.json")  # what determines the run besides its recipe
    metrics = _File("metrics.jsonl")  # one JSON object per line
    checkpoint = _File("checkpoint.pt")  # the last one
    teacher_metrics = _File("teacher-metrics.jsonl")  # of a teacher that the run trains first
    teacher_checkpoint = _File("teacher-checkpoint.pt")  # likewise
    student = _File("student.safetensors")  # final weights
    average = _File("student-ema.safetensors")  # their running average, where there is one
    teacher = _File("teacher.safetensors")  # final weights of a teacher that is trained alone
    teacher_average = _File("teacher-ema.safetensors")  # their running average, where there is one
    process = _File("process.safetensors")  # what drives a transfer, whole
    matching = _File("matching.json")  # which of its pathways drives which of the pair
    summary = _File("summary.json")  # what --json prints; its presence says that the run is done

    def finished_summary(self, output: Path | None = None) -> dict[str, Any] | None:
        """Returns the summary of a run that is done and is asked to resume, else None.

        Args:
            output: The file outside the folder that the run is to make; without it the run is not done.
        """
        return current_world().broadcast(self._finished_summary(output))

    def _finished_summary(self, output: Path | None) -> dict[str, Any] | None:
        if not self.resuming or not self.summary.exists():
            return None
        try:
            summary: dict[str, Any] = json.loads(self.summary.read_text(encoding="utf-8"))
        except ValueError:  # damaged; the checkpoint makes it again
            return None
        if not isinstance(summary, dict) or not summary.keys() >= {"run_dir", "seconds"}:
            return None
        done = output is None or (output.exists() and summary.get("process") == str(output))
        return summary if done else None

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Writes summary.json, as the last file of a run."""
        write_atomically(self.summary, json.dumps(summary, indent=2) + "\n")

    @property
    def made(self) -> list[Path]:
        """What a run makes, the recipe it begins with left out."""
        files = [self.metrics, self.checkpoint, self.student, self.average, self.teacher, self.process, self.summary]
        return [*files, self.matching, self.teacher_average, self.teacher_metrics, self.teacher_checkpoint]

    def forget_if_nothing_made(self) -> None:
        """Removes the folder of a run that ended before it made anything, so that the next try finds it free."""
        if current_world().is_main and not any(file.exists() for file in self.made):
            with contextlib.suppress(OSError):
                self.recipe.unlink(missing_ok=True)
                self.inputs.unlink(missing_ok=True)
                if self.lock is not None:
                    self.lock.release(remove=True)
                self.path.rmdir()

    def close(self) -> None:
        """Lets other processes run in the folder."""
        if self.lock is not None:
            self.lock.release()


def open_run_folder(
    verb: str,
    name: str,
    recipe: Recipe,
    run_dir: Path | None,
    *,
    resume: bool,
    force: bool,
    inputs: Mapping[str, str | float | None] | None = None,
) -> RunFolder:
    """Makes the folder of a run, or finds the one to resume; of many ranks, the main one does.

    Args:
        verb: `search`, `transfer` or `train`; with `name` it makes the default folder `runs/<verb>-<name>`,
            numbered when that is taken.
        name: The recipe's name.
        recipe: The resolved recipe; written to the folder, or compared with the one there when resuming.
        run_dir: The folder the user asked for.
        resume: Resume from the folder's checkpoint; without one the run starts over.
        force: Start over in a folder that holds a run.
        inputs: What determines the run besides its recipe, such as the process; compared when resuming, too.

    Raises:
        DistproError: the folder is in use, holds a run and neither flag is given, it was made by another recipe, or
            it cannot be written.
    """
    world = current_world()
    if not world.is_main:
        return RunFolder(world.broadcast(Path()), resuming=resume)
    path = run_dir if run_dir is not None else _default_folder(f"{verb}-{name.replace('/', '-')}", resume)
    folder = _open(path, recipe, dict(inputs or {}), resume=resume, force=force)
    world.broadcast(path)
    return folder


def _open(path: Path, recipe: Recipe, inputs: dict[str, Any], *, resume: bool, force: bool) -> RunFolder:
    lock = FolderLock(path)
    folder = RunFolder(path, resuming=resume, lock=lock)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        sweep(path)
        if resume and folder.recipe.exists():
            _check_same_run(folder, recipe, inputs)
            return folder
        _clear(folder, force=force or resume)
        write_atomically(folder.inputs, json.dumps(inputs))
        write_atomically(folder.recipe, dump_recipe(recipe))
    except OSError as error:
        lock.release()
        raise DistproError(f"{path}: the run folder cannot be made ({error.strerror})") from None
    except DistproError:
        lock.release()
        raise
    return folder


def _clear(folder: RunFolder, *, force: bool) -> None:
    present = [file for file in (folder.recipe, *folder.made) if file.exists()]
    if present and not force:
        raise DistproError(
            f"{folder.path} holds a run already ({present[0].name}): "
            f"--resume continues it, --force starts over, --run-dir names another folder"
        )
    for file in present:
        file.unlink()


def _default_folder(stem: str, resume: bool) -> Path:
    """Returns runs/<stem>, runs/<stem>-2, ...: the last one there when resuming, else the first one free."""
    root = Path("runs")
    taken = {}
    if root.is_dir():
        for path in root.iterdir():
            match = re.fullmatch(re.escape(stem) + r"(?:-(\d+))?", path.name)
            if match and path.is_dir():
                taken[int(match[1] or 1)] = path
    if not taken:
        return root / stem
    last = max(taken)
    return taken[last] if resume else root / f"{stem}-{last + 1}"


def _check_same_run(folder: RunFolder, recipe: Recipe, inputs: dict[str, Any]) -> None:
    before = load_recipe(folder.recipe)
    try:
        inputs_before = dict(json.loads(folder.inputs.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise DistproError(f"{folder.inputs} is missing or damaged; start over with --force") from None
    different = differences(before, recipe)
    keys = sorted({*inputs_before, *inputs})
    different += [
        (key, inputs_before.get(key), inputs.get(key)) for key in keys if inputs_before.get(key) != inputs.get(key)
    ]
    if different:
        key, old, new = different[0]
        more = f" (and {len(different) - 1} more keys)" if len(different) > 1 else ""
        raise DistproError(
            f"{folder.path} was started with {key}={old}, not {new}{more}; a run is resumed with its own recipe: "
            f"give {folder.recipe}, or start over with --force"
        )
