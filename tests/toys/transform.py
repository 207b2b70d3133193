"""A transform block of a user's own: a 1×1 convolution with a scale."""

from __future__ import annotations

from torch import Tensor

from distpro_cli.pathways.transforms import register_transform
from distpro_cli.pathways.transforms.convolutions import OneConvolution
from distpro_cli.process.pathway import LevelInfo


@register_transform("scaled")
class Scaled(OneConvolution):
    """1×1 convolution and BatchNorm, times `scale`."""

    def __init__(self, student: LevelInfo, teacher: LevelInfo, *, scale: float = 1.0) -> None:
        super().__init__(student, teacher)
        self.scale = scale

    def convert(self, map_bchw: Tensor) -> Tensor:
        return self.scale * super().convert(map_bchw)
