"""What a process says about its pathways: plain values, no tensors, no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class LevelInfo:
    """One side of a pathway: a tapped feature of a network.

    Attributes:
        number: 1..count, shallow to deep.
        count: how many levels that network has.
        name: module name, `pooled` or `logits`.
        kind: `map`, `tokens`, `vector` or `logits`.
        reduction: input pixels per cell, None for vectors and logits.
        shape: without the batch: (C, H, W), (N, D) or (D,).
    """

    number: int
    count: int
    name: str
    kind: str
    reduction: int | None
    shape: tuple[int, ...]


@dataclass(frozen=True)
class PathwayInfo:
    """One pathway: connection, transform block and distance.

    Attributes:
        id: `5-3` (teacher level - student level); where several groups share the connection
            the later ones are called `5-3:transform+distance`.
        teacher: the teacher's level.
        student: the student's level.
        transform: registered name of the transform block.
        distance: registered name of the distance.
        transform_options: keyword arguments of the transform block.
        distance_options: keyword arguments of the distance.
    """

    id: str
    teacher: LevelInfo
    student: LevelInfo
    transform: str
    distance: str
    transform_options: dict[str, Any] = field(default_factory=dict)
    distance_options: dict[str, Any] = field(default_factory=dict)

    @property
    def connection(self) -> tuple[int, int]:
        """(teacher level, student level), both from 1."""
        return self.teacher.number, self.student.number
