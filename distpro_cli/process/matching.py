"""Fits a process to a pair: which of its columns drives which pathway.

A new way of matching is a subclass of `Matching` under `@register_matching("name")`, here or in a file of the user's:
`--match path/to/file.py:Name`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

from typing_extensions import override

from distpro_cli.errors import ProcessError
from distpro_cli.process.cost import Part
from distpro_cli.process.pathway import PathwayInfo
from distpro_cli.process.process import Process
from distpro_cli.registry import Registry


class Matching(ABC):
    """A way of finding a pair's pathways in a process."""

    @abstractmethod
    def columns(self, process: Process, pathways: Sequence[PathwayInfo]) -> list[int]:
        """Returns for each of the pair's pathways its column in the process, from 0.

        A column may serve several pathways, or none.

        Args:
            process: What is to drive the pair.
            pathways: The pair's pathways, resolved.

        Raises:
            ProcessError: they do not match; the message names every difference.
        """


MATCHINGS: Registry[type[Matching]] = Registry("--match mode")
register_matching = MATCHINGS.register


def fit(process: Process, pathways: Sequence[PathwayInfo], mode: str = "strict") -> Process:
    """Returns the process with the pair's pathways, and its columns in their order.

    Its schedules are those of `process`, column by column: alpha that is left out still counts for thresholds and
    shares (a file does not hold it: save `process` itself). Parts of a step that only columns left out need are left
    out, too.

    Args:
        process: What is to drive the pair.
        pathways: The pair's pathways, resolved.
        mode: Name of a matching, or `Name` from `file.py:Name`.

    Raises:
        ProcessError: they do not match.
        DistproError: the mode is unknown.
    """
    matching = MATCHINGS.find_subclass(mode, Matching)  # type: ignore[type-abstract]
    columns = matching().columns(process, pathways)
    own = range(len(process.pathways))
    if len(columns) != len(pathways) or not all(column in own for column in columns):
        expected = f"one per pathway of the pair ({len(pathways)}), each from 0 to {own[-1]}"
        raise ProcessError(f"--match {mode} returned the columns {columns}; expected {expected}")
    before = process.columns or own
    return replace(
        process,
        weights=process.weights[:, columns],
        alpha=process.alpha[:, columns],
        pathways=tuple(pathways),
        parts=_moved_parts(process, columns),
        whole_alpha=process.alpha if process.whole_alpha is None else process.whole_alpha,
        columns=tuple(before[column] for column in columns),
        scale=None if process.scale is None else process.scale[:, columns],
    )


def _moved_parts(process: Process, columns: Sequence[int]) -> tuple[Part, ...]:
    moved: list[Part] = []
    for part in process.parts:
        places = tuple(place for place, column in enumerate(columns) if column in (part.pathways or ()))
        if places or not part.pathways:
            moved.append(replace(part, pathways=places) if places else part)
    return tuple(moved)


@register_matching("strict")
class Strict(Matching):
    """Process and pair have the same set of pathways.

    Two are the same when the level numbers, the numbers of levels, the kinds of both levels, transform and distance
    agree. Names, channels and sizes may differ.
    """

    @override
    def columns(self, process: Process, pathways: Sequence[PathwayInfo]) -> list[int]:
        free: dict[tuple[object, ...], list[int]] = {}
        for column, pathway in enumerate(process.pathways):
            free.setdefault(_key(pathway), []).append(column)
        columns: list[int] = []
        unmatched: list[PathwayInfo] = []
        for pathway in pathways:
            candidates = free.get(_key(pathway), [])
            if not candidates:
                unmatched.append(pathway)
                continue
            # Groups that differ by options alone share a key; the column with the same options goes first.
            best = max(candidates, key=lambda column: _same_options(process.pathways[column], pathway))
            candidates.remove(best)
            columns.append(best)
        left = [process.pathways[column] for rest in free.values() for column in rest]
        if unmatched or left:
            raise ProcessError(*_differences(left, unmatched))
        return columns


def _kind(pathway: PathwayInfo) -> dict[str, object]:
    """Returns by name what two pathways of one connection must have in common."""
    return {
        "teacher levels": pathway.teacher.count,
        "student levels": pathway.student.count,
        "kind of the teacher's level": pathway.teacher.kind,
        "kind of the student's level": pathway.student.kind,
        "transform": pathway.transform,
        "distance": pathway.distance,
    }


def _key(pathway: PathwayInfo) -> tuple[object, ...]:
    return (pathway.connection, *_kind(pathway).values())


def _same_options(one: PathwayInfo, other: PathwayInfo) -> bool:
    return (one.transform_options, one.distance_options) == (other.transform_options, other.distance_options)


def _differences(of_process: list[PathwayInfo], of_pair: list[PathwayInfo]) -> list[str]:
    """Returns one line per difference, each with the pathways it concerns."""
    concerned: dict[str, list[str]] = {}
    rest = list(of_pair)
    for own in of_process:
        partner = next((other for other in rest if other.connection == own.connection), None)
        if partner is None:
            concerned.setdefault("only in the process", []).append(own.id)
            continue
        rest.remove(partner)
        in_pair = _kind(partner)
        for name, value in _kind(own).items():
            if value != in_pair[name]:
                concerned.setdefault(f"{name} {value} in the process, {in_pair[name]} in the pair", []).append(own.id)
    for other in rest:
        concerned.setdefault("only in the pair", []).append(other.id)
    lines = [f"  {difference}: {', '.join(ids)}" for difference, ids in concerned.items()]
    return ["the process does not fit this pair:", *lines]
