"""The metadata of a process file, to strings and back, every value checked."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection
from dataclasses import asdict, fields, replace
from typing import Any, TypeVar

from distpro_cli.errors import ProcessError
from distpro_cli.process.container import from_json, to_json
from distpro_cli.process.cost import Part
from distpro_cli.process.machine import BUILT_IN, Work
from distpro_cli.process.pathway import LevelInfo, PathwayInfo
from distpro_cli.process.process import SIDES, Process

Item = TypeVar("Item")

MAX_PATHWAYS = 10_000
MAX_PARTS = 50_000
MAX_LEVELS = 10_000
KINDS = ("map", "tokens", "vector", "logits")
MAX_NAME = 500
_MAX_NUMBER = 2**53
_MOST_WORK = 1e30
_LEVEL_KEYS = {"number", "count", "name", "kind", "reduction", "shape"}  # where it is tapped stands in `levels`
_GRID_KEYS = {"prefix", "grid"}  # of tokens, where they are not what `LevelInfo` makes of the shape
_PART_KEYS = {"name", "cost", "pathways"}
_WORK_KEYS = {field.name for field in fields(Work)}
MAX_HISTORY = 1000
FEATURES = ("output", "before-activation", "after-activation")
NEW_IN_2 = ("levels", "searched", "gained", "history", "work")
_OPTIONAL = {"parts", *NEW_IN_2}
_PATHWAY_KEYS = {"id", "teacher", "student", "transform", "distance", "transform_options", "distance_options"}


def encode_fields(process: Process) -> dict[str, str]:
    """Returns the metadata of a process as strings, format and version left out.

    Raises:
        ProcessError: a value is not one that JSON knows, or that `decode_fields` would refuse; or a measured machine
            weighed the costs of its parts.
    """
    if process.machine != BUILT_IN:
        raise ProcessError(
            f"its costs are those on {process.machine.name}; a file holds those of the built-in constants: write the "
            "process as it was read"
        )
    return {
        "pathways": to_json([_plain(pathway) for pathway in process.pathways]),
        "normalization": process.normalization,
        "recipe": process.recipe,
        "versions": to_json(dict(process.versions)),
        "seed": str(process.seed),
        "measured": to_json(dict(process.measured)),
        **({"parts": to_json([_plain_part(part) for part in process.parts])} if process.parts else {}),
        **_encode_new(process),
    }


def needs_version_2(process: Process) -> bool:
    """Returns whether the process says what files of version 1 do not hold."""
    return process.scale is not None or bool(_encode_new(process))


def _encode_new(process: Process) -> dict[str, str]:
    levels = {side: [_plain_known_level(level) for level in getattr(process, f"{side}_levels")] for side in SIDES}
    values = {
        "levels": levels if any(levels.values()) else None,
        "searched": dict(process.searched),
        "gained": dict(process.gained),
        "history": list(process.history),
        "work": [_plain_work(part.work) for part in process.parts if part.work is not None],
    }
    return {name: to_json(values[name]) for name in NEW_IN_2 if values[name]}


def decode_fields(metadata: dict[str, str]) -> dict[str, Any]:
    """Returns the keyword arguments of `Process` that metadata holds.

    Raises:
        ProcessError: one is missing or malformed.
    """
    missing = [name for name in _DECODERS if name not in (*metadata, *_OPTIONAL)]
    if missing:
        raise ProcessError(f"the metadata lacks {', '.join(missing)}")
    values = {name: decode(metadata[name]) for name, decode in _DECODERS.items() if name in metadata}
    if (work := values.pop("work", None)) is not None:
        values["parts"] = _with_work(values.get("parts", ()), work)
    if levels := values.pop("levels", None):
        values |= {f"{side}_levels": levels[side] for side in SIDES}
        values["pathways"] = tuple(_with_features(info, levels) for info in values["pathways"])
    return values


def _with_work(parts: tuple[Part, ...], works: tuple[Work, ...]) -> tuple[Part, ...]:
    if not parts:
        raise ProcessError("the metadata holds work, and no parts of a step whose work it could be")
    if len(works) != len(parts):
        raise ProcessError(f"the metadata holds the work of {len(works)} parts, and there are {len(parts)}")
    return tuple(replace(part, work=work) for part, work in zip(parts, works, strict=True))


def _with_features(info: PathwayInfo, levels: dict[str, tuple[LevelInfo, ...]]) -> PathwayInfo:
    """Returns a pathway whose levels say where they are tapped."""
    of_pathway = (info.teacher, info.student)
    known = [
        next((one for one in levels[side] if one == own), None) for side, own in zip(SIDES, of_pathway, strict=True)
    ]
    for side, own, found in zip(SIDES, of_pathway, known, strict=True):
        if found is None and levels[side]:
            raise ProcessError(f"pathway {info.id}: its {side} level {own.number} is not among the levels")
    teacher, student = (found or own for found, own in zip(known, of_pathway, strict=True))
    return replace(info, teacher=teacher, student=student)


def _plain(pathway: PathwayInfo) -> dict[str, Any]:
    plain = asdict(pathway)
    return plain | {"teacher": _plain_level(pathway.teacher), "student": _plain_level(pathway.student)}


def _plain_level(level: LevelInfo) -> dict[str, Any]:
    plain = asdict(level)
    follows = level.kind != "tokens" or level == replace(level, prefix=0, grid=None, guess=True)
    return {key: plain[key] for key in (_LEVEL_KEYS if follows else _LEVEL_KEYS | _GRID_KEYS)}


def _plain_known_level(level: LevelInfo) -> dict[str, Any]:
    return _plain_level(level) | ({"feature": level.feature} if level.feature else {})


def _items(text: str, noun: str, most: int, decode: Callable[[Any, str], Item]) -> tuple[Item, ...]:
    return _item_list(from_json(text, f"the metadata's {noun}s"), noun, most, decode)


def _item_list(values: Any, noun: str, most: int, decode: Callable[[Any, str], Item]) -> tuple[Item, ...]:
    if not isinstance(values, list):
        raise ProcessError(f"the metadata's {noun}s are not a list")
    if len(values) > most:
        raise ProcessError(f"{len(values)} {noun}s; at most {most} are allowed")
    return tuple(decode(value, f"{noun} {number}") for number, value in enumerate(values, start=1))


def _pathway(value: Any, where: str) -> PathwayInfo:
    _check_keys(value, _PATHWAY_KEYS, where)
    return PathwayInfo(
        id=_name(value["id"], f"{where}: id"),
        teacher=_level(value["teacher"], f"{where}: teacher"),
        student=_level(value["student"], f"{where}: student"),
        transform=_name(value["transform"], f"{where}: transform"),
        distance=_name(value["distance"], f"{where}: distance"),
        transform_options=_object(value["transform_options"], f"{where}: transform_options"),
        distance_options=_object(value["distance_options"], f"{where}: distance_options"),
    )


def _level(value: Any, where: str) -> LevelInfo:
    _check_keys(value, _LEVEL_KEYS, where, _GRID_KEYS)
    number, count = (_positive(value[key], f"{where}: {key}") for key in ("number", "count"))
    if number > count:
        raise ProcessError(f"{where}: number is {number}, beyond the count of {count}")
    if value["kind"] not in KINDS:
        raise ProcessError(f"{where}: kind is {_shown(value['kind'])}; allowed: {', '.join(KINDS)}")
    shape = value["shape"]
    if not isinstance(shape, list) or not 1 <= len(shape) <= 3:
        raise ProcessError(f"{where}: shape is {_shown(shape)}; expected one to three sizes")
    reduction = value["reduction"]
    return LevelInfo(
        number=number,
        count=count,
        name=_name(value["name"], f"{where}: name"),
        kind=value["kind"],
        reduction=None if reduction is None else _positive(reduction, f"{where}: reduction"),
        shape=tuple(_positive(size, f"{where}: shape") for size in shape),
        **_grid(value, where),
    )


def _grid(value: dict[str, Any], where: str) -> dict[str, Any]:
    """Returns prefix and grid where a level tells them."""
    if not _GRID_KEYS & value.keys():
        return {}
    _check_keys(value, _LEVEL_KEYS | _GRID_KEYS, where)
    prefix, grid, shape = value["prefix"], value["grid"], value["shape"]
    if (prefix, grid, value["kind"]) == (0, None, "tokens"):
        return {"guess": False}
    sound = type(prefix) is int and isinstance(grid, list) and len(grid) == 2 and value["kind"] == "tokens"
    if not sound or prefix < 0 or prefix + math.prod(_positive(n, f"{where}: grid") for n in grid) != shape[0]:
        raise ProcessError(
            f"{where}: prefix {_shown(prefix)} and grid {_shown(grid)} are not those of {_shown(shape)}; expected "
            "tokens of the number prefix + height · width"
        )
    return {"prefix": prefix, "grid": tuple(grid)}


def _levels(text: str) -> dict[str, tuple[LevelInfo, ...]]:
    values = from_json(text, "the metadata's levels")
    _check_keys(values, set(SIDES), "levels")
    found = {side: _item_list(values[side], f"{side} level", MAX_LEVELS, _known_level) for side in SIDES}
    for side, levels in found.items():
        if [level.number for level in levels] != list(range(1, len(levels) + 1)):
            raise ProcessError(f"the {side} levels are not numbered from 1 on")
        if any(level.count != len(levels) for level in levels):
            raise ProcessError(f"the {side} levels do not have the count of {len(levels)}")
    return found


def _known_level(value: Any, where: str) -> LevelInfo:
    feature = _object(value, where).get("feature")
    if feature is not None and feature not in FEATURES:
        raise ProcessError(f"{where}: feature is {_shown(feature)}; allowed: {', '.join(FEATURES)}")
    level = _level({key: value[key] for key in value if key != "feature"}, where)
    return replace(level, feature=feature)


def _check_keys(value: Any, keys: set[str], where: str, optional: Collection[str] = ()) -> None:
    _object(value, where)
    if missing := keys - value.keys():
        raise ProcessError(f"{where} lacks {', '.join(sorted(missing))}")
    if unknown := value.keys() - keys - set(optional):
        raise ProcessError(f"{where} holds unknown keys: {_shown(', '.join(sorted(unknown)))}")


def _positive(value: Any, where: str) -> int:
    if type(value) is not int or not 1 <= value <= _MAX_NUMBER:
        raise ProcessError(f"{where} is {_shown(value)}; expected a whole number from 1")
    return value


def _name(value: Any, where: str) -> str:
    # Names go to the terminal: no control characters, nothing endless.
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_NAME or not value.isprintable():
        raise ProcessError(f"{where} is {_shown(value)}; expected a printable name")
    return value


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ProcessError(f"{where} is {_shown(value)}; expected an object")
    return value


def _recipe(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ProcessError("the metadata's recipe is not valid text") from None
    return text


def _versions(text: str) -> dict[str, str]:
    values = _object(from_json(text, "the metadata's versions"), "the metadata's versions")
    return {_name(key, "a name in versions"): _name(value, f"version of {key}") for key, value in values.items()}


def _facts(text: str, noun: str) -> dict[str, float | int | str]:
    values = _object(from_json(text, f"the metadata's {noun}"), f"the metadata's {noun}")
    for key, value in values.items():
        _name(key, f"a name in {noun}")
        known = value.isprintable() if isinstance(value, str) else type(value) in (int, float) and abs(value) <= 1e300
        if not known:
            raise ProcessError(f"{noun} {key} is {_shown(value)}; expected a finite number or text")
    return values


def _part(value: Any, where: str) -> Part:
    _check_keys(value, _PART_KEYS, where)
    cost, columns = value["cost"], value["pathways"]
    if type(cost) not in (int, float) or not 0 <= cost <= 1e300:
        raise ProcessError(f"{where}: cost is {_shown(cost)}; expected a number, 0 or more")
    if columns is not None and not (isinstance(columns, list) and all(type(k) is int and k >= 0 for k in columns)):
        raise ProcessError(f"{where}: pathways are {_shown(columns)}; expected a list of columns from 0, or null")
    return Part(_name(value["name"], f"{where}: name"), float(cost), None if columns is None else tuple(columns))


def _plain_part(part: Part) -> dict[str, Any]:
    return {"name": part.name, "cost": part.cost, "pathways": part.pathways}


def _plain_work(work: Work) -> dict[str, float]:
    return {key: float(value) for key, value in asdict(work).items()}


def _work(value: Any, where: str) -> Work:
    _check_keys(value, _WORK_KEYS, where)
    for key, number in value.items():
        if type(number) not in (int, float) or not 0 <= number <= _MOST_WORK:
            raise ProcessError(f"{where}: {key} is {_shown(number)}; expected a number from 0 to {_MOST_WORK:g}")
    return Work(**{key: float(number) for key, number in value.items()})


def _seed(text: str) -> int:
    if re.fullmatch(r"-?[0-9]{1,20}", text) is None:
        raise ProcessError(f"the metadata's seed is {_shown(text)}; expected a whole number")
    return int(text)


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_DECODERS: dict[str, Callable[[str], Any]] = {
    "pathways": lambda text: _items(text, "pathway", MAX_PATHWAYS, _pathway),
    "normalization": lambda text: _name(text, "the metadata's normalization"),
    "recipe": _recipe,
    "versions": _versions,
    "seed": _seed,
    "measured": lambda text: _facts(text, "measured"),
    "parts": lambda text: _items(text, "part", MAX_PARTS, _part),
    "levels": _levels,
    "searched": lambda text: _facts(text, "searched"),
    "gained": lambda text: _facts(text, "gained"),
    "history": lambda text: _items(text, "history line", MAX_HISTORY, _name),
    "work": lambda text: _items(text, "work item", MAX_PARTS, _work),
}
