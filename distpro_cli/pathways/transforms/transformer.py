"""The transformer-style transform block.

Shape legend: b images, c channels, h height, w width, n tokens, d width of a token, e width inside the linear blocks,
g heads, s width of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed
from typing_extensions import override

from distpro_cli.errors import DistproError
from distpro_cli.pathways.layouts import from_map, to_map
from distpro_cli.pathways.resize import Size, grow, shrink
from distpro_cli.pathways.transforms.base import Transform, register_transform, smaller_size
from distpro_cli.process.pathway import LevelInfo
from distpro_cli.registry import positive_integer, positive_number, share_below_one, yes_or_no

HEAD_WIDTH = 64  # as in ViT and DeiT


@register_transform("transformer")
class Transformer(Transform):
    """Self-attention and linear blocks over the student's tokens, then a Linear to the teacher's width.

    `depth` times x + attention(norm(x)), then x + stack(norm(x)), where the stack is two linear blocks, Linear →
    GELU → Dropout (the appendix of Deng et al. 2022), to `expansion` times the width and back. The figure of the
    paper's block is not available; this one follows ViT's order (pre-norm).

    A map gives one token per cell. As in every `Transform` the block runs at the smaller of both grids; of the prefix
    tokens those that both sides have are carried by themselves, and attend with the others; further ones of the
    teacher are met by the mean of the carried grid. Between equal numbers of tokens no grid is needed.

    Args:
        student: Level the feature comes from.
        teacher: Level it is carried to.
        depth: Pairs of attention and stack.
        heads: Of the attention; must divide the student's width. Default: as many of width 64 as there is room for.
        dropout: Of the linear blocks, in [0, 1).
        expansion: Width inside the stack over the student's width.
        checkpoint: Whether attention and stacks keep only what they are given and run again in the backward pass.
    """

    def __init__(
        self,
        student: LevelInfo,
        teacher: LevelInfo,
        *,
        depth: int = 1,
        heads: int | None = None,
        dropout: float = 0.1,
        expansion: float = 2.0,
        checkpoint: bool = False,
    ) -> None:
        per_token = student.kind == teacher.kind == "tokens" and student.shape[0] == teacher.shape[0]
        if per_token:
            nn.Module.__init__(self)  # the base would ask for a grid
            width, out_width, num_tokens = student.shape[1], teacher.shape[1], student.shape[0]
        else:
            super().__init__(student, teacher)
            width, out_width = self.in_channels, self.out_channels
            self.shared_prefix = min(self.student_layout.prefix, self.teacher_layout.prefix)
            num_tokens = self.shared_prefix + self.size[0] * self.size[1]
        self.per_token = per_token
        heads = _default_heads(width) if heads is None else positive_integer("heads", heads)
        if width % heads:
            raise DistproError(
                f"heads does not divide the width of the student's {student.name}: {heads} heads, width {width}"
            )
        dropout = share_below_one("dropout", dropout)
        inner = max(1, round(width * positive_number("expansion", expansion)))
        parts: list[nn.Module] = []
        for _ in range(positive_integer("depth", depth)):
            # A token by itself attends to itself alone.
            parts += [_Attention(width, heads)] if num_tokens > 1 else []
            parts.append(_LinearBlocks(width, inner, dropout))
        self.parts = nn.ModuleList(parts)
        self.to_teacher = nn.Linear(width, out_width)
        self.checkpoint = yes_or_no("checkpoint", checkpoint)

    @override
    def forward(self, student_feature: Tensor, size: Size | None = None) -> Tensor:
        """Carries a student feature [B, *student.shape] to [B, *teacher.shape]; for `size` see `Transform`."""
        if self.per_token:
            return self._carry(student_feature)
        prefix = self.shared_prefix
        map_bchw = to_map(student_feature, self.student_layout)
        size = self.teacher_layout.size if size is None else size
        inner_size = smaller_size(map_bchw, size)
        map_bchw = shrink(map_bchw, inner_size)
        tokens_bnd = map_bchw.flatten(2).transpose(1, 2)
        if prefix:
            tokens_bnd = torch.cat([student_feature[:, :prefix], tokens_bnd], 1)
        carried_bnd = self._carry(tokens_bnd)
        map_bchw = carried_bnd[:, prefix:].transpose(1, 2).unflatten(2, inner_size)
        carried = from_map(grow(map_bchw, size), self.teacher, self.teacher_layout)
        return torch.cat([carried_bnd[:, :prefix], carried[:, prefix:]], 1) if prefix else carried

    def _carry(self, tokens_bnd: Tensor) -> Tensor:
        """Carries tokens [B, N, student's width] to [B, N, teacher's width]."""
        for part in self.parts:
            if self.checkpoint and torch.is_grad_enabled():
                tokens_bnd = recomputed(part, tokens_bnd, use_reentrant=False)
            else:
                tokens_bnd = part(tokens_bnd)
        carried: Tensor = self.to_teacher(tokens_bnd)
        return carried


class _Attention(nn.Module):
    """x + multi-head self-attention of the layer-normed x."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.join = nn.Linear(width, width)

    def forward(self, tokens_bnd: Tensor) -> Tensor:
        """Takes and returns [B, N, D]."""
        split = self.query_key_value(self.norm(tokens_bnd)).unflatten(2, (3, self.heads, -1))
        query_bgns, key_bgns, value_bgns = split.permute(2, 0, 3, 1, 4)
        mixed_bgns = F.scaled_dot_product_attention(query_bgns, key_bgns, value_bgns)
        joined: Tensor = self.join(mixed_bgns.transpose(1, 2).flatten(2))
        return tokens_bnd + joined


class _LinearBlocks(nn.Module):
    """x + two linear blocks of the layer-normed x."""

    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.stack = nn.Sequential(*_linear_block(width, inner, dropout), *_linear_block(inner, width, dropout))

    def forward(self, tokens_bnd: Tensor) -> Tensor:
        """Takes and returns [B, N, D]."""
        stacked: Tensor = self.stack(self.norm(tokens_bnd))
        return tokens_bnd + stacked


def _linear_block(width: int, out_width: int, dropout: float) -> tuple[nn.Module, ...]:
    return nn.Linear(width, out_width), nn.GELU(), nn.Dropout(dropout)


def _default_heads(width: int) -> int:
    """Returns the largest number of heads that divides the width and leaves every head 64 or more, at least 1."""
    return next(heads for heads in range(max(1, width // HEAD_WIDTH), 0, -1) if width % heads == 0)
