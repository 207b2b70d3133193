"""A convolutional transform block that chooses channels and positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from distpro_cli.pathways.transforms.base import Transform, register_transform
from distpro_cli.pathways.transforms.convolutions import conv_bn
from distpro_cli.process.pathway import LevelInfo
from distpro_cli.registry import positive_integer


@register_transform("attention")
class Attention(Transform):
    """`conv2` whose inner map is gated by channel, then by position.

    The channel gate is that of squeeze-and-excitation (Hu et al. 2018): sigmoid of two 1×1 convolutions of
    the mean over positions. The position gate is that of ReviewKD's attention-based fusion (Chen et al.
    2021): sigmoid of a 1×1 convolution to one channel. Both come before the last convolution and its
    BatchNorm, so they do not shrink what is compared.

    Args:
        student: Level the feature comes from.
        teacher: Level it is carried to.
        mid: Channels of the inner map; default: the smaller of both sides.
        reduction: Factor by which the channel gate narrows.
    """

    def __init__(self, student: LevelInfo, teacher: LevelInfo, *, mid: int | None = None, reduction: int = 4) -> None:
        super().__init__(student, teacher)
        mid = min(self.in_channels, self.out_channels) if mid is None else positive_integer("mid", mid)
        narrow = max(1, mid // positive_integer("reduction", reduction))
        self.reduce = nn.Sequential(*conv_bn(self.in_channels, mid, 1, self.size), nn.ReLU(inplace=True))
        self.channel_gate = nn.Sequential(nn.Conv2d(mid, narrow, 1), nn.ReLU(inplace=True), nn.Conv2d(narrow, mid, 1))
        self.position_gate = nn.Conv2d(mid, 1, 1)
        self.expand = nn.Sequential(*conv_bn(mid, self.out_channels, 3, self.size))

    @override
    def convert(self, map_bchw: Tensor) -> Tensor:
        inner = self.reduce(map_bchw)
        inner = inner * torch.sigmoid(self.channel_gate(inner.mean((2, 3), keepdim=True)))
        inner = inner * torch.sigmoid(self.position_gate(inner))
        expanded: Tensor = self.expand(inner)
        return expanded
