"""Default levels of networks that list no stages: torchvision's classification zoo, and shapes of one's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import get_model_builder, get_model_weights, list_models
from torchvision.models.maxvit import MaxVit

from distpro_cli.networks.build import build_network
from distpro_cli.networks.levels import TappedNetwork
from distpro_cli.recipe.schema import Data, Network
from tests.networks.stub import TASK

PLAIN = {"mean": [0.5] * 3, "std": [0.5] * 3}
MOST_PARAMETERS = 12e6  # larger ones have the modules of their smaller kin
SMALLEST_KIN = (
    "alexnet", "convnext_tiny", "efficientnet_v2_s", "inception_v3", "maxvit_t", "resnet34", "resnet50",
    "resnext50_32x4d", "swin_t", "swin_v2_t", "vgg11", "vgg11_bn", "vit_b_16",
)  # fmt: skip
ZOO = [
    name
    for name in list_models(module=torchvision.models)
    if name in SMALLEST_KIN or get_model_weights(name).DEFAULT.meta["num_params"] < MOST_PARAMETERS
]
SIZES = {"alexnet": 96, "inception_v3": 160}
# Where the halvings are not those of a ResNet: without padding, or strides of four at first.
REDUCTIONS = {
    "alexnet": [4, 9, 19, 48],
    "inception_v3": [4, 9, 20, 53],
    "squeezenet1_0": [2, 5, 9, 21],
    "squeezenet1_1": [2, 4, 9, 21],
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def zoo(name: str, size: int) -> nn.Module:
    if name == "maxvit_t":  # its windows fit images of 224 pixels alone
        return MaxVit((size, size), 16, 2, [16, 32, 64, 128], [1, 1, 1, 1], 16, 0.0, num_classes=5)
    options: dict[str, Any] = {"image_size": size} if name.startswith("vit") else {}
    options |= {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model: nn.Module = get_model_builder(name)(num_classes=5, **options)
    return model


@pytest.mark.parametrize("name", ZOO)
def test_the_zoo_of_torchvision(name: str) -> None:
    size = SIZES.get(name, 64)
    model = zoo(name, size)
    *stages, pooled = TappedNetwork(model, image_size=size, **PLAIN).levels
    assert (pooled.name, pooled.kind) == ("pooled", "vector")
    if name.startswith("vit"):
        assert [level.name for level in stages] == [f"encoder.layers.encoder_layer_{i}" for i in (2, 5, 8, 11)]
        assert {level.kind for level in stages} == {"tokens"}
        return
    assert {level.kind for level in stages} == {"map"} and len(stages) == 4
    cells = [level.shape[1] for level in stages]
    assert cells[-1] > 1 and cells == sorted(set(cells), reverse=True)
    assert [level.reduction for level in stages] == REDUCTIONS.get(name, [4, 8, 16, 32]), cells


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "densenet121", "regnet_x_400mf", "mobilenet_v2"])
def test_the_size_of_the_images_does_not_matter(name: str) -> None:
    """At 32 pixels the last map is a single cell, as the pooled one always is."""
    names = [
        [level.name for level in TappedNetwork(zoo(name, size), image_size=size, **PLAIN).levels] for size in (32, 96)
    ]
    assert names[0] == names[1]


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("resnet18", "layer1 layer2 layer3 layer4"),
        ("resnet50", "layer1 layer2 layer3 layer4"),
        ("efficientnet_b0", "features.2 features.3 features.5 features.8"),
        ("densenet121", "features.denseblock1 features.denseblock2 features.denseblock3 features.norm5"),
        ("swin_t", "features.1 features.3 features.5 permute"),
        ("shufflenet_v2_x0_5", "maxpool stage2 stage3 conv5"),
        ("regnet_x_400mf", "trunk_output.block1 trunk_output.block2 trunk_output.block3 trunk_output.block4"),
    ],
)
def test_names_of_the_zoo(name: str, names: str) -> None:
    *stages, _ = TappedNetwork(zoo(name, 64), image_size=64, **PLAIN).levels
    assert " ".join(level.name for level in stages) == names


def stage(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Squeezed(nn.Module):
    """A block that gates its channels with modules of its own, and goes down by two."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.expand, self.down = nn.Conv2d(inputs, outputs, 1), nn.Conv2d(outputs, outputs, 3, 2, 1)
        self.pool, self.gate = nn.AdaptiveAvgPool2d(1), nn.Conv2d(outputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(self.expand(x))
        return x * self.gate(self.pool(x)).sigmoid()


class Chain(nn.Module):
    """Modules one after the other, a mean, a linear layer."""

    def __init__(self, width: int, *modules: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)
        self.last = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return self.last(x.flatten(2).mean(2) if x.ndim == 4 else x.mean(1))


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True)


