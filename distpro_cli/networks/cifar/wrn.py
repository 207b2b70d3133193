"""Wide residual networks WRN-d-k (Zagoruyko and Komodakis 2016): pre-activation, d = 6n + 4."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

import torch
from torch import Tensor, nn

from distpro_cli.errors import DistproError
from distpro_cli.networks import register_network
from distpro_cli.networks.cifar.common import CifarNetwork, init_kaiming, row, stages


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


@register_network(
    "wrn_10_1", "wrn_16_1", "wrn_16_2", "wrn_28_2", "wrn_28_10", "wrn_40_1", "wrn_40_2", "wrn_40_4",
    pattern=r"wrn_?(?P<depth>\d{1,4})_(?P<width>\d{1,3})",
)  # fmt: skip
class WideResNet(CifarNetwork):
    """A 16-channel stem, three stages of 16k, 32k and 64k channels, BN-ReLU, mean, linear.

    Args:
        depth: 10, 16, 22, 28, 34, 40, …: 6n + 4.
        width: Widening factor k, from 1.
        num_classes: Width of the logits.
        drop_rate: Dropout between the two convolutions of a block, in [0, 1).
        in_channels: Channels of the images.

    Raises:
        DistproError: depth or width do not fit the rule.
    """

    def __init__(
        self, *, depth: int, width: int, num_classes: int, drop_rate: float = 0.0, in_channels: int = 3
    ) -> None:
        super().__init__(num_classes)
        if depth < 10 or (depth - 4) % 6:
            below = max(10, depth - (depth - 4) % 6)
            raise DistproError(
                f"wrn_{depth}_{width}: the depth of a WRN is 6n + 4 (10, 16, 22, 28, 34, 40, ...), "
                f"found {depth}; take wrn_{below}_{width}"
            )
        if width < 1:
            raise DistproError(f"wrn_{depth}_{width}: the widening factor is at least 1, found {width}")
        block = partial(PreActivationBlock, drop_rate=drop_rate)
        widths = (16, 16 * width, 32 * width, 64 * width)
        self.conv1 = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        for number, stride in ((1, 1), (2, 2), (3, 2)):
            blocks = row(block, widths[number - 1], widths[number], (depth - 4) // 6, stride)
            self.add_module(f"block{number}", nn.Sequential(OrderedDict(layer=blocks)))
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(widths[3], num_classes)
        self.feature_info = stages(*((f"block{i}", widths[i], 2 ** (i - 1)) for i in (1, 2, 3)))
        init_kaiming(self)
        nn.init.zeros_(self.fc.bias)
