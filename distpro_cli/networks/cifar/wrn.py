"""Wide residual networks WRN-d-k (Zagoruyko and Komodakis 2016): pre-activation, d = 6n + 4."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distpro_cli.errors import DistproError
from distpro_cli.networks import register_network
from distpro_cli.networks.cifar.common import CifarNetwork, init_kaiming, pool, stages


class PreActivationBlock(nn.Module):
    """BN-ReLU-conv twice and a shortcut; [B, in, H, W] → [B, out, H/stride, W/stride], no ReLU at the end."""

    def __init__(self, in_channels: int, channels: int, stride: int, drop_rate: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(drop_rate)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.convShortcut: nn.Module | None = None
        if in_channels != channels or stride != 1:
            self.convShortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, feature_bchw: Tensor) -> Tensor:
        """Returns the sum of both branches."""
        activated = self.relu1(self.bn1(feature_bchw))
        shortcut = feature_bchw if self.convShortcut is None else self.convShortcut(activated)
        out = self.drop(self.relu2(self.bn2(self.conv1(activated))))
        return torch.add(shortcut, self.conv2(out))


class Stage(nn.Module):
    """A row of blocks, of which the first changes resolution and channels."""

    def __init__(self, in_channels: int, channels: int, num_blocks: int, stride: int, drop_rate: float) -> None:
        super().__init__()
        blocks = [PreActivationBlock(in_channels, channels, stride, drop_rate)]
        blocks += [PreActivationBlock(channels, channels, 1, drop_rate) for _ in range(num_blocks - 1)]
        self.layer = nn.Sequential(*blocks)

    def forward(self, feature_bchw: Tensor) -> Tensor:
        """Returns the last block's output."""
        out: Tensor = self.layer(feature_bchw)
        return out


class WideResNet(CifarNetwork):
    """A 16-channel stem, three stages of 16k, 32k and 64k channels, BN-ReLU, mean, linear."""

    def __init__(self, depth: int, width: int, num_classes: int, drop_rate: float, in_channels: int) -> None:
        super().__init__(num_classes)
        channels = (16 * width, 32 * width, 64 * width)
        num_blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        self.block1 = Stage(16, channels[0], num_blocks, 1, drop_rate)
        self.block2 = Stage(channels[0], channels[1], num_blocks, 2, drop_rate)
        self.block3 = Stage(channels[1], channels[2], num_blocks, 2, drop_rate)
        self.bn1 = nn.BatchNorm2d(channels[2])
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(channels[2], num_classes)
        self.feature_info = stages(*((f"block{i + 1}", channels[i], 2**i) for i in range(3)))
        init_kaiming(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, images_bchw: Tensor) -> Tensor:
        """Returns logits [B, num_classes] of images [B, C, H, W]."""
        feature = self.block3(self.block2(self.block1(self.conv1(images_bchw))))
        logits: Tensor = self.fc(pool(self.relu(self.bn1(feature))))
        return logits


@register_network(
    "wrn_10_1", "wrn_16_1", "wrn_16_2", "wrn_28_2", "wrn_28_10", "wrn_40_1", "wrn_40_2", "wrn_40_4",
    pattern=r"wrn_?(?P<depth>\d{1,4})_(?P<width>\d{1,3})",
)  # fmt: skip
def wide_resnet(*, depth: int, width: int, num_classes: int, drop_rate: float = 0.0, in_channels: int = 3) -> nn.Module:
    """Builds WRN-depth-width.

    Args:
        depth: 10, 16, 22, 28, 34, 40, …: 6n + 4.
        width: Widening factor k, from 1.
        num_classes: Width of the logits.
        drop_rate: Dropout between the two convolutions of a block, in [0, 1).
        in_channels: Channels of the images.

    Raises:
        DistproError: depth or width do not fit the rule.
    """
    if depth < 10 or (depth - 4) % 6:
        below = max(10, depth - (depth - 4) % 6)
        raise DistproError(
            f"wrn_{depth}_{width}: the depth of a WRN is 6n + 4 (10, 16, 22, 28, 34, 40, ...), "
            f"found {depth}; take wrn_{below}_{width}"
        )
    if width < 1:
        raise DistproError(f"wrn_{depth}_{width}: the widening factor is at least 1, found {width}")
    return WideResNet(depth, width, num_classes, drop_rate, in_channels)
