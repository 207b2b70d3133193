"""VGG-8 … 19 for 32×32 images: five blocks, BatchNorm, one linear layer (as used by CRD)."""

from __future__ import annotations

from torch import nn

from distpro_cli.networks import register_network
from distpro_cli.networks.cifar.common import CifarNetwork, init_normal, stages

CHANNELS = (64, 128, 256, 512, 512)
CONVOLUTIONS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


@register_network(*(f"vgg{depth}_cifar" for depth in CONVOLUTIONS), pattern=r"vgg_?(?P<depth>8|11|13|16|19)_cifar")
class CifarVGG(CifarNetwork):
    """Five blocks of convolutions, max-pooled after the first three, averaged after the last; images from 8×8."""

    def __init__(self, *, depth: int, num_classes: int, in_channels: int = 3) -> None:
        super().__init__(num_classes)
        for index, num_convolutions in enumerate(CONVOLUTIONS[depth]):
            self.add_module(f"block{index}", _block(in_channels, CHANNELS[index], num_convolutions))
            if index < 3:
                self.add_module(f"pool{index}", nn.MaxPool2d(2))
            in_channels = CHANNELS[index]
        self.classifier = nn.Linear(512, num_classes)
        self.feature_info = stages(*((f"block{i}", CHANNELS[i], 2 ** min(i, 3)) for i in range(5)))
        init_normal(self)


def _block(in_channels: int, channels: int, num_convolutions: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(num_convolutions):
        layers += [nn.Conv2d(in_channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
        in_channels = channels
    return nn.Sequential(*layers)
