"""Whether a process fits a pair: the same kinds of pathways between corresponding levels."""

from __future__ import annotations

from collections.abc import Sequence

from distpro_cli.errors import DistproError, ProcessError, nearest
from distpro_cli.process.pathway import PathwayInfo
from distpro_cli.process.process import Process

MODES = ("strict",)


def match(process: Process, pathways: Sequence[PathwayInfo], mode: str = "strict") -> list[int]:
    """Returns for each of a pair's pathways its column in the process.

    Strict: both have the same set of pathways, where two are the same when the level numbers, the numbers of
    levels, the kinds of both levels, transform and distance agree. Names, channels and sizes may differ.

    Args:
        process: What is to drive the pair.
        pathways: The pair's pathways, resolved.
        mode: `strict`.

    Raises:
        ProcessError: they do not match; the message names every difference.
        DistproError: the mode is unknown.
    """
    if mode not in MODES:
        raise DistproError(f"--match is '{mode}'; allowed: {', '.join(MODES)}{nearest(mode, MODES)}")
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
        raise ProcessError(_differences(left, unmatched))
    return columns


def _key(pathway: PathwayInfo) -> tuple[object, ...]:
    teacher, student = pathway.teacher, pathway.student
    levels = (teacher.number, teacher.count, teacher.kind, student.number, student.count, student.kind)
    return (*levels, pathway.transform, pathway.distance)


def _same_options(one: PathwayInfo, other: PathwayInfo) -> bool:
    return (one.transform_options, one.distance_options) == (other.transform_options, other.distance_options)


def _differences(of_process: list[PathwayInfo], of_pair: list[PathwayInfo]) -> str:
    """Returns one line per difference, each with the pathways it concerns."""
    concerned: dict[str, list[str]] = {}
    rest = list(of_pair)
    for own in of_process:
        partner = next((other for other in rest if other.connection == own.connection), None)
        if partner is None:
            concerned.setdefault("only in the process", []).append(own.id)
            continue
        rest.remove(partner)
        for difference in _compare(own, partner):
            concerned.setdefault(difference, []).append(own.id)
    for other in rest:
        concerned.setdefault("only in the pair", []).append(other.id)
    lines = [f"  {difference}: {', '.join(ids)}" for difference, ids in concerned.items()]
    return "\n".join(["the process does not fit this pair:", *lines])


def _compare(own: PathwayInfo, other: PathwayInfo) -> list[str]:
    pairs = [
        ("teacher levels", own.teacher.count, other.teacher.count),
        ("student levels", own.student.count, other.student.count),
        ("kind of the teacher's level", own.teacher.kind, other.teacher.kind),
        ("kind of the student's level", own.student.kind, other.student.kind),
        ("transform", own.transform, other.transform),
        ("distance", own.distance, other.distance),
    ]
    return [f"{name} {a} in the process, {b} in the pair" for name, a, b in pairs if a != b]
