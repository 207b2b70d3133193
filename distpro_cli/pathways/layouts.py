"""Features of every kind seen as maps: vectors are 1×1, tokens lie on a square grid behind prefix tokens.

Shape legend: b images, c channels, h height, w width, n tokens, d width of a token or vector.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from distpro_cli.errors import DistproError
from distpro_cli.pathways.resize import Size
from distpro_cli.process.pathway import LevelInfo

MOST_PREFIX_TOKENS = 8  # class, distillation and register tokens; DINOv2 has 5


@dataclass(frozen=True)
class Grid:
    """Where the cells of a feature lie.

    Attributes:
        channels: Values per cell.
        size: Height and width in cells.
        prefix: Tokens before the grid (class token and its like).
    """

    channels: int
    size: Size
    prefix: int = 0


def grid_of(level: LevelInfo) -> Grid | None:
    """Returns the grid of a level, or None for tokens that form no square.

    Of several numbers of prefix tokens that leave a square, the smallest is taken; more than a row of
    the grid is no prefix, or nearly every number of tokens would do.
    """
    if level.kind == "map":
        channels, height, width = level.shape
        return Grid(channels, (height, width))
    if level.kind == "tokens":
        num_tokens, channels = level.shape
        for prefix in range(min(MOST_PREFIX_TOKENS + 1, num_tokens)):
            side = math.isqrt(num_tokens - prefix)
            if side * side == num_tokens - prefix and prefix <= side:
                return Grid(channels, (side, side), prefix)
        return None
    return Grid(level.shape[-1], (1, 1))


def grids_of_pair(student: LevelInfo, teacher: LevelInfo) -> tuple[Grid, Grid]:
    """Returns the grids of both sides.

    Tokens without a square grid can still meet a vector: their order does not matter for a mean.

    Raises:
        DistproError: tokens without a square grid face a map or other tokens.
    """
    grids = []
    for role, level, other in (("student", student, teacher), ("teacher", teacher, student)):
        grid = grid_of(level)
        if grid is None and other.kind in ("vector", "logits"):
            grid = Grid(level.shape[1], (level.shape[0], 1))
        if grid is None:
            raise DistproError(
                f"{role} level {level.number} ({level.name}) has {level.shape[0]} tokens, which form no "
                f"square grid behind a few prefix tokens, so they cannot meet "
                f"{other.kind} of shape {shape_text(other.shape)}; use transform linear between "
                "equal numbers of tokens, or the pooled level"
            )
        grids.append(grid)
    return grids[0], grids[1]


def to_map(feature: Tensor, grid: Grid) -> Tensor:
    """Returns a feature [B, C, H, W], [B, N, D] or [B, D] as a map [B, C, H, W] without prefix tokens."""
    if feature.ndim == 4:
        return feature
    if feature.ndim == 3:
        return feature[:, grid.prefix :].transpose(1, 2).reshape(-1, grid.channels, *grid.size)
    return feature[:, :, None, None]


def from_map(map_bchw: Tensor, level: LevelInfo, grid: Grid) -> Tensor:
    """Returns a map as a feature of the level's shape; prefix tokens are given the mean of the map."""
    if level.kind == "map":
        return map_bchw
    if level.kind == "tokens":
        tokens_bnd = map_bchw.flatten(2).transpose(1, 2)
        if grid.prefix == 0:
            return tokens_bnd
        return torch.cat([tokens_bnd.mean(1, keepdim=True).expand(-1, grid.prefix, -1), tokens_bnd], 1)
    return map_bchw.flatten(1)


def shape_text(shape: tuple[int, ...]) -> str:
    """Returns a shape as people write it: `64×8×8`."""
    return "×".join(map(str, shape))
