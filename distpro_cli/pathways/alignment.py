"""Which level of one network lies as deep as which of the other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from distpro_cli.process.pathway import LevelInfo

Levels = Sequence[LevelInfo]
Rule = Literal["number", "reduction", "depth"]

_FROM_END = 1 << 20  # rank of the last vector, beyond that of every map


@dataclass(frozen=True)
class Alignment:
    """Ranks of the levels of both networks; equal ranks lie equally deep.

    Attributes:
        rule: `number`: networks with as many maps or tokens and as many vectors are joined by the levels' numbers.
            `reduction`: else, by the logarithm of the pixels per cell, rounded (14 is 16's), where it grows from level
            to level in both networks and some of it agrees. `depth`: else, by the share of the maps or tokens that
            have come, each level of the shorter network at the nearest one of the longer. With the last two, vectors
            are joined from the last one on.
        teacher: Rank by level number, without logits.
        student: Likewise.
    """

    rule: Rule
    teacher: Mapping[int, int]
    student: Mapping[int, int]


def align(teacher: Levels, student: Levels) -> Alignment:
    """Returns the ranks of the levels of a pair; logits have none."""
    sides = [[level for level in side if level.kind != "logits"] for side in (teacher, student)]
    kinds = [[level.kind == "vector" for level in side] for side in sides]
    if kinds[0] == kinds[1]:
        by_number = [{level.number: level.number for level in side} for side in sides]
        return Alignment("number", by_number[0], by_number[1])
    positions = [[level for level in side if level.kind != "vector"] for side in sides]
    vectors = [[level.number for level in side if level.kind == "vector"] for side in sides]
    rule: Rule = "reduction" if (ranks := _by_reduction(positions)) else "depth"
    ranks = ranks or _by_depth(positions)
    found = [
        {
            **{level.number: rank for level, rank in zip(side, of_side, strict=True)},
            **{number: _FROM_END - back for back, number in enumerate(reversed(last))},
        }
        for side, of_side, last in zip(positions, ranks, vectors, strict=True)
    ]
    return Alignment(rule, found[0], found[1])


def equally_deep(teacher: Levels, student: Levels, *kinds: str) -> list[list[int]]:
    """Returns the pairs of numbers of levels that lie equally deep and are of one of these kinds in both networks."""
    ranks = align(teacher, student)
    return [
        [i.number, j.number]
        for i in teacher
        for j in student
        if i.kind in kinds and j.kind in kinds and ranks.teacher[i.number] == ranks.student[j.number]
    ]


def _by_reduction(positions: Sequence[Levels]) -> list[list[int]] | None:
    found = []
    for side in positions:
        reductions = [level.reduction for level in side]
        ranks = [round(math.log2(reduction)) for reduction in reductions if reduction]
        if len(ranks) < len(reductions) or ranks != sorted(set(ranks)):
            return None
        found.append(ranks)
    return found if set(found[0]) & set(found[1]) else None


def _by_depth(positions: Sequence[Levels]) -> list[list[int]]:
    longest = max(len(side) for side in positions)
    return [[math.floor(n * longest / len(side) + 0.5) for n in range(1, len(side) + 1)] for side in positions]
