"""ShuffleNetV2 1× for 32×32 images (as used by CRD; Ma et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distpro_cli.networks import register_network
from distpro_cli.networks.cifar.common import CifarNetwork, row, shuffle_channels, stages


class BasicUnit(nn.Module):
    """Half of the channels pass, half go through 1×1, depthwise 3×3, 1×1; then channels are shuffled.

    The last ReLU comes after the shuffle, which gives the same numbers, since what passes is nowhere negative; so
    the unit ends in a module, and what comes before its activation can be tapped.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(half, half, 3, 1, 1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu3 = nn.ReLU(inplace=True)

    def forward(self, feature_bchw: Tensor) -> Tensor:
        """Returns the same shape; the input is nowhere negative."""
        passed, changed = feature_bchw.chunk(2, 1)
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(changed)))))
        out = self.bn3(self.conv3(out))
        activated: Tensor = self.relu3(shuffle_channels(torch.cat([passed, out], 1), 2))
        return activated


class DownUnit(nn.Module):
    """Both branches see the whole input with stride 2; [B, in, H, W] → [B, out, H/2, W/2]."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, 2, 1, groups=in_channels, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = nn.Conv2d(in_channels, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(in_channels, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu3 = nn.ReLU(inplace=True)
        self.conv4 = nn.Conv2d(half, half, 3, 2, 1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)
        self.relu5 = nn.ReLU(inplace=True)

    def forward(self, feature_bchw: Tensor) -> Tensor:
        """Returns both branches, shuffled."""
        left = self.relu2(self.bn2(self.conv2(self.bn1(self.conv1(feature_bchw)))))
        right = self.relu3(self.bn3(self.conv3(feature_bchw)))
        right = self.relu5(self.bn5(self.conv5(self.bn4(self.conv4(right)))))
        return shuffle_channels(torch.cat([left, right], 1), 2)


@register_network("shufflenet_v2_cifar", pattern=r"shufflenet_?v2_cifar")
class CifarShuffleNetV2(CifarNetwork):
    """A 1×1 stem, three stages that each halve the resolution, a 1×1 convolution to 1024 channels.

    The initialisation is PyTorch's own (kaiming-uniform).
    """

    def __init__(self, *, num_classes: int, in_channels: int = 3) -> None:
        super().__init__(num_classes)
        self.conv1 = nn.Conv2d(in_channels, 24, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.relu1 = nn.ReLU(inplace=True)
        self.layer1 = row(_unit, 24, 116, 4, stride=2)
        self.layer2 = row(_unit, 116, 232, 8, stride=2)
        self.layer3 = row(_unit, 232, 464, 4, stride=2)
        self.conv2 = nn.Conv2d(464, 1024, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(1024)
        self.relu2 = nn.ReLU(inplace=True)
        self.linear = nn.Linear(1024, num_classes)
        self.feature_info = stages(("layer1", 116, 2), ("layer2", 232, 4), ("layer3", 464, 8))


def _unit(in_channels: int, channels: int, stride: int) -> nn.Module:
    return BasicUnit(channels) if stride == 1 else DownUnit(in_channels, channels)
