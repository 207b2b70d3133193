"""MobileNetV2 for 32×32 images: half width, expansion 6 (as used by CRD; Sandler et al. 2018)."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from distpro_cli.networks import register_network
from distpro_cli.networks.cifar.common import CifarNetwork, init_normal, row, stages

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


@register_network("mobilenet_v2_cifar", pattern=r"mobilenet_?v2_cifar")
class CifarMobileNetV2(CifarNetwork):
    """A strided stem, seven stages and a 1×1 convolution to 1280 channels; half width by default."""

    def __init__(self, *, num_classes: int, width: float = 0.5, expansion: int = 6, in_channels: int = 3) -> None:
        super().__init__(num_classes)
        channels = int(32 * width)
        self.conv1 = nn.Sequential(*_conv_bn(in_channels, channels, 3, 2), nn.ReLU(inplace=True))
        self.blocks = nn.Sequential()
        for full_width, num_blocks, stride in STAGES:
            block = partial(InvertedResidual, expansion=expansion if len(self.blocks) else 1)
            self.blocks.append(row(block, channels, int(full_width * width), num_blocks, stride))
            channels = int(full_width * width)
        last = int(1280 * max(1.0, width))
        self.conv2 = nn.Sequential(*_conv_bn(channels, last, 1), nn.ReLU(inplace=True))
        self.classifier = nn.Sequential(nn.Linear(last, num_classes))
        tapped = ((1, 24, 2), (2, 32, 4), (4, 96, 8), (6, 320, 16))
        self.feature_info = stages(*((f"blocks.{i}", int(full * width), step) for i, full, step in tapped))
        init_normal(self)


def _conv_bn(in_channels: int, channels: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(in_channels, channels, size, stride, size // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(channels)]
