"""Turns pydantic's errors into lines a user understands, one per mistake."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from distpro_cli.errors import nearest
from distpro_cli.recipe.describe import (
    allowed,
    dotted,
    example,
    is_section,
    is_union,
    nullable,
    split,
    written,
)
from distpro_cli.recipe.schema import Recipe
from distpro_cli.recipe.strict_yaml import KeyPath

BOOLEAN_WORDS = {"yes": "true", "on": "true", "no": "false", "off": "false"}


@dataclass(frozen=True)
class Spot:
    """Where in the recipe and in the schema an error belongs.

    Attributes:
        path: The key, without the branches of unions that pydantic names too.
        annotation: What is allowed there, with its metadata.
        field: The field the value belongs to, if the path ends at one.
        value: What was found.
        optional: Whether the key may hold nothing.
    """

    path: KeyPath
    annotation: Any
    metadata: list[Any]
    field: FieldInfo | None
    value: Any
    optional: bool = False


def explain(errors: Sequence[ErrorDetails], data: Any) -> Iterator[tuple[KeyPath, str]]:
    """Yields a path and a message for every mistake behind pydantic's `errors` of `data`, each once.

    Every branch of a union reports the same value, so the first message of a path is kept, and none of a
    value when something inside it is reported.
    """
    messages: dict[KeyPath, str] = {}
    for error in errors:
        path, message = _explain(error, data)
        messages.setdefault(path, message)
    around = {path[:end] for path in messages for end in range(len(path))}
    yield from ((path, message) for path, message in messages.items() if path not in around)


def _explain(error: ErrorDetails, data: Any) -> tuple[KeyPath, str]:
    location = error["loc"]
    kind = error["type"]
    if kind == "missing":
        return location, _missing(location)
    if kind == "extra_forbidden":
        return location, _unknown(location)
    spot = locate(location, data)
    if kind == "wrong":
        context = error.get("ctx", {})
        message, key = str(context["message"]), context["key"]
        if key:
            return (*spot.path, key), message
        return spot.path, f"found {written(spot.value)}: {message}"
    return spot.path, _not_allowed(spot)


def _missing(path: KeyPath) -> str:
    spot = locate(path, {})
    if spot.field is None:
        return "is missing"
    shown = allowed(spot.annotation, spot.metadata)
    return f"is missing; give {shown}{example(spot.field) or f' ({spot.field.description})'}"


def _unknown(path: KeyPath) -> str:
    *parents, name = path
    section = section_at(tuple(parents))
    keys = list(section.model_fields) if section else []
    elsewhere = places_of(str(name))
    below = [place for place in elsewhere if place.startswith(f"{dotted(tuple(parents))}.")]
    hint = nearest(str(name), keys)
    if elsewhere:
        hint = f" (did you mean {' or '.join((below or elsewhere)[:3])}?)"
    where = f"of {dotted(tuple(parents))}" if parents else "of a recipe"
    return f"unknown key{hint}; keys {where}: {', '.join(keys)}"


def _not_allowed(spot: Spot) -> str:
    kind, _ = split(spot.annotation, spot.metadata)
    if is_section(kind):
        keys = ", ".join(kind.model_fields)
        remedy = "; leave the key out for its defaults" if spot.value is None else ""
        return f"found {written(spot.value)}; allowed: a section with the keys {keys}{remedy}"
    words = allowed(spot.annotation, spot.metadata)
    if spot.optional:
        words += ", or nothing"
    examples = example(spot.field) if spot.field else ""
    return f"found {written(spot.value)}{_hint(kind, spot.value)}; allowed: {words}{examples}"


def _hint(kind: Any, value: Any) -> str:
    """Returns the likely remedy in brackets, or nothing."""
    if isinstance(value, str):
        options = [str(option) for option in choices(kind)]
        if options:
            return nearest(value, options)
        if kind is bool and value.lower() in BOOLEAN_WORDS:
            return f" (write {BOOLEAN_WORDS[value.lower()]})"
    if kind is int and isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f" (write {int(value)})"
    if kind is str and isinstance(value, int | float):
        return " (put it in quotes to make it text)"
    return ""


def choices(kind: Any) -> list[Any]:
    """Returns the options of a literal, also of one inside a union."""
    if is_union(kind):
        return [option for member in get_args(kind) for option in choices(member)]
    return list(get_args(kind)) if get_origin(kind) is Literal else []


def locate(location: Sequence[int | str], data: Any) -> Spot:
    """Follows pydantic's `location` through schema and data down to where the mistake is best shown.

    It ends early at a union, unless the value is a list and the union has a list among its members: then the
    item of the list is shown.
    """
    spot = Spot((), Recipe, [], None, data)
    for part in location:
        kind, metadata = split(spot.annotation, spot.metadata)
        if is_union(kind):
            lists = [member for member in get_args(kind) if get_origin(split(member)[0]) is list]
            if not lists or not isinstance(spot.value, list):
                return spot
            kind, metadata = split(lists[0])
            if not isinstance(part, int):
                # This part names the branch of the union.
                spot = Spot(spot.path, kind, metadata, spot.field, spot.value, spot.optional)
                continue
        path = (*spot.path, part)
        if is_section(kind) and part in kind.model_fields:
            field = kind.model_fields[part]
            value = spot.value.get(part) if isinstance(spot.value, dict) else None
            spot = Spot(path, field.annotation, field.metadata, field, value, nullable(field.annotation))
        elif get_origin(kind) is list and isinstance(part, int):
            item = spot.value[part] if isinstance(spot.value, list) and part < len(spot.value) else None
            spot = Spot(path, get_args(kind)[0], [], None, item)
        else:
            return spot
    return spot


def section_at(path: KeyPath) -> type[BaseModel] | None:
    """Returns the schema's model at `path`, if there is one."""
    kind, _ = split(locate(path, None).annotation)
    return kind if is_section(kind) else None


def places_of(name: str, model: type[BaseModel] = Recipe, prefix: str = "") -> list[str]:
    """Returns the dotted paths at which the schema has a key `name`."""
    found = []
    for key, field in model.model_fields.items():
        kind, _ = split(field.annotation)
        if key == name:
            found.append(f"{prefix}{key}")
        if get_origin(kind) is list and is_section(get_args(kind)[0]):
            found += places_of(name, get_args(kind)[0], f"{prefix}{key}.0.")
        elif is_section(kind):
            found += places_of(name, kind, f"{prefix}{key}.")
    return found
