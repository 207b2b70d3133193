"""Which level of one network lies as deep as which of the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from distpro_cli.process.ranks import Levels, ranks_by_depth, ranks_by_reduction

Rule = Literal["number", "reduction", "depth"]


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
    by_reduction = ranks_by_reduction(sides)
    ranks = by_reduction or ranks_by_depth(sides)
    return Alignment("reduction" if by_reduction else "depth", ranks[0], ranks[1])


def equally_deep(teacher: Levels, student: Levels, *kinds: str) -> list[list[int]]:
    """Returns the pairs of numbers of levels that lie equally deep and are of one of these kinds in both networks."""
    ranks = align(teacher, student)
    return [
        [i.number, j.number]
        for i in teacher
        for j in student
        if i.kind in kinds and j.kind in kinds and ranks.teacher[i.number] == ranks.student[j.number]
    ]
