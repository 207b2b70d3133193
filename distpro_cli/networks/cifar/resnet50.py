"""ResNet-50 for 32×32 images: 3×3 stem without pooling, four stages of bottlenecks (as used by CRD)."""

from __future__ import annotations

from torch import Tensor, nn

from distpro_cli.networks import register_network
from distpro_cli.networks.cifar.common import CifarNetwork, init_kaiming, pool, stages


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 convolutions and a shortcut; [B, in, H, W] → [B, 4·planes, H/stride, W/stride]."""

    def __init__(self, in_channels: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != 4 * planes:
            convolution = nn.Conv2d(in_channels, 4 * planes, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(4 * planes))
        self.relu3 = nn.ReLU(inplace=True)

    def forward(self, feature_bchw: Tensor) -> Tensor:
        """Returns the block's output after its ReLU."""
        out = self.relu1(self.bn1(self.conv1(feature_bchw)))
        out = self.relu2(self.bn2(self.conv2(out)))
        activated: Tensor = self.relu3(self.bn3(self.conv3(out)) + self.shortcut(feature_bchw))
        return activated


class CifarResNet50(CifarNetwork):
    """Stages of 3, 4, 6 and 3 bottlenecks with 256, 512, 1024 and 2048 channels."""

    classifier_name = "linear"

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__(num_classes)
        self.conv1 = nn.Conv2d(in_channels, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(64, 64, 3, stride=1)
        self.layer2 = _stage(256, 128, 4, stride=2)
        self.layer3 = _stage(512, 256, 6, stride=2)
        self.layer4 = _stage(1024, 512, 3, stride=2)
        self.linear = nn.Linear(2048, num_classes)
        self.feature_info = stages(*((f"layer{i + 1}", 256 * 2**i, 2**i) for i in range(4)))
        init_kaiming(self)

    def forward(self, images_bchw: Tensor) -> Tensor:
        """Returns logits [B, num_classes] of images [B, C, H, W]."""
        feature = self.relu(self.bn1(self.conv1(images_bchw)))
        feature = self.layer4(self.layer3(self.layer2(self.layer1(feature))))
        logits: Tensor = self.linear(pool(feature))
        return logits


def _stage(in_channels: int, planes: int, num_blocks: int, stride: int) -> nn.Sequential:
    blocks = [Bottleneck(in_channels, planes, stride)]
    blocks += [Bottleneck(4 * planes, planes, 1) for _ in range(num_blocks - 1)]
    return nn.Sequential(*blocks)


@register_network("resnet50_cifar", pattern=r"resnet_?50_cifar")
def cifar_resnet50(*, num_classes: int, in_channels: int = 3) -> nn.Module:
    """Builds ResNet-50 for CIFAR."""
    return CifarResNet50(num_classes, in_channels)
