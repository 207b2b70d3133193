"""What a process says about its pathways: plain values, no tensors, no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from distpro_cli.image_size import Size, grids_of

Grid = tuple[int, int]  # height and width in cells

MOST_PREFIX_TOKENS = 8  # class, distillation and register tokens; DINOv2 has 5


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
        prefix: tokens before the grid (class token and its like).
        grid: height and width in cells, (1, 1) for vectors and logits, None for tokens that form no grid.
            Where it is not given, it follows from the shape; that of tokens, and their prefix, from `guess_grid`.
        guess: False: tokens without a grid form none, whatever their number says.
        feature: where a stage is tapped (`output`, `before-activation`, `after-activation`); None for what is no
            stage, and where it is not known. It tells no two levels apart.
    """

    number: int
    count: int
    name: str
    kind: str
    reduction: int | None
    shape: tuple[int, ...]
    prefix: int = 0
    grid: Grid | None = None
    guess: bool = field(default=True, compare=False, repr=False)
    feature: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.grid is not None or (self.kind == "tokens" and not self.guess):
            return
        prefix: int = 0
        grid: tuple[int, ...] | None = self.shape[1:] if self.kind == "map" else (1, 1)
        if self.kind == "tokens":
            prefix, grid = guess_grid(self.shape[0])
        object.__setattr__(self, "prefix", prefix)
        object.__setattr__(self, "grid", grid)


def guess_grid(num_tokens: int, image_size: Size = (1, 1)) -> tuple[int, Grid | None]:
    """Returns how many of the tokens come before a grid over the image, and the grid; 0 and None if they form none.

    The grid is as high to wide as the image, behind the smallest number of prefix tokens that leave one; more than a
    row of the grid is no prefix, or nearly every number of tokens would do. Of an image that is not square, cells may
    also be cut off or padded at its end (`grids_of`) where nothing comes before them.
    """
    if image_size[0] != image_size[1]:
        inexact = {rows * columns: (rows, columns) for rows, columns in grids_of(image_size)}
        if grid := inexact.get(num_tokens):
            return 0, grid
    divisor = math.gcd(*image_size)
    rows, columns = image_size[0] // divisor, image_size[1] // divisor
    for prefix in range(min(MOST_PREFIX_TOKENS + 1, num_tokens)):
        side = math.isqrt((num_tokens - prefix) // (rows * columns))
        if side * side * rows * columns == num_tokens - prefix and prefix <= side * columns:
            return prefix, (side * rows, side * columns)
    return 0, None


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
