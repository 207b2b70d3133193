"""What the schema allows, in words: shared by error messages and by the generated reference.

The schema is read as JSON Schema: plain dicts of which every kind of value has the same few keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from distpro_cli.recipe.schema import Recipe
from distpro_cli.recipe.strict_yaml import KeyPath, write_yaml

JsonSchema = dict[str, Any]

NULL: JsonSchema = {"type": "null"}
BOUNDS = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}


@cache
def recipe_schema() -> JsonSchema:
    """Returns the JSON Schema of a recipe."""
    return Recipe.model_json_schema()


def resolve(schema: JsonSchema) -> JsonSchema:
    """Returns what a key's `schema` allows besides nothing, its reference followed; a union stays as it is."""
    members = [member for member in schema.get("anyOf", ()) if member != NULL]
    if len(members) == 1:
        schema = members[0]
    if "$ref" in schema:
        definition: JsonSchema = recipe_schema()["$defs"][schema["$ref"].rpartition("/")[2]]
        return definition
    return schema


def nullable(schema: JsonSchema) -> bool:
    """Returns whether a key of this `schema` may hold nothing."""
    return NULL in schema.get("anyOf", ())


def sections(item: str, schema: JsonSchema | None = None, place: str = "") -> Iterator[tuple[str, JsonSchema]]:
    """Yields the dotted place and the schema of every section, the whole recipe first.

    Args:
        item: What stands for the number of a list's item, such as `0` or `N`.
        schema: Where to begin; None: at the recipe.
        place: Of `schema`.
    """
    schema = resolve(schema or recipe_schema())
    if "items" in schema:
        yield from sections(item, schema["items"], f"{place}.{item}")
    if "properties" in schema:
        yield place, schema
        for key, inner in schema["properties"].items():
            yield from sections(item, inner, f"{place}.{key}" if place else key)


def allowed(schema: JsonSchema, *, plural: bool = False) -> str:
    """Returns what a value of `schema` may be, such as `a whole number > 0`."""
    schema = resolve(schema)
    if "anyOf" in schema:
        return " or ".join(allowed(member, plural=plural) for member in schema["anyOf"] if member != NULL)
    if "enum" in schema:
        return "one of " + ", ".join(map(str, schema["enum"]))
    match schema.get("type"):
        case "array":
            low, high = schema.get("minItems"), schema.get("maxItems")
            length = "" if low is None else f"{low} " if low == high else f"at least {low} "
            return f"{'lists' if plural else 'a list'} of {length}{allowed(schema['items'], plural=True)}"
        case "object":
            return "sections" if plural else "a section of keys and values"
        case "boolean":
            return "true or false"
        case "string" if "pattern" in schema:
            return "path/to/file.py:Name"
        case "string":
            return "text that is not empty" if "minLength" in schema else "text"
        case "integer" | "number" as kind:
            words = "whole number" if kind == "integer" else "number"
            # Early versions of pydantic write the bound 0 as 0.0.
            limits = {sign: str(schema[key]).removesuffix(".0") for key, sign in BOUNDS.items() if key in schema}
            bounds = " and ".join(f"{sign} {limit}" for sign, limit in limits.items())
            return f"{f'{words}s' if plural else f'a {words}'} {bounds}".rstrip()
    return "anything"


def example(schema: JsonSchema) -> str:
    """Returns `, such as ...` with the examples of a key, or nothing."""
    examples = " or ".join(flow(value) for value in schema.get("examples", ()))
    return f", such as {examples}" if examples else ""


def flow(value: Any) -> str:
    """Returns `value` as YAML on one line."""
    return write_yaml(value, flow=True).removesuffix("\n").removesuffix("\n...")


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
