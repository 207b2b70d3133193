"""`KEY=VALUE` on the command line: changes a recipe's values before they are checked."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from distpro_cli.errors import Problem
from distpro_cli.recipe.describe import dotted, shorten
from distpro_cli.recipe.problems import locate
from distpro_cli.recipe.strict_yaml import KeyPath, StrictYamlError, read_yaml


def apply_overrides(data: dict[str, Any], overrides: Sequence[str], places: dict[KeyPath, int | str]) -> list[Problem]:
    """Sets every `KEY=VALUE` in `data`, later ones winning; missing sections and lists are made.

    Args:
        data: The recipe's values; changed in place.
        overrides: Dotted keys (list items by index, such as `pathways.0.connections`) and YAML values.
        places: By path the line of a value; what an override sets or makes gets the override's text in its place.

    Returns:
        What is wrong with overrides that could not be set.
    """
    problems = []
    for override in overrides:
        key, equals, text = override.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            message = "an override is KEY=VALUE with a dotted key, such as search.epochs=5"
            problems.append(Problem("", message, shorten(override, 80)))
            continue
        try:
            document = read_yaml(text)
            messages = [mistake.message for mistake in document.mistakes]
            if not messages:
                _set(data, parts, document.value, places, shorten(override, 80))
        except StrictYamlError as error:
            messages = [f"value {error.message}"]
        except ValueError as error:
            messages = [str(error)]
        problems += [Problem(key.strip(), message, shorten(override, 80)) for message in messages]
    return problems


def _set(
    data: dict[str, Any], parts: Sequence[str], value: Any, places: dict[KeyPath, int | str], override: str
) -> None:
    """Sets `value` at `parts` below `data`.

    Raises:
        ValueError: A part leads into a value that has no parts, or to an item that a list does not have.
    """
    around: Any = data
    path: KeyPath = ()
    for part, following in zip(parts, [*parts[1:], None], strict=True):
        index: int | str = part
        if isinstance(around, list):
            if not part.isdecimal() or int(part) > len(around):
                raise ValueError(f"{dotted(path)} is a list; found '{part}', allowed: an index from 0 to {len(around)}")
            index = int(part)
            if index == len(around):
                around.append({})
        elif not isinstance(around, dict):
            raise ValueError(f"{dotted(path)} is a single value and has no key '{part}'")
        path = (*path, index)
        places.setdefault(path, override)
        if following is None:
            around[index] = value
        elif isinstance(around, dict) and around.get(part) is None:
            around[index] = _start(path, following)
        around = around[index]
    for below in [place for place in places if place[: len(path)] == path]:
        del places[below]
    places[path] = override


def _start(path: KeyPath, following: str) -> Any:
    """Returns what an override finds at an unset `path`: the default of a list, an empty section."""
    if not following.isdecimal():
        return {}
    default = locate(path, None).schema.get("default")
    return deepcopy(default) if isinstance(default, list) else []
