"""What a process file names that lies outside it: Python to be run, places to be read. Nothing of it is used unasked.

A process file travels; whoever runs it need not know who wrote it. What the user named, in a recipe or in an override,
counts as asked for. See docs/security.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from distpro_cli.errors import DistproError, ProcessError
from distpro_cli.files import expand_path
from distpro_cli.process.process import Process
from distpro_cli.recipe.schema import Recipe
from distpro_cli.recipe.strict_yaml import StrictYamlError, read_yaml
from distpro_cli.registry import is_user_file

_LISTED = 10
# A variable is the user's own word for a place, but for those that every session has.
_VARIABLE = re.compile(r"\$(?:\{(?!HOME|PWD|OLDPWD|TMPDIR)\w+\}|(?!HOME\b|PWD\b|OLDPWD\b|TMPDIR\b)\w+)")


def check_trusted(
    label: str, process: Process, recipe: Recipe, *, given: Recipe | None = None, overrides: Sequence[str] = ()
) -> None:
    """Refuses a process that would run Python, or have places read, that the user did not name.

    Args:
        label: What the user calls the process.
        process: Its pathways name transform blocks and distances.
        recipe: Of the run.
        given: The recipe that the user gave; None: `recipe` is that inside the process.
        overrides: `KEY=VALUE` texts that the user gave.

    Raises:
        ProcessError: it names such; the message lists what would be run, and what would be read.
    """
    known = {*_texts(given.model_dump() if given is not None else {}), *_texts_of(overrides)}
    runs = [(key, text) for key, text in _code(process, recipe, given) if text not in known]
    reads = [(key, text) for key, text in _places(recipe) if text not in known and given is None]
    if not runs and not reads:
        return
    lines = _listed(f"{label}: this file asks to run Python", runs) + _listed(f"{label}: this file asks to read", reads)
    remedy = "give --trust (from Python: trust=True) if you know where the file comes from"
    raise ProcessError(*lines, f"nothing of it was run or read; {remedy}, or name your own with a RECIPE or KEY=VALUE")


def places_of(recipe: Recipe) -> list[str]:
    """Returns key and text of every place that a recipe names beyond the current folder: what a published one tells."""
    return [f"{key}: {text}" for key, text in _places(recipe)]


def _listed(head: str, found: Iterable[tuple[str, str]]) -> list[str]:
    named = [f"{key}: {text}" for key, text in dict.fromkeys(found)]
    more = [f"and {len(named) - _LISTED} more"] if len(named) > _LISTED else []
    return [f"{head}: {', '.join([*named[:_LISTED], *more])}"] if named else []


def _code(process: Process, recipe: Recipe, given: Recipe | None) -> Iterator[tuple[str, str]]:
    """Yields key and text of every name that a Python file, or a hub of models, stands behind."""
    named = [(f"pathway {info.id}", text) for info in process.pathways for text in (info.transform, info.distance)]
    if given is None:
        named += [("task", recipe.task), ("search.hypergradient", recipe.search.hypergradient)]
        named += [("teacher.name", recipe.teacher.name), ("student.name", recipe.student.name)]
        for g, group in enumerate(recipe.pathways or ()):
            named += [(f"pathways.{g}.transform", group.transform), (f"pathways.{g}.distance", group.distance)]
    yield from ((key, text) for key, text in named if is_user_file(text) or ":" in text)


def _places(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yields key and text of every place beyond the current folder and the variables that the user has set."""
    data = recipe.data
    for key, text in (
        ("data.root", data.root),
        ("teacher.weights", recipe.teacher.weights),
        ("student.weights", recipe.student.weights),
    ):
        if text is not None and text != "pretrained" and not _VARIABLE.fullmatch(text) and not _is_here(text):
            yield key, text
    for key, text in (("data.train_split", data.train_split), ("data.test_split", data.test_split)):
        if text is not None and (Path(text).is_absolute() or ".." in Path(text).parts or "\\" in text):
            yield key, text


def _is_here(text: str) -> bool:
    """Tells whether a path lies below the current folder, links followed."""
    try:
        return "$" not in text and expand_path(text).resolve().is_relative_to(Path.cwd().resolve())
    except (DistproError, OSError, ValueError):
        return False


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _texts_of(overrides: Iterable[str]) -> Iterator[str]:
    for override in overrides:
        try:
            yield from _texts(read_yaml(override.partition("=")[2]).value)
        except StrictYamlError:
            continue
