"""ResNet-50 for 32×32 images: 3×3 stem without pooling, four stages of bottlenecks (as used by CRD)."""

from __future__ import annotations

from torch import Tensor, nn

from distpro_cli.networks import register_network
from distpro_cli.networks.cifar.common import CifarNetwork, init_kaiming, row, stages


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 convolutions and a shortcut; [B, in, H, W] → [B, out, H/stride, W/stride]."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        planes = channels // 4
        self.conv1 = nn.Conv2d(in_channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(planes, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            convolution = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(channels))
        self.relu3 = nn.ReLU(inplace=True)

    def forward(self, feature_bchw: Tensor) -> Tensor:
        """Returns the block's output after its ReLU."""
        out = self.relu1(self.bn1(self.conv1(feature_bchw)))
        out = self.relu2(self.bn2(self.conv2(out)))
        activated: Tensor = self.relu3(self.bn3(self.conv3(out)) + self.shortcut(feature_bchw))
        return activated


@register_network("resnet50_cifar", pattern=r"resnet_?50_cifar")
class CifarResNet50(CifarNetwork):
    """Stages of 3, 4, 6 and 3 bottlenecks with 256, 512, 1024 and 2048 channels."""

    def __init__(self, *, num_classes: int, in_channels: int = 3) -> None:
        super().__init__(num_classes)
        self.conv1 = nn.Conv2d(in_channels, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = row(Bottleneck, 64, 256, 3, stride=1)
        self.layer2 = row(Bottleneck, 256, 512, 4, stride=2)
        self.layer3 = row(Bottleneck, 512, 1024, 6, stride=2)
        self.layer4 = row(Bottleneck, 1024, 2048, 3, stride=2)
        self.linear = nn.Linear(2048, num_classes)
        self.feature_info = stages(("layer1", 256, 1), ("layer2", 512, 2), ("layer3", 1024, 4), ("layer4", 2048, 8))
        init_kaiming(self)
