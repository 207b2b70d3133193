"""ShuffleNetV2 1× for 32×32 images (as used by CRD; Ma et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distpro_cli.networks import register_network
from distpro_cli.networks.cifar.common import CifarNetwork, pool, shuffle_channels, stages

CHANNELS = (116, 232, 464)
LAST_CHANNELS = 1024
NUM_BASIC = (3, 7, 3)
STEM_CHANNELS = 24


class BasicUnit(nn.Module):
    """Half of the channels pass, half go through 1×1, depthwise 3×3, 1×1; then channels are shuffled."""

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
        """Returns the same shape."""
        passed, changed = feature_bchw.chunk(2, 1)
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(changed)))))
        out = self.relu3(self.bn3(self.conv3(out)))
        return shuffle_channels(torch.cat([passed, out], 1), 2)


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


class CifarShuffleNetV2(CifarNetwork):
    """A 1×1 stem, three stages that each halve the resolution, a 1×1 convolution to 1024 channels."""

    classifier_name = "linear"

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__(num_classes)
        self.conv1 = nn.Conv2d(in_channels, STEM_CHANNELS, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM_CHANNELS)
        self.relu1 = nn.ReLU(inplace=True)
        channels = STEM_CHANNELS
        for index, (out_channels, num_basic) in enumerate(zip(CHANNELS, NUM_BASIC, strict=True)):
            units: list[nn.Module] = [DownUnit(channels, out_channels)]
            units += [BasicUnit(out_channels) for _ in range(num_basic)]
            setattr(self, f"layer{index + 1}", nn.Sequential(*units))
            channels = out_channels
        self.conv2 = nn.Conv2d(channels, LAST_CHANNELS, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(LAST_CHANNELS)
        self.relu2 = nn.ReLU(inplace=True)
        self.linear = nn.Linear(LAST_CHANNELS, num_classes)
        self.feature_info = stages(*((f"layer{i + 1}", CHANNELS[i], 2 ** (i + 1)) for i in range(3)))

    def forward(self, images_bchw: Tensor) -> Tensor:
        """Returns logits [B, num_classes] of images [B, C, H, W]."""
        feature = self.relu1(self.bn1(self.conv1(images_bchw)))
        for index in range(len(CHANNELS)):
            feature = self.get_submodule(f"layer{index + 1}")(feature)
        logits: Tensor = self.linear(pool(self.relu2(self.bn2(self.conv2(feature)))))
        return logits


@register_network("shufflenet_v2_cifar", pattern=r"shufflenet_?v2_cifar")
def cifar_shufflenet_v2(*, num_classes: int, in_channels: int = 3) -> nn.Module:
    """Builds ShuffleNetV2 for CIFAR with PyTorch's own (kaiming-uniform) initialisation."""
    return CifarShuffleNetV2(num_classes, in_channels)
