"""What the CIFAR networks share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class CifarNetwork(nn.Module):
    """A classifier with timm's conventions: `num_classes`, `feature_info`, `get_classifier`.

    A subclass makes its layers in the order in which they run, the classifier last.

    Attributes:
        num_classes: Width of the logits.
        feature_info: One entry per stage, shallow to deep: `module`, `num_chs`, `reduction`.
    """

    feature_info: list[dict[str, Any]]

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def get_classifier(self) -> nn.Module:
        """Returns the last linear layer."""
        return list(self.modules())[-1]

    def forward(self, images_bchw: Tensor) -> Tensor:
        """Returns logits [B, num_classes] of images [B, C, H, W]; the classifier sees the mean over positions."""
        *layers, classifier = self.children()
        feature_bchw = images_bchw
        for layer in layers:
            feature_bchw = layer(feature_bchw)
        logits: Tensor = classifier(feature_bchw.mean((2, 3)))
        return logits


def stages(*entries: tuple[str, int, int]) -> list[dict[str, Any]]:
    """Returns feature info from (module, channels, reduction), shallow to deep."""
    return [{"module": module, "num_chs": channels, "reduction": step} for module, channels, step in entries]


def row(
    block: Callable[[int, int, int], nn.Module], in_channels: int, channels: int, num_blocks: int, stride: int
) -> nn.Sequential:
    """Returns blocks one after the other; the first changes channels and resolution.

    Args:
        block: Makes one from its input's channels, its output's, and its stride.
        in_channels: Channels before the row.
        channels: Channels behind every block.
        num_blocks: Number of blocks, at least 1.
        stride: Of the first.
    """
    first = block(in_channels, channels, stride)
    return nn.Sequential(first, *(block(channels, channels, 1) for _ in range(num_blocks - 1)))


def init_kaiming(network: nn.Module) -> None:
    """Draws convolutions from a Kaiming normal distribution (fan out, ReLU; He et al. 2015)."""
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")


def init_normal(network: nn.Module) -> None:
    """Draws convolutions like `init_kaiming`, whatever their groups, and linear layers with deviation 0.01."""
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            fan_out = part.kernel_size[0] * part.kernel_size[1] * part.out_channels
            nn.init.normal_(part.weight, 0.0, math.sqrt(2.0 / fan_out))
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, 0.0, 0.01)
        if isinstance(part, nn.Conv2d | nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)


def shuffle_channels(feature_bchw: Tensor, groups: int) -> Tensor:
    """Interleaves `groups` groups of channels (ShuffleNet, Zhang et al. 2018)."""
    batch, channels, height, width = feature_bchw.shape
    grouped = feature_bchw.reshape(batch, groups, channels // groups, height, width)
    return torch.transpose(grouped, 1, 2).reshape(batch, channels, height, width)
