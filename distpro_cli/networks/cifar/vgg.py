"""VGG-8 … 19 for 32×32 images: five blocks, BatchNorm, one linear layer (as used by CRD)."""

from __future__ import annotations

import math

from torch import Tensor, nn

from distpro_cli.networks import register_network
from distpro_cli.networks.cifar.common import CifarNetwork, pool, stages

CHANNELS = (64, 128, 256, 512, 512)
CONVOLUTIONS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


class CifarVGG(CifarNetwork):
    """Five blocks of convolutions, max-pooled after the first three, averaged after the last."""

    classifier_name = "classifier"

    def __init__(self, depth: int, num_classes: int, in_channels: int) -> None:
        super().__init__(num_classes)
        for index, num_convolutions in enumerate(CONVOLUTIONS[depth]):
            setattr(self, f"block{index}", _block(in_channels, CHANNELS[index], num_convolutions))
            in_channels = CHANNELS[index]
        self.pool = nn.MaxPool2d(2)
        self.classifier = nn.Linear(512, num_classes)
        self.feature_info = stages(*((f"block{i}", CHANNELS[i], 2 ** min(i, 3)) for i in range(5)))
        _init(self)

    def forward(self, images_bchw: Tensor) -> Tensor:
        """Returns logits [B, num_classes] of images [B, C, H, W]; H, W ≥ 8."""
        feature = images_bchw
        for index in range(5):
            feature = self.get_submodule(f"block{index}")(feature)
            if index < 3:
                feature = self.pool(feature)
        logits: Tensor = self.classifier(pool(feature))
        return logits


def _block(in_channels: int, channels: int, num_convolutions: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(num_convolutions):
        layers += [
            nn.Conv2d(in_channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        ]
        in_channels = channels
    return nn.Sequential(*layers)


def _init(network: nn.Module) -> None:
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            fan_out = part.kernel_size[0] * part.kernel_size[1] * part.out_channels
            nn.init.normal_(part.weight, 0.0, math.sqrt(2.0 / fan_out))
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, 0.0, 0.01)
            nn.init.zeros_(part.bias)


@register_network(*(f"vgg{depth}_cifar" for depth in CONVOLUTIONS), pattern=r"vgg_?(?P<depth>8|11|13|16|19)_cifar")
def cifar_vgg(*, depth: int, num_classes: int, in_channels: int = 3) -> nn.Module:
    """Builds VGG-depth with BatchNorm for CIFAR."""
    return CifarVGG(depth, num_classes, in_channels)
