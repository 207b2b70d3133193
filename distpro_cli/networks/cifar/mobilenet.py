"""MobileNetV2 for 32×32 images: half width, expansion 6 (as used by CRD; Sandler et al. 2018)."""

from __future__ import annotations

import math

from torch import Tensor, nn

from distpro_cli.networks import register_network
from distpro_cli.networks.cifar.common import CifarNetwork, pool, stages

# channels at full width, blocks, stride of the first; the first stage does not expand
STAGES = ((16, 1, 1), (24, 2, 1), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))


class InvertedResidual(nn.Module):
    """Expand, depthwise 3×3, project, with a shortcut where shapes agree; no activation at the end."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.has_shortcut = stride == 1 and in_channels == channels
        self.conv = nn.Sequential(
            *_conv_bn(in_channels, hidden, 1),
            nn.ReLU(inplace=True),
            *_conv_bn(hidden, hidden, 3, stride, groups=hidden),
            nn.ReLU(inplace=True),
            *_conv_bn(hidden, channels, 1),
        )

    def forward(self, feature_bchw: Tensor) -> Tensor:
        """Returns [B, channels, H/stride, W/stride]."""
        out: Tensor = self.conv(feature_bchw)
        return feature_bchw + out if self.has_shortcut else out


class CifarMobileNetV2(CifarNetwork):
    """A strided stem, seven stages and a 1×1 convolution to 1280 channels."""

    classifier_name = "classifier.0"

    def __init__(self, num_classes: int, width: float, expansion: int, in_channels: int) -> None:
        super().__init__(num_classes)
        channels = int(32 * width)
        self.conv1 = nn.Sequential(*_conv_bn(in_channels, channels, 3, 2), nn.ReLU(inplace=True))
        self.blocks = nn.ModuleList()
        for full_width, num_blocks, stride in STAGES:
            out_channels = int(full_width * width)
            blocks = []
            for index in range(num_blocks):
                factor = expansion if len(self.blocks) else 1
                blocks.append(InvertedResidual(channels, out_channels, stride if index == 0 else 1, factor))
                channels = out_channels
            self.blocks.append(nn.Sequential(*blocks))
        last = int(1280 * width) if width > 1.0 else 1280
        self.conv2 = nn.Sequential(*_conv_bn(channels, last, 1), nn.ReLU(inplace=True))
        self.classifier = nn.Sequential(nn.Linear(last, num_classes))
        tapped = ((1, 24, 2), (2, 32, 4), (4, 96, 8), (6, 320, 16))
        self.feature_info = stages(*((f"blocks.{i}", int(full * width), step) for i, full, step in tapped))
        _init(self)

    def forward(self, images_bchw: Tensor) -> Tensor:
        """Returns logits [B, num_classes] of images [B, C, H, W]."""
        feature = self.conv1(images_bchw)
        for stage in self.blocks:
            feature = stage(feature)
        logits: Tensor = self.classifier(pool(self.conv2(feature)))
        return logits


def _conv_bn(in_channels: int, channels: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(in_channels, channels, size, stride, size // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(channels)]


def _init(network: nn.Module) -> None:
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            fan_out = part.kernel_size[0] * part.kernel_size[1] * part.out_channels
            nn.init.normal_(part.weight, 0.0, math.sqrt(2.0 / fan_out))
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, 0.0, 0.01)
            nn.init.zeros_(part.bias)


@register_network("mobilenet_v2_cifar", pattern=r"mobilenet_?v2_cifar")
def cifar_mobilenet_v2(*, num_classes: int, width: float = 0.5, expansion: int = 6, in_channels: int = 3) -> nn.Module:
    """Builds MobileNetV2 for CIFAR, at half width by default."""
    return CifarMobileNetV2(num_classes, width, expansion, in_channels)
