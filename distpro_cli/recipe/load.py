"""From a recipe file, or the name of a shipped one, to a checked `Recipe`; and back to YAML."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from distpro_cli.errors import MOST_PROBLEMS, Problem, RecipeError, nearest
from distpro_cli.recipe.base import Model
from distpro_cli.recipe.describe import dotted, written
from distpro_cli.recipe.overrides import apply_overrides
from distpro_cli.recipe.problems import Message, explain
from distpro_cli.recipe.schema import Recipe
from distpro_cli.recipe.shipped import shipped_recipes
from distpro_cli.recipe.strict_yaml import MAX_BYTES, KeyPath, StrictYamlError, read_yaml, write_yaml


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Loads a recipe and applies `overrides`.

    Args:
        source: A file, or the name of a shipped recipe such as `quickstart`, with or without `.yaml`.
        overrides: `KEY=VALUE` texts.

    Raises:
        RecipeError: Anything wrong with source, recipe or overrides: all problems at once.
    """
    path = find_recipe(source)
    return parse_recipe(_read_text(path, str(source)), overrides, filename=str(path))


def find_recipe(source: str | Path) -> Path:
    """Returns the file that `source` names: an existing file, otherwise a shipped recipe.

    Raises:
        RecipeError: There is no such recipe; the message names the closest shipped one.
    """
    text = str(source)
    path = Path(text).expanduser() if text.startswith("~") else Path(text)
    if text and path.exists() and not path.is_dir():
        return path
    shipped = shipped_recipes()
    name = text.removesuffix(".yaml").removesuffix(".yml")
    if name in shipped:
        return shipped[name]
    if text and path.is_dir():
        files = sorted(file.name for file in path.glob("*.yaml"))
        remedy = f"name a file in it, such as {path / files[0]}" if files else "name a recipe file"
        raise RecipeError([Problem("", f"is a folder; {remedy}", text)])
    names = ", ".join(shipped) or "none"
    message = f"no such file and no shipped recipe of this name{nearest(name, shipped)}; shipped: {names}"
    raise RecipeError([Problem("", message, text or "''")])


def recipe_name(source: str | Path) -> str:
    """Returns the short name of a recipe: its file's name without folder and ending."""
    return Path(source).name.removesuffix(".yaml").removesuffix(".yml")


def parse_recipe(text: str, overrides: Sequence[str] = (), filename: str = "<recipe>") -> Recipe:
    """Turns YAML into a recipe.

    Args:
        text: The recipe.
        overrides: `KEY=VALUE` texts.
        filename: What error messages call the text.

    Raises:
        RecipeError: All problems at once, in the order of their lines, then the overrides'.
    """
    try:
        document = read_yaml(text)
    except StrictYamlError as error:
        raise RecipeError([Problem("", error.message, _place(filename, error.line))]) from None
    found = [(m.line, Problem(dotted(m.path), m.message, _place(filename, m.line))) for m in document.mistakes]
    data = document.value
    if not isinstance(data, dict):
        state = "is empty" if data is None else f"found {written(data)}"
        message = f"{state}; a recipe is a section of keys with at least data, teacher and student"
        raise RecipeError([problem for _, problem in found] or [Problem("", message, filename)])
    places: dict[KeyPath, int | str] = dict(document.lines)
    unset = apply_overrides(data, overrides, places)
    overridden: list[Problem] = []
    in_file: list[tuple[int, KeyPath, Message]] = []
    recipe, mistakes = _validate(data)
    for path, make_message in mistakes:
        around = [path[:end] for end in range(len(path), 0, -1)]
        place = next((places[one] for one in around if one in places), 0)
        if isinstance(place, str):
            overridden.append(Problem(dotted(path), make_message(), place))
        elif document.unread.isdisjoint(around):  # else it has been reported as unreadable
            in_file.append((place, path, make_message))
    in_file.sort(key=lambda item: item[0])
    listed = in_file[:MOST_PROBLEMS]  # a message takes time, and a file may hold thousands of mistakes
    found += [(place, Problem(dotted(path), make(), _place(filename, place))) for place, path, make in listed]
    problems = [problem for _, problem in sorted(found, key=lambda item: item[0])] + overridden + unset
    if problems or recipe is None:
        raise RecipeError(problems, further=len(in_file) - len(listed))
    return complete_search(recipe)


def dump_recipe(recipe: Recipe) -> str:
    """Returns `recipe` as YAML with every key written out; `parse_recipe` gives an equal recipe back."""
    return write_yaml(recipe.model_dump())


def complete_search(recipe: Recipe) -> Recipe:
    """Returns `recipe` with the keys that sections of `search` leave out taken from the same of `distill`.

    A section with another `name` than distill's (another optimiser or schedule) is left as it is.
    """
    completed: dict[str, Model] = {}
    for key in ("optimizer", "schedule"):
        section, pattern = getattr(recipe.search, key), getattr(recipe.distill, key)
        if section is not None and ("name" not in section.model_fields_set or section.name == pattern.name):
            completed[key] = pattern.model_copy(update=section.model_dump(exclude_unset=True))
    return recipe.model_copy(update={"search": recipe.search.model_copy(update=completed)})


def _validate(data: dict[str, Any]) -> tuple[Recipe | None, list[tuple[KeyPath, Message]]]:
    """Returns the recipe, or None, and what is wrong with it as paths and messages."""
    mistakes: list[tuple[KeyPath, Message]] = [(path, partial(str, text)) for path, text in _check_together(data)]
    try:
        return Recipe.model_validate(data), mistakes
    except ValidationError as error:
        return None, [*explain(error.errors(include_url=False), data), *mistakes]


def _check_together(data: dict[str, Any]) -> list[tuple[KeyPath, str]]:
    """Checks what a whole recipe must say, but a part of it built in Python need not."""
    mistakes: list[tuple[KeyPath, str]] = []
    images = data.get("data")
    if isinstance(images, dict) and images.get("name", "folder") == "folder" and images.get("root") is None:
        message = "is missing; the data set 'folder' needs the folder of its images, such as $IMAGENET"
        mistakes.append((("data", "root"), message))
    for name in ("data", "teacher", "student"):
        section = data.get(name)
        if isinstance(section, dict):
            mean, std = section.get("mean"), section.get("std")
            if (mean is None) != (std is None):
                there, missing = ("std", "mean") if mean is None else ("mean", "std")
                mistakes.append(((name, there), f"is given without {missing}; give both or none"))
    return mistakes


def _place(filename: str, line: int | None) -> str:
    return f"{filename}:{line}" if line else filename


def _read_text(path: Path, shown: str) -> str:
    """Returns the text of a recipe file, reading no more than the limit."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        message = f"cannot be read: {os.strerror(error.errno) if error.errno else error}"
        raise RecipeError([Problem("", message, shown)]) from None
    if len(content) > MAX_BYTES:
        message = f"larger than {MAX_BYTES // 1024} KiB, the limit for a recipe"
        raise RecipeError([Problem("", message, shown)])
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        message = f"not UTF-8 text (byte 0x{content[error.start]:02x}); a recipe is a YAML file in UTF-8"
        raise RecipeError([Problem("", message, _place(shown, line))]) from None
