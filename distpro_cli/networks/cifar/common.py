"""What the CIFAR networks share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class CifarNetwork(nn.Module):
    """A classifier with timm's conventions: `num_classes`, `feature_info`, `get_classifier`.

    Attributes:
        num_classes: Width of the logits.
        feature_info: One entry per stage, shallow to deep: `module`, `num_chs`, `reduction`.
    """

    classifier_name = "fc"

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.feature_info: list[dict[str, Any]] = []

    def get_classifier(self) -> nn.Module:
        """Returns the last linear layer."""
        return self.get_submodule(self.classifier_name)


def stages(*entries: tuple[str, int, int]) -> list[dict[str, Any]]:
    """Returns feature info from (module, channels, reduction), shallow to deep."""
    return [{"module": module, "num_chs": channels, "reduction": step} for module, channels, step in entries]


def init_kaiming(module: nn.Module) -> None:
    """Kaiming-normal convolutions (fan out, ReLU), BatchNorm at weight 1 and bias 0 (He et al. 2015)."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.BatchNorm2d):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)


def pool(feature_bchw: Tensor) -> Tensor:
    """Returns the mean over all positions, [B, C]."""
    return feature_bchw.mean((2, 3))


def shuffle_channels(feature_bchw: Tensor, groups: int) -> Tensor:
    """Interleaves `groups` groups of channels (ShuffleNet, Zhang et al. 2018)."""
    batch, channels, height, width = feature_bchw.shape
    grouped = feature_bchw.reshape(batch, groups, channels // groups, height, width)
    return torch.transpose(grouped, 1, 2).reshape(batch, channels, height, width)
