"""A cheaper frozen teacher: the same function where BatchNorm is folded, the same bits where weights are rounded."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d
from torch import Tensor, nn
from torchvision.ops.misc import FrozenBatchNorm2d

from distpro_cli.networks.frozen import fold_batch_norm, round_once
from distpro_cli.networks.levels import TappedNetwork
from distpro_cli.training.device import autocast
from tests.helpers import CPU


def tapped(model: nn.Module, image_size: int = 32, **options: object) -> TappedNetwork:
    """Returns a frozen network whose BatchNorm has statistics, scales and shifts that are anything but 0 and 1."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.bias):
                nn.init.normal_(tensor)  # type: ignore[arg-type]
            for tensor in (module.running_var, module.weight):
                nn.init.uniform_(tensor, 0.5, 2.0)  # type: ignore[arg-type]
    network = TappedNetwork(model, mean=[0.4] * 3, std=[0.2] * 3, image_size=image_size, **options)  # type: ignore[arg-type]
    return network.eval().requires_grad_(False)


@torch.no_grad()
def seen(network: TappedNetwork, image_size: int = 32) -> list[Tensor]:
    """Returns the output and all features of some images."""
    images_bchw = torch.rand(3, 3, image_size, image_size, generator=torch.Generator().manual_seed(1))
    output, features = network(images_bchw.to(network.mean.dtype), levels=[level.number for level in network.levels])
    return [output, *features.values()]


def timm_model(name: str) -> nn.Module:
    model: nn.Module = timm.create_model(name, num_classes=5)
    return model


@pytest.mark.parametrize("feature", ["output", "before-activation"])
@pytest.mark.parametrize(
    ("name", "least"), [("resnet10t", 12), ("mobilenetv3_small_050", 34), ("densenet121", 59), ("dla46x_c", 48)]
)
def test_folded_networks_are_the_same_function(name: str, least: int, feature: str) -> None:
    network = tapped(timm_model(name), feature=feature, logits=True).double()
    expected = seen(network)
    assert fold_batch_norm(network, 32) >= least
    for ours, theirs in zip(seen(network), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9 * float(theirs.abs().max()))


class Branches(nn.Module):
    """Convolutions of which one BatchNorm, or more than that, reads what they write."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Sequential(nn.Conv2d(3, 4, 3))
        self.twice, self.shared = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.with_activation = nn.Conv2d(4, 4, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(4))
        self.activated = BatchNormAct2d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, images_bchw: Tensor) -> Tensor:
        first = self.norms[0](self.plain(images_bchw))
        twice = self.twice(first)
        second = self.norms[1](twice) + twice  # the sum reads it, too
        third = self.norms[2](self.shared(second)) + self.norms[3](self.shared(first))
        last: Tensor = self.activated(self.with_activation(third))
        pooled: Tensor = self.head(last.mean((2, 3)))
        return pooled


def test_only_what_one_batch_norm_reads_is_folded() -> None:
    network = tapped(Branches(), levels=["norms.0", "activated"], logits=True).double()
    expected = seen(network)
    assert fold_batch_norm(network, 32) == 2
    left = [name for name, module in network.model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert left == ["norms.1", "norms.2", "norms.3"]
    torch.testing.assert_close(seen(network), expected, rtol=1e-12, atol=1e-12)
    assert fold_batch_norm(network, 32) == 0


@pytest.mark.parametrize("level", ["plain", "plain.0"])
def test_a_level_between_convolution_and_batch_norm_stays(level: str) -> None:
    network = tapped(Branches(), levels=[level]).double()
    expected = seen(network)
    assert fold_batch_norm(network, 32) == 1
    assert all(map(torch.equal, seen(network)[1:], expected[1:]))


def test_batch_norm_that_was_frozen_before_is_folded() -> None:
    norms = FrozenBatchNorm2d(4), FrozenBatchNormAct2d(6)
    for norm in norms:
        for tensor in norm.buffers():
            nn.init.uniform_(tensor, 0.5, 2.0)
    parts = nn.Conv2d(3, 4, 3, bias=False), norms[0], nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2), norms[1]
    network = tapped(nn.Sequential(*parts), levels=["1", "2", "4"]).double()
    expected = seen(network)
    assert fold_batch_norm(network, 32) == 2 and not list(norms[0].buffers())
    torch.testing.assert_close(seen(network), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224.untrained", "convnext_atto", "mobilenetv3_small_050"])
def test_weights_rounded_once_change_no_bit(name: str) -> None:
    options = {"img_size": 32, "patch_size": 8, "depth": 2} if name.startswith("vit") else {}
    network = tapped(timm.create_model(name.partition(".")[0], num_classes=5, **options))
    with autocast(CPU, "bfloat16"):
        expected = seen(network)
    held = sum(parameter.nbytes for parameter in network.parameters())
    assert round_once(network, 32, lambda: autocast(CPU, "bfloat16")) > 10
    with autocast(CPU, "bfloat16"):
        assert all(map(torch.equal, seen(network), expected))
    assert sum(parameter.nbytes for parameter in network.parameters()) < 0.6 * held


class ReadsItsWeight(nn.Sequential):
    """Does more with a weight than to multiply by it."""

    def forward(self, images_bchw: Tensor) -> Tensor:
        logits: Tensor = super().forward(images_bchw)
        return logits.float() + self[2].weight.float().norm()


class MixesTypes(nn.Sequential):
    """Cannot take a weight of half precision."""

    def forward(self, images_bchw: Tensor) -> Tensor:
        logits: Tensor = super().forward(images_bchw)
        with torch.autocast("cpu", enabled=False):
            return logits.float() @ self[2].weight[:, :5]


@pytest.mark.parametrize("kind", [ReadsItsWeight, MixesTypes])
def test_weights_whose_rounding_would_show_stay(kind: type[nn.Sequential]) -> None:
    parts = nn.Conv2d(3, 8, 3), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(8, 5)
    network = tapped(kind(*parts), levels=["0"])
    weights = copy.deepcopy(network.state_dict())
    assert round_once(network, 32, lambda: autocast(CPU, "bfloat16")) == 0
    for name, tensor in network.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, weights[name])
