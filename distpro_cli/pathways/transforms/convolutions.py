"""Convolutional transform blocks with one, two and three convolutions.

None ends in an activation: what is compared is the teacher's feature, which may be negative.
"""

from __future__ import annotations

from torch import Tensor, nn
from typing_extensions import override

from distpro_cli.pathways.resize import Size
from distpro_cli.pathways.transforms.base import Transform, register_transform
from distpro_cli.process.pathway import LevelInfo
from distpro_cli.registry import positive_integer


def convolution(in_channels: int, out_channels: int, kernel: int, size: Size) -> nn.Conv2d:
    """Returns a convolution without bias that keeps the size, initialised as in ReviewKD (Kaiming, a = 1).

    On a map of one cell a larger kernel sees nothing but padding around its centre, so it is left out.
    """
    kernel = 1 if size == (1, 1) else kernel
    layer = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_uniform_(layer.weight, a=1)
    return layer


def conv_bn(in_channels: int, out_channels: int, kernel: int, size: Size) -> list[nn.Module]:
    """Returns a `convolution` and its BatchNorm."""
    return [convolution(in_channels, out_channels, kernel, size), nn.BatchNorm2d(out_channels)]


class _Layers(Transform):
    """Runs `layers` on the map."""

    layers: nn.Sequential

    @override
    def convert(self, map_bchw: Tensor) -> Tensor:
        converted: Tensor = self.layers(map_bchw)
        return converted


@register_transform("conv1")
class OneConvolution(_Layers):
    """1×1 convolution and BatchNorm: the regressor of FitNets-like methods."""

    def __init__(self, student: LevelInfo, teacher: LevelInfo) -> None:
        super().__init__(student, teacher)
        self.layers = nn.Sequential(*conv_bn(self.in_channels, self.out_channels, 1, self.size))


@register_transform("conv2")
class TwoConvolutions(_Layers):
    """1×1 convolution to `mid` channels, BatchNorm, ReLU, 3×3 convolution, BatchNorm.

    Args:
        student: Level the feature comes from.
        teacher: Level it is carried to.
        mid: Channels between the two; default: the smaller of both sides, since the 3×3 convolution is where
            the work is and a student's feature cannot fill more channels than it has.
    """

    def __init__(self, student: LevelInfo, teacher: LevelInfo, *, mid: int | None = None) -> None:
        super().__init__(student, teacher)
        mid = min(self.in_channels, self.out_channels) if mid is None else positive_integer("mid", mid)
        self.layers = nn.Sequential(
            *conv_bn(self.in_channels, mid, 1, self.size),
            nn.ReLU(inplace=True),
            *conv_bn(mid, self.out_channels, 3, self.size),
        )


@register_transform("conv3")
class ThreeConvolutions(_Layers):
    """Bottleneck: 1×1, 3×3 and 1×1 convolution, each with BatchNorm, ReLU between them.

    Args:
        student: Level the feature comes from.
        teacher: Level it is carried to.
        mid: Channels of the 3×3 convolution; default: half the smaller of both sides, at least 8.
    """

    def __init__(self, student: LevelInfo, teacher: LevelInfo, *, mid: int | None = None) -> None:
        super().__init__(student, teacher)
        smaller = min(self.in_channels, self.out_channels)
        mid = max(8, smaller // 2) if mid is None else positive_integer("mid", mid)
        self.layers = nn.Sequential(
            *conv_bn(self.in_channels, mid, 1, self.size),
            nn.ReLU(inplace=True),
            *conv_bn(mid, mid, 3, self.size),
            nn.ReLU(inplace=True),
            *conv_bn(mid, self.out_channels, 1, self.size),
        )
