"""`KEY=VALUE` on the command line: changes a recipe's values before they are checked."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from distpro_cli.errors import Problem
from distpro_cli.recipe.describe import shorten
from distpro_cli.recipe.problems import locate
from distpro_cli.recipe.strict_yaml import KeyPath, StrictYamlError, read_yaml


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> tuple[dict[KeyPath, str], list[Problem]]:
    """Sets every `KEY=VALUE` in `data`, later ones winning; missing sections and lists are made.

    Args:
        data: The recipe's values; changed in place.
        overrides: Dotted keys (list items by index, such as `pathways.0.connections`) and YAML values.

    Returns:
        Which override set what: path to its text. And what is wrong with overrides that could not be set.
    """
    places: dict[KeyPath, str] = {}
    problems = []
    for override in overrides:
        key, equals, text = override.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            message = "an override is KEY=VALUE with a dotted key, such as search.epochs=5"
            problems.append(Problem("", message, override))
            continue
        try:
            document = read_yaml(text)
        except StrictYamlError as error:
            problems.append(Problem(key.strip(), f"value {error.message}", override))
            continue
        if document.mistakes:
            problems += [Problem(key.strip(), mistake.message, override) for mistake in document.mistakes]
            continue
        try:
            path = _set(data, parts, document.value)
        except ValueError as error:
            problems.append(Problem(key.strip(), str(error), override))
            continue
        places = {old: place for old, place in places.items() if old[: len(path)] != path}
        places[path] = shorten(override, 80)
    return places, problems


def _set(data: dict[str, Any], parts: Sequence[str], value: Any) -> KeyPath:
    """Sets `value` at `parts` below `data` and returns the path.

    Raises:
        ValueError: A part leads into a value that has no parts, or to an item that a list does not have.
    """
    place: Any = data
    path: KeyPath = ()
    for position, part in enumerate(parts):
        last = position == len(parts) - 1
        index: int | str = part
        if isinstance(place, list):
            index = _index(place, part, path)
        elif not isinstance(place, dict):
            shown = ".".join(str(step) for step in path)
            raise ValueError(f"{shown} is a single value and has no key '{part}'")
        path = (*path, index)
        there = isinstance(index, int) or place.get(index) is not None
        if isinstance(place, list) and index == len(place):
            place.append({})
        if last:
            place[index] = value
        else:
            if not there:
                place[index] = _start(path, parts[position + 1])
            place = place[index]
    return path


def _index(items: list[Any], part: str, path: KeyPath) -> int:
    """Returns the index that `part` names: an item of `items`, or the one after the last."""
    shown = ".".join(str(step) for step in path)
    if not part.isdecimal() or int(part) > len(items):
        raise ValueError(f"{shown} is a list; found '{part}', allowed: an index from 0 to {len(items)}")
    return int(part)


def _start(path: KeyPath, following: str) -> Any:
    """Returns what an override finds at an unset `path`: the default of a list, an empty section."""
    if not following.isdecimal():
        return {}
    default = locate(path, None).schema.get("default")
    return deepcopy(default) if isinstance(default, list) else []
