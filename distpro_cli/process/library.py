"""Processes by name: files, those in ./processes, those that ship, those of the Hugging Face hub."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distpro_cli.errors import DistproError, nearest
from distpro_cli.process.file import load_process
from distpro_cli.process.process import Facts, Process
from distpro_cli.recipe.shipped import shipped_processes

if TYPE_CHECKING:
    from distpro_cli.recipe.training import Distillation

SUFFIX = ".safetensors"
HUB = "hf://"
FOLDER = Path("processes")
MEASURABLE = ("loss", "gradient")  # units of weights, as `search.scale` names them


def load_named(name: str, schemes: Sequence[str] = ()) -> Process:
    """Returns the process called `name`, see `find_process`.

    Raises:
        DistproError: there is none, or it cannot be read.
    """
    return load_process(find_process(name, schemes))


def find_process(name: str, schemes: Sequence[str] = ()) -> Path:
    """Returns the file of a process.

    Args:
        name: A file; else the path in ./processes or of one that ships, with or without `.safetensors`, or the last
            part of it where that is unique; or `hf://owner/repo/file.safetensors`, which is fetched.
        schemes: What else the user might have meant, for the message.

    Raises:
        DistproError: there is none, or several.
    """
    if name.startswith(HUB):
        from distpro_cli.process.hub import fetch

        return fetch(name)
    if os.path.lexists(name):
        return Path(name)
    known = named_processes()
    stem = name.removesuffix(SUFFIX)
    found = [stem] if stem in known else [key for key in known if key.rpartition("/")[2] == stem]
    if len(found) > 1:
        raise DistproError(f"{name}: there are several: {', '.join(found)}; give one of these names")
    if not found:
        what = f"process or scheme of that name{nearest(name, [*schemes, *known])}; schemes: {', '.join(schemes)}"
        hint = what if schemes else f"process of that name{nearest(name, known)}"
        raise DistproError(f"{name}: no such file, and no {hint}; distpro inspect lists the processes")
    return known[found[0]]


def is_named(name: str) -> bool:
    """Returns whether a process in ./processes, or one that ships, is called so."""
    stem = name.removesuffix(SUFFIX)
    return any(stem in (key, key.rpartition("/")[2]) for key in named_processes())


def named_processes() -> dict[str, Path]:
    """Returns the files in ./processes and those that ship, by their path there without suffix; one's own go first."""
    own = {path.relative_to(FOLDER).with_suffix("").as_posix(): path for path in sorted(FOLDER.rglob(f"*{SUFFIX}"))}
    return {**shipped_processes(), **own}


def about(process: Process, path: Path | None = None) -> dict[str, Any]:
    """Returns what a list says of a process; None for what is not known.

    Args:
        process: Files of the first version say it in the recipe inside.
        path: Its file, if that is one's own: its date stands for that of the search where the process does not say.
    """
    facts = facts_of(process)
    keys = ("teacher", "student", "data", "train_images", "epochs", "steps", "images", "kappa", "scale", "date")
    found: dict[str, Any] = {key: facts.get(key) for key in keys}
    for key in ("teacher", "student", "data", "date"):  # a stranger's file may hold numbers here
        found[key] = None if found[key] is None else str(found[key])
    found["steps"] = found["steps"] or process.measured.get("steps")
    if found["date"] is None and path is not None:
        found["date"] = time.strftime("%Y-%m-%d", time.localtime(path.stat().st_mtime))
    found["transforms"] = list(dict.fromkeys(info.transform for info in process.pathways))
    found["gained"] = dict(process.gained)
    found["history"] = list(process.history)
    return found


def measured_unit(training: Distillation, process: Process) -> str | None:
    """Returns which unit of a process's weights a run measures itself, by its name in `search.scale`; None: none, since
    the recipe says so, or the weights are factors of the distances, or the process does not say what they are.
    """
    if process.scale is None or training.scale != "measured":
        return None
    name = facts_of(process).get("scale")
    return str(name) if name in MEASURABLE else None


def facts_of(process: Process) -> Facts:
    """Returns what the weights of a process mean and where they come from; for files that do not say it, by the recipe
    inside. What was edited says it.
    """
    from distpro_cli.recipe.load import parse_recipe

    if process.history or "teacher" in process.searched:
        return process.searched
    try:
        recipe = parse_recipe(process.recipe)
    except DistproError:  # of another version, or nothing of ours
        return process.searched
    data, search = recipe.data, recipe.search
    found: dict[str, float | int | str | None] = {
        "teacher": recipe.teacher.name,
        "student": recipe.student.name,
        "data": data_name(data.name, data.root),
        "train_images": data.train_images,
        "epochs": search.epochs,
        "kappa": search.kappa,
        "scale": search.scale if process.scale is not None else "distance",
    }
    return {**{key: value for key, value in found.items() if value is not None}, **process.searched}


def precision_of(process: Process) -> str:
    """Returns the precision of the recipe inside; float32, the default, where that cannot be read."""
    from distpro_cli.recipe.load import parse_recipe

    try:
        return parse_recipe(process.recipe).precision
    except DistproError:  # of another version, or nothing of ours
        return "float32"


def data_name(name: str, root: str | None) -> str:
    """Returns what data are called: their name, of a folder its own, without the way there and a variable's `$`."""
    return name if name != "folder" or root is None else Path(root).name.strip("${}") or name
