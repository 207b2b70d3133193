"""ResNet-8 … 110 for CIFAR (He et al. 2016, section 4.2) and variants of four times the width (CRD)."""

from __future__ import annotations

from torch import Tensor, nn

from distpro_cli.networks import register_network
from distpro_cli.networks.cifar.common import CifarNetwork, init_kaiming, row, stages

DEPTHS = (8, 14, 20, 32, 44, 56, 110)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut; [B, in, H, W] → [B, out, H/stride, W/stride]."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            shortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(channels))
        self.relu2 = nn.ReLU(inplace=True)

    def forward(self, feature_bchw: Tensor) -> Tensor:
        """Returns the block's output after its ReLU."""
        out = self.relu1(self.bn1(self.conv1(feature_bchw)))
        out = self.bn2(self.conv2(out))
        shortcut = feature_bchw if self.downsample is None else self.downsample(feature_bchw)
        activated: Tensor = self.relu2(out + shortcut)
        return activated


class CifarResNet(CifarNetwork):
    """A stem and three stages of basic blocks; depth = 6n + 2."""

    def __init__(self, depth: int, num_classes: int, widths: tuple[int, int, int, int], in_channels: int) -> None:
        super().__init__(num_classes)
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        num_blocks = (depth - 2) // 6
        self.layer1 = row(BasicBlock, widths[0], widths[1], num_blocks, stride=1)
        self.layer2 = row(BasicBlock, widths[1], widths[2], num_blocks, stride=2)
        self.layer3 = row(BasicBlock, widths[2], widths[3], num_blocks, stride=2)
        self.fc = nn.Linear(widths[3], num_classes)
        self.feature_info = stages(("layer1", widths[1], 1), ("layer2", widths[2], 2), ("layer3", widths[3], 4))
        init_kaiming(self)


@register_network(
    *(f"resnet{depth}" for depth in DEPTHS),
    pattern=rf"resnet_?(?P<depth>{'|'.join(map(str, DEPTHS))})",
)
def cifar_resnet(*, depth: int, num_classes: int, in_channels: int = 3) -> nn.Module:
    """Builds ResNet-depth with 16, 32 and 64 channels."""
    return CifarResNet(depth, num_classes, (16, 16, 32, 64), in_channels)


@register_network("resnet8x4", "resnet14x4", "resnet32x4", pattern=r"resnet_?(?P<depth>8|14|20|32)x4")
def cifar_resnet_x4(*, depth: int, num_classes: int, in_channels: int = 3) -> nn.Module:
    """Builds ResNet-depth×4: 32 channels in the stem, then 64, 128 and 256."""
    return CifarResNet(depth, num_classes, (32, 64, 128, 256), in_channels)
