"""Turns pydantic's errors into lines a user understands, one per mistake."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic_core import ErrorDetails

from distpro_cli.errors import nearest
from distpro_cli.recipe.describe import (
    JsonSchema,
    allowed,
    dotted,
    example,
    nullable,
    recipe_schema,
    resolve,
    sections,
    written,
)
from distpro_cli.recipe.strict_yaml import KeyPath

BOOLEAN_WORDS = {"yes": "true", "on": "true", "no": "false", "off": "false"}


@dataclass(frozen=True)
class Spot:
    """Where in the recipe and in the schema an error belongs.

    Attributes:
        path: The key, without the branches of unions that pydantic names too.
        schema: What is allowed there; of a key, with its description, default and examples.
        value: What was found.
    """

    path: KeyPath
    schema: JsonSchema
    value: Any


Message = Callable[[], str]


def explain(errors: Sequence[ErrorDetails], data: Any) -> Iterator[tuple[KeyPath, Message]]:
    """Yields a path and what makes a message for every mistake behind pydantic's `errors` of `data`, each once.

    Every branch of a union reports the same value, so the first message of a path is kept, and none of a
    value when something inside it is reported.
    """
    messages: dict[KeyPath, Message] = {}
    for error in errors:
        messages.setdefault(_path(error, data), partial(_message, error, data))
    around = {path[:end] for path in messages for end in range(len(path))}
    yield from ((path, message) for path, message in messages.items() if path not in around)


def _path(error: ErrorDetails, data: Any) -> KeyPath:
    location = error["loc"]
    if error["type"] in ("missing", "extra_forbidden"):
        return location
    path = locate(location, data).path
    key = error["ctx"]["key"] if error["type"] == "wrong" else ""
    return (*path, key) if key else path


def _message(error: ErrorDetails, data: Any) -> str:
    spot = locate(error["loc"], data)
    match error["type"]:
        case "missing":
            more = example(spot.schema) or f" ({spot.schema['description']})"
            return f"is missing; give {allowed(spot.schema)}{more}"
        case "extra_forbidden":
            return _unknown(error["loc"])
        case "wrong":
            message, key = error["ctx"]["message"], error["ctx"]["key"]
            return message if key else f"found {written(spot.value)}: {message}"
    return _not_allowed(spot)


def _unknown(path: KeyPath) -> str:
    parents, name = path[:-1], str(path[-1])
    keys = list(resolve(locate(parents, None).schema)["properties"])
    elsewhere = places_of(name)
    below = [place for place in elsewhere if place.startswith(f"{dotted(parents)}.")]
    hint = nearest(name, keys)
    if elsewhere:
        hint = f" (did you mean {' or '.join((below or elsewhere)[:3])}?)"
    where = f"of {dotted(parents)}" if parents else "of a recipe"
    return f"unknown key{hint}; keys {where}: {', '.join(keys)}"


def _not_allowed(spot: Spot) -> str:
    schema, found = resolve(spot.schema), f"found {written(spot.value)}"
    if "properties" in schema:
        remedy = "; leave the key out for its defaults" if spot.value is None else ""
        return f"{found}; allowed: a section with the keys {', '.join(schema['properties'])}{remedy}"
    nothing = ", or nothing" if nullable(spot.schema) else ""
    return f"{found}{_hint(schema, spot.value)}; allowed: {allowed(schema)}{nothing}{example(spot.schema)}"


def _hint(schema: JsonSchema, value: Any) -> str:
    """Returns the likely remedy in brackets, or nothing."""
    options = [option for member in schema.get("anyOf", [schema]) for option in member.get("enum", ())]
    if options:
        return nearest(value, options) if isinstance(value, str) else ""
    kind = next((member.get("type") for member in schema.get("anyOf", [schema])), None)
    if kind == "boolean" and isinstance(value, str) and value.lower() in BOOLEAN_WORDS:
        return f" (write {BOOLEAN_WORDS[value.lower()]})"
    if kind == "integer" and isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f" (write {int(value)})"
    if kind == "string" and isinstance(value, int | float):
        return " (put it in quotes to make it text)"
    return ""


def locate(location: Sequence[int | str], data: Any) -> Spot:
    """Follows pydantic's `location` through schema and data down to where the mistake is best shown.

    It ends early at a union, unless the value is a list and the union has a list among its members: then the
    item of the list is shown.
    """
    spot = Spot((), recipe_schema(), data)
    for part in location:
        path, schema, value = (*spot.path, part), resolve(spot.schema), spot.value
        if "anyOf" in schema:  # The part names the branch of the union.
            lists = [member for member in schema["anyOf"] if member.get("type") == "array"]
            if not lists or not isinstance(value, list):
                return spot
            spot = Spot(spot.path, lists[0], value)
        elif part in schema.get("properties", ()):
            spot = Spot(path, schema["properties"][part], value.get(part) if isinstance(value, dict) else None)
        elif "items" in schema and isinstance(part, int):
            item = value[part] if isinstance(value, list) and part < len(value) else None
            spot = Spot(path, schema["items"], item)
        else:
            return spot
    return spot


def places_of(name: str) -> list[str]:
    """Returns the dotted paths at which the schema has a key `name`."""
    found = [place for place, section in sections("0") if name in section["properties"]]
    return [f"{place}.{name}" if place else name for place in found]
