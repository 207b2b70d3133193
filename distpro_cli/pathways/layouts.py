"""Features of every kind seen as maps: vectors are 1×1, tokens lie on their grid behind prefix tokens.

Shape legend: b images, c channels, h height, w width, n tokens, d width of a token or vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distpro_cli.errors import DistproError
from distpro_cli.pathways.resize import Size
from distpro_cli.process.pathway import LevelInfo


@dataclass(frozen=True)
class Layout:
    """Where the cells of a feature lie.

    Attributes:
        channels: Values per cell.
        size: Height and width in cells.
        prefix: Tokens before the grid (class token and its like).
    """

    channels: int
    size: Size
    prefix: int


def layout_of(level: LevelInfo) -> Layout:
    """Returns the layout of a level; tokens without a grid lie in a column."""
    channels = level.shape[0] if level.kind == "map" else level.shape[-1]
    return Layout(channels, level.grid or (level.shape[0], 1), level.prefix)


def layouts_of_pair(student: LevelInfo, teacher: LevelInfo) -> tuple[Layout, Layout]:
    """Returns the layouts of both sides.

    Tokens without a grid can still meet a vector: their order does not matter for a mean.

    Raises:
        DistproError: tokens without a grid face a map or other tokens.
    """
    for role, level, other in (("student", student, teacher), ("teacher", teacher, student)):
        if level.grid is None and other.kind not in ("vector", "logits"):
            raise DistproError(
                f"{role} level {level.number} ({level.name}) has {level.shape[0]} tokens, which form no "
                f"grid behind a few prefix tokens, so they cannot meet "
                f"{other.kind} of shape {shape_text(other.shape)}; use transform linear between "
                "equal numbers of tokens, or the pooled level"
            )
    return layout_of(student), layout_of(teacher)


def to_map(feature: Tensor, layout: Layout) -> Tensor:
    """Returns a feature [B, C, H, W], [B, N, D] or [B, D] as a map [B, C, H, W] without prefix tokens."""
    if feature.ndim == 4:
        return feature
    if feature.ndim == 3:
        return feature[:, layout.prefix :].transpose(1, 2).reshape(-1, layout.channels, *layout.size)
    return feature[:, :, None, None]


def from_map(map_bchw: Tensor, level: LevelInfo, layout: Layout) -> Tensor:
    """Returns a map as a feature of the level's shape; prefix tokens are given the mean of the map."""
    if level.kind == "map":
        return map_bchw
    if level.kind == "tokens":
        tokens_bnd = map_bchw.flatten(2).transpose(1, 2)
        if layout.prefix == 0:
            return tokens_bnd
        return torch.cat([tokens_bnd.mean(1, keepdim=True).expand(-1, layout.prefix, -1), tokens_bnd], 1)
    return map_bchw.flatten(1)


def shape_text(shape: tuple[int, ...]) -> str:
    """Returns a shape as people write it: `64×8×8`."""
    return "×".join(map(str, shape))