class Wrapped(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model

    def forward(self, x: Tensor) -> Any:
        return {"out": self.inner(x)}["out"]


class Embedding(nn.Module):
    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).flatten(2).transpose(1, 2)


class Merging(nn.Module):
    """Every four tokens become one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x.reshape(len(x), x.shape[1] // 4, -1))


def block(width: int) -> nn.Module:
    return nn.TransformerEncoderLayer(width, 2, 2 * width, batch_first=True)


OWN: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "a pool of one's own": (lambda: Chain(8, stage(3, 4), stage(4, 8), Mean()), ["parts.0", "parts.1"]),
    "avgpool of a window": (lambda: Chain(8, stage(3, 4), stage(4, 8), nn.AvgPool2d(8)), ["parts.0", "parts.1"]),
    "adaptive": (lambda: Chain(8, stage(3, 8), nn.AdaptiveAvgPool2d(1)), ["parts.0"]),
    "a head of convolutions": (
        lambda: Chain(8, stage(3, 4), stage(4, 8), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.ReLU()),
        ["parts.0", "parts.1"],
    ),
    "gates inside": (
        lambda: Chain(8, stage(3, 4), Squeezed(4, 6), Squeezed(6, 8), Mean()),
        ["parts.0", "parts.1", "parts.2"],
    ),
    "stages in one Sequential": (
        lambda: Chain(8, nn.Sequential(stage(3, 4), nn.Sequential(stage(4, 6), stage(6, 8))), Mean()),
        ["parts.0.0", "parts.0.1.0", "parts.0.1.1"],
    ),
    "wrapped": (lambda: Wrapped(Chain(8, stage(3, 4), stage(4, 8), Mean())), ["inner.parts.0", "inner.parts.1"]),
    "dropout": (lambda: Chain(8, stage(3, 4), stage(4, 8), nn.Dropout(0.5), Mean()), ["parts.0", "parts.1"]),
    "blocks of tokens": (
        lambda: Chain(8, Embedding(8, 8), *(block(8) for _ in range(6)), nn.LayerNorm(8)),
        [f"parts.{i}" for i in (1, 3, 4, 6)],
    ),
    "blocks in a Sequential behind a stem": (
        lambda: Chain(8, stage(3, 3), Embedding(4, 8), nn.Sequential(*(block(8) for _ in range(3))), nn.LayerNorm(8)),
        ["parts.2.0", "parts.2.1", "parts.2.2"],
    ),
    "a pyramid of tokens": (
        lambda: Chain(8, Embedding(4, 8), block(8), Merging(8), block(8), Merging(8), block(8), block(8)),
        ["parts.1", "parts.3", "parts.6"],
    ),
    "blocks of torch's own encoder": (
        lambda: Chain(8, Embedding(8, 8), nn.TransformerEncoder(block(8), 2, enable_nested_tensor=False)),
        ["parts.1.layers.0", "parts.1.layers.1"],
    ),
}


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.filterwarnings("ignore:.*nested_tensor")
def test_networks_of_ones_own(kind: str) -> None:
    build, names = OWN[kind]
    levels = TappedNetwork(build().eval(), image_size=32, **PLAIN).levels
    assert [level.name for level in levels] == [*names, "pooled"]


def test_timm_networks_keep_the_stages_that_they_list() -> None:
    model = timm.create_model("efficientnet_b0", num_classes=5)
    listed = [stage["module"] for stage in model.feature_info][-4:]
    assert [level.name for level in TappedNetwork(model, image_size=64, **PLAIN).levels] == [*listed, "pooled"]


@pytest.mark.parametrize(
    ("name", "size", "reductions"),
    [
        ("coat_tiny", 64, [4, 8, 16, 32]),
        ("crossvit_tiny_240", 240, [12, 17]),
        ("hrnet_w18_small", 64, [4, 8, 16, 32]),
        ("mvitv2_tiny", 64, [4, 8, 16, 32]),
        ("pit_ti_224", 224, [8, 16, 32]),
        ("selecsls42", 64, [8, 16, 32, 64]),
        ("tnt_s_patch16_224", 224, [16, 16, 16, 16]),
        ("tresnet_m", 64, [4, 8, 16, 32]),
        ("twins_svt_small", 64, [4, 8, 16, 32]),
    ],
)
def test_timm_networks_whose_listed_stages_cannot_be_tapped(name: str, size: int, reductions: list[int]) -> None:
    data = Data(name="folder", image_size=size, num_classes=5)
    *stages, pooled = build_network(Network(name=name), data, TASK).levels
    assert [level.reduction for level in stages] == reductions and pooled.name == "pooled"
