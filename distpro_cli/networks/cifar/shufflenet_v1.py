"""ShuffleNetV1, three groups, for 32×32 images (as used by CRD; Zhang et al. 2018)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from distpro_cli.networks import register_network
from distpro_cli.networks.cifar.common import CifarNetwork, row, shuffle_channels, stages

STEM_CHANNELS = 24


class ShuffleUnit(nn.Module):
    """Grouped 1×1, depthwise 3×3, grouped 1×1; stride 2 concatenates the pooled input, stride 1 adds it."""

    def __init__(self, in_channels: int, channels: int, stride: int, groups: int) -> None:
        super().__init__()
        if stride == 2:
            channels -= in_channels
        middle = channels // 4
        self.stride = stride
        self.groups = 1 if in_channels == STEM_CHANNELS else groups
        self.conv1 = nn.Conv2d(in_channels, middle, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, 1, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(middle, channels, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.shortcut = nn.AvgPool2d(3, 2, 1) if stride == 2 else nn.Identity()
        self.relu3 = nn.ReLU(inplace=True)

    def forward(self, feature_bchw: Tensor) -> Tensor:
        """Returns the unit's output after its ReLU."""
        out = shuffle_channels(self.relu1(self.bn1(self.conv1(feature_bchw))), self.groups)
        out = self.bn3(self.conv3(self.relu2(self.bn2(self.conv2(out)))))
        shortcut = self.shortcut(feature_bchw)
        activated: Tensor = self.relu3(torch.cat([out, shortcut], 1) if self.stride == 2 else out + shortcut)
        return activated


@register_network("shufflenet_v1_cifar", pattern=r"shufflenet_?v1_cifar")
class CifarShuffleNetV1(CifarNetwork):
    """A 1×1 stem and three stages that each halve the resolution; PyTorch's own (kaiming-uniform) initialisation."""

    def __init__(self, *, num_classes: int, groups: int = 3, in_channels: int = 3) -> None:
        super().__init__(num_classes)
        unit = partial(ShuffleUnit, groups=groups)
        self.conv1 = nn.Conv2d(in_channels, STEM_CHANNELS, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM_CHANNELS)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = row(unit, STEM_CHANNELS, 240, 4, stride=2)
        self.layer2 = row(unit, 240, 480, 8, stride=2)
        self.layer3 = row(unit, 480, 960, 4, stride=2)
        self.linear = nn.Linear(960, num_classes)
        self.feature_info = stages(("layer1", 240, 2), ("layer2", 480, 4), ("layer3", 960, 8))
