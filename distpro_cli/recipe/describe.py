"""What the schema allows, in words: shared by error messages and by the generated reference."""

from __future__ import annotations

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from distpro_cli.recipe.strict_yaml import KeyPath, write_yaml

SCALARS = {int: "whole number", float: "number", str: "text", bool: "true or false"}


def split(annotation: Any, metadata: list[Any] | None = None) -> tuple[Any, list[Any]]:
    """Returns the type of `annotation`, without `Annotated` and `| None`, and all its metadata."""
    collected = list(metadata or [])
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *extra = get_args(annotation)
            for item in extra:
                collected += item.metadata if isinstance(item, FieldInfo) else [item]
        elif nullable(annotation) and len(get_args(annotation)) == 2:
            annotation = next(a for a in get_args(annotation) if a is not type(None))
        else:
            return annotation, collected


def nullable(annotation: Any) -> bool:
    """Returns whether `annotation` allows None."""
    return is_union(annotation) and type(None) in get_args(annotation)


def is_union(annotation: Any) -> bool:
    """Returns whether `annotation` is a union."""
    return get_origin(annotation) in (Union, types.UnionType)


def is_section(annotation: Any) -> bool:
    """Returns whether `annotation` is one of the schema's models."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def bounds(metadata: list[Any]) -> str:
    """Returns the range that `metadata` gives a number, such as `> 0` or `from 0 to 1`; empty without one."""
    low = next((m for m in metadata if isinstance(m, annotated_types.Gt | annotated_types.Ge)), None)
    high = next((m for m in metadata if isinstance(m, annotated_types.Lt | annotated_types.Le)), None)
    parts = []
    if isinstance(low, annotated_types.Gt):
        parts.append(f"> {low.gt}")
    elif isinstance(low, annotated_types.Ge):
        parts.append(f"≥ {low.ge}")
    if isinstance(high, annotated_types.Lt):
        parts.append(f"< {high.lt}")
    elif isinstance(high, annotated_types.Le):
        parts.append(f"≤ {high.le}")
    return " and ".join(parts)


def length(metadata: list[Any]) -> str:
    """Returns the number of items that `metadata` asks for, such as `2` or `at least 1`, or nothing."""
    low = next((m.min_length for m in metadata if isinstance(m, annotated_types.MinLen)), None)
    high = next((m.max_length for m in metadata if isinstance(m, annotated_types.MaxLen)), None)
    if low is None:
        return ""
    return str(low) if low == high else f"at least {low}"


def allowed(annotation: Any, metadata: list[Any] | None = None, *, plural: bool = False) -> str:
    """Returns what a value of `annotation` may be, such as `a whole number > 0`."""
    kind, metadata = split(annotation, metadata)
    if is_union(kind):
        members = [member for member in get_args(kind) if member is not type(None)]
        return " or ".join(allowed(member, plural=plural) for member in members)
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(str(value) for value in get_args(kind))
    if get_origin(kind) is list:
        number = length(metadata)
        items = allowed(get_args(kind)[0], plural=True)
        return f"{'lists' if plural else 'a list'} of {number + ' ' if number else ''}{items}"
    if get_origin(kind) is dict or is_section(kind):
        return "sections" if plural else "a section of keys and values"
    words = SCALARS.get(kind, "anything")
    if kind is str and any(getattr(m, "pattern", None) for m in metadata):
        words = "path/to/file.py:Name"
    elif kind is str and length(metadata):
        words = "text that is not empty"
    elif kind in (int, float):
        words = f"{words}s" if plural else f"a {words}"
        words = f"{words} {bounds(metadata)}".rstrip()
    return words


def example(field: FieldInfo) -> str:
    """Returns `, such as ...` with the examples of `field`, or nothing."""
    if not field.examples:
        return ""
    return ", such as " + " or ".join(flow(value) for value in field.examples)


def flow(value: Any) -> str:
    """Returns `value` as YAML on one line."""
    if isinstance(value, list):
        return "[" + ", ".join(flow(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{flow(key)}: {flow(item)}" for key, item in value.items()) + "}"
    return write_yaml(value).removesuffix("\n").removesuffix("\n...")


def written(value: Any) -> str:
    """Returns a found value as one short piece of an error line."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return shorten(f"a section with {', '.join(value)}" if value else "an empty section", 80)
    if isinstance(value, list):
        return shorten("[" + ", ".join(written(item) for item in value[:100]) + "]", 80)
    if isinstance(value, str):
        return shorten("'" + value.replace("\n", "\\n") + "'", 80)
    if isinstance(value, int) and value.bit_length() > 100:
        return "a huge number"
    return str(value).lower() if isinstance(value, bool) else str(value)


def shorten(text: str, most: int) -> str:
    """Returns `text`, or its beginning and `...` where it is longer than `most` characters."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def dotted(path: KeyPath) -> str:
    """Returns a path as a recipe's user writes it, such as `pathways.0.connections`."""
    return ".".join(str(part) for part in path)
