"""ReviewKD's transform (Chen et al., Distilling Knowledge via Knowledge Review, CVPR 2021).

Student levels are fused from deep to shallow; every pathway carries one fused map to the teacher's space by a
block of its own.

Shape legend: b images, c channels, h height, w width.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from distpro_cli.pathways.layouts import from_map, layout_of, to_map
from distpro_cli.pathways.resize import Size, grow
from distpro_cli.pathways.transforms.base import SharedBlock, Transform, register_transform
from distpro_cli.process.pathway import LevelInfo
from distpro_cli.registry import positive_integer

MOST_MID = 512  # channels of the fused maps, unless told


class FusionChain(SharedBlock):
    """Fuses levels from deep to shallow: every fused map holds its own level and all deeper ones.

    Args:
        levels: Shallow to deep.
        mid: Channels of the fused maps; default: those of the deepest level, at most 512.
    """

    def __init__(self, levels: Sequence[LevelInfo], *, mid: int | None = None) -> None:
        super().__init__(levels)
        self._layouts = {level.number: layout_of(level) for level in self.levels}
        deepest = self.levels[-1].number
        mid = min(MOST_MID, self._layouts[deepest].channels) if mid is None else positive_integer("mid", mid)
        self.fusions = nn.ModuleDict(
            {str(n): _Fusion(layout.channels, mid, fuses=n != deepest) for n, layout in self._layouts.items()}
        )
        self.outputs = {
            level.number: replace(level, kind="map", shape=(mid, *self._layouts[level.number].size), grid=None)
            for level in self.levels
        }

    @override
    def needs(self, wanted: Collection[int]) -> set[int]:
        """Returns the wanted levels and all deeper ones."""
        return {number for number in self._layouts if number >= min(wanted)} if wanted else set()

    @override
    def forward(self, features: Mapping[int, Tensor], wanted: Collection[int]) -> dict[int, Tensor]:
        """Returns the fused maps of the `wanted` levels, [B, mid, H, W]; shallower ones are not made.

        Args:
            features: By level number, [B, *level.shape]; those of `needs(wanted)`.
            wanted: Numbers of levels.
        """
        fused: dict[int, Tensor] = {}
        deeper: Tensor | None = None
        for number in sorted(self.needs(wanted), reverse=True):
            own = to_map(features[number], self._layouts[number])
            deeper = self.fusions[str(number)](own, deeper)
            if number in wanted:
                fused[number] = deeper
        return fused


class _Fusion(nn.Module):
    """One level of the chain: own feature to `mid` channels, and the deeper fused map weighed against it."""

    def __init__(self, channels: int, mid: int, *, fuses: bool) -> None:
        super().__init__()
        self.own = nn.Sequential(nn.Conv2d(channels, mid, 1, bias=False), nn.BatchNorm2d(mid))
        nn.init.kaiming_uniform_(self.own[0].weight, a=1)  # type: ignore[arg-type]
        self.weigh = nn.Conv2d(2 * mid, 2, 1) if fuses else None

    def forward(self, feature_bchw: Tensor, deeper_bchw: Tensor | None) -> Tensor:
        """Fuses a level [B, C, H, W] with the deeper fused map [B, mid, h, w]; returns [B, mid, H, W]."""
        own: Tensor = self.own(feature_bchw)
        if self.weigh is None or deeper_bchw is None:
            return own
        size = (own.shape[2], own.shape[3])
        # A 1×1 convolution of the two side by side is the sum of one of each, and what is repeated from coarser
        # cells can be convolved before: the wide map is never written, and the coarse part costs a quarter.
        of_own, of_deeper = self.weigh.weight.chunk(2, 1)
        maps_b2hw = F.conv2d(own, of_own, self.weigh.bias) + grow(F.conv2d(deeper_bchw, of_deeper), size)
        share_of_own, share_of_deeper = torch.sigmoid(maps_b2hw).chunk(2, 1)
        return share_of_own * own + share_of_deeper * grow(deeper_bchw, size)


@register_transform("review")
class Review(Transform):
    """Carries a fused map to the teacher: nearest resize, 3×3 convolution, BatchNorm.

    The convolution is 3×3 on a map of one cell, too, as published.

    Args:
        student: Fused map.
        teacher: Level it is carried to.
        mid: Channels of the fused maps, see `FusionChain`.
    """

    shared = FusionChain

    def __init__(self, student: LevelInfo, teacher: LevelInfo, *, mid: int | None = None) -> None:
        super().__init__(student, teacher)
        if mid is not None:
            positive_integer("mid", mid)
        convolution = nn.Conv2d(self.in_channels, self.out_channels, 3, padding=1, bias=False)
        nn.init.kaiming_uniform_(convolution.weight, a=1)
        self.layers = nn.Sequential(convolution, nn.BatchNorm2d(self.out_channels))

    def forward(self, student_feature: Tensor, size: Size | None = None) -> Tensor:
        """Carries a fused map [B, *student.shape] to [B, *teacher.shape]; for `size` see `Transform`."""
        resized_bchw = grow(to_map(student_feature, self.student_layout), size or self.teacher_layout.size)
        return from_map(self.layers(resized_bchw), self.teacher, self.teacher_layout)
