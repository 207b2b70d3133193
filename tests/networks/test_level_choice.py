"""Which levels a network has: defaults of networks that list no stages, and ways to name them wrongly."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from distpro_cli.errors import DistproError
from distpro_cli.networks.levels import TappedNetwork


class Own(nn.Module):
    """A network without feature info."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 1, 1)
        self.down = nn.Conv2d(4, 8, 3, 2, 1)
        self.same = nn.Conv2d(8, 8, 3, 1, 1)
        self.deep = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8))
        self.unused = nn.Conv2d(8, 8, 1)
        self.pair = Pair()
        self.act = nn.ReLU()
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.same(self.act(self.down(self.act(self.stem(x)))))
        x, _ = self.pair(F.relu(self.deep(x)))
        return self.head(x.mean((2, 3)))


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class ConvHead(nn.Module):
    """Features in one Sequential, a convolution as classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(True), nn.Conv2d(4, 4, 3, 1, 1), nn.ReLU(True), nn.MaxPool2d(2)
        )
        self.classifier = nn.Conv2d(4, 7, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x)).mean((2, 3))


class FunctionalStage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x), inplace=True)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stage = FunctionalStage()
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stage(x).mean((2, 3)))


def tap(model: nn.Module, levels: list[int | str] | None = None, feature: str = "output") -> TappedNetwork:
    return TappedNetwork(model, levels=levels, feature=feature, mean=[0.5] * 3, std=[0.5] * 3, image_size=16)


def test_stages_of_a_network_without_feature_info() -> None:
    levels = tap(Own()).levels
    assert [(level.name, level.kind, level.shape) for level in levels] == [
        ("stem", "map", (4, 16, 16)),
        ("same", "map", (8, 8, 8)),
        ("deep", "map", (8, 4, 4)),
        ("pooled", "vector", (8,)),
    ]


def test_a_sequential_is_looked_into_and_a_convolution_may_classify() -> None:
    levels = tap(ConvHead()).levels
    assert [level.name for level in levels] == ["features.3", "features.4", "pooled"]
    assert levels[-1].shape == (4,)


def test_a_functional_activation_counts_as_after_and_cannot_be_looked_before() -> None:
    assert tap(Functional(), ["stage"], "after-activation").levels[0].shape == (6, 8, 8)
    with pytest.raises(DistproError, match=r"level stage: it ends in an activation that is not a module .*F\.relu"):
        tap(Functional(), ["stage"], "before-activation")


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (["donw"], r"no level 'donw' \(did you mean 'down'\?\)\. There are: pooled, logits, stem, .*deep\.1"),
        (["unused"], "level unused is not a module of the network that runs in its forward"),
        (["act"], "level act runs 2 times in a forward"),
        (["pair"], "level pair returns a tuple of 2"),
        (["same", "down"], "from shallow to deep, but same comes after down"),
        (["logits", "pooled"], "from shallow to deep, but logits comes after pooled"),
        (["down", "down"], "level down is given twice"),
        ([12], r"there is no level 12: it has \d+ stages"),
        ([], "levels is empty"),
    ],
)
def test_wrong_levels(levels: list[int | str], message: str) -> None:
    with pytest.raises(DistproError, match=message):
        tap(Own(), levels)


def test_no_activation_to_tap_after() -> None:
    with pytest.raises(DistproError, match="level same: no activation ends or follows it"):
        tap(Own(), ["same"], "after-activation")


def test_indices_count_the_stages_of_feature_info() -> None:
    model = timm.create_model("resnet18", num_classes=5)
    levels = TappedNetwork(model, levels=[1, -1], mean=[0.5] * 3, std=[0.5] * 3, image_size=32).levels
    assert [level.name for level in levels] == ["layer1", "layer4"]


def test_stages_that_are_no_modules_are_found_and_may_be_named() -> None:
    model = timm.create_model("hrnet_w18_small", num_classes=5)
    named: list[int | str] = ["layer1", "incre_modules.3", "pooled"]
    levels = TappedNetwork(model, levels=named, mean=[0.5] * 3, std=[0.5] * 3, image_size=64).levels
    assert [level.reduction for level in levels] == [4, 32, None]


def test_images_that_do_not_fit() -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5)
    with pytest.raises(DistproError, match="VisionTransformer cannot take images of 16×16 pixels and 3 channels"):
        tap(model)


def test_a_network_without_modules_inside() -> None:
    with pytest.raises(DistproError, match=r"Conv2d: no stages found; set levels to module names\. There are: none"):
        tap(nn.Conv2d(3, 4, 3))


class Returning(nn.Module):
    """A stem, a stage, and whatever `kind` names as output."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.stem = nn.Conv2d(3, 4, 3, 2, 1)
        self.stage = nn.Conv2d(4, 8, 3, 2, 1)
        self.depth = nn.ConvTranspose2d(8, 1, 4, 4)
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.stage(self.stem(x))
        if self.kind == "numbers":
            return self.head(x.mean((2, 3))).squeeze(1)
        depth = self.depth(x)
        return {"map": depth, "dict": {"depth": depth, "boxes": [x]}, "list": [x, depth]}[self.kind]


@pytest.mark.parametrize("kind", ["map", "dict", "list", "numbers"])
def test_a_network_may_return_anything(kind: str) -> None:
    model = Returning(kind).eval()
    network = tap(model)
    names = [level.name for level in network.levels]
    assert names == ["stem", "stage", *(["pooled"] if kind == "numbers" else [])]
    images = torch.rand(2, 3, 16, 16)
    output, features = network(images, levels=[2])
    expected = model((images - 0.5) / 0.5)
    assert type(output) is type(expected)
    assert all(map(torch.equal, tree_leaves(output), tree_leaves(expected)))
    assert features[2].shape == (2, 8, 4, 4)
    model.depth.register_forward_pre_hook(lambda *_: pytest.fail("ran beyond the deepest wanted level"))
    nothing, stopped = network(images, levels=[1, 2], output=False)
    assert nothing is None and torch.equal(stopped[2], features[2])


class Dense(nn.Module):
    """Tokens in equal blocks that end in linear layers, given back as a map."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, 4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = tokens + block(tokens)
        return tokens.transpose(1, 2).reshape(-1, 8, 4, 4)


def test_a_linear_layer_inside_a_dense_network_is_no_classifier() -> None:
    network = TappedNetwork(Dense(), levels=[0, -1], mean=[0.5] * 3, std=[0.5] * 3, image_size=16)
    assert [level.name for level in network.levels] == ["blocks.0", "blocks.4"]
    assert [level.name for level in tap(Dense()).levels] == [f"blocks.{number}" for number in (0, 1, 2, 4)]
    with pytest.raises(DistproError, match="Dense: no classifier found, so there is no pooled vector; name a module"):
        tap(Dense(), ["embed", "pooled"])


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("map", r"a tensor of shape \[2, 1, 16, 16\]"),
        ("dict", r"a dict of 2 \(depth, boxes\)"),
        ("list", "a list of 2"),
        ("numbers", r"a tensor of shape \[2\]"),
    ],
)
def test_no_logits_where_the_output_is_none(kind: str, what: str) -> None:
    message = f"Returning: there is no level logits, because the network returns {what} and not a tensor"
    with pytest.raises(DistproError, match=message):
        tap(Returning(kind), ["stage", "logits"])
    with pytest.raises(DistproError, match=message):
        TappedNetwork(Returning(kind), logits=True, mean=[0.5] * 3, std=[0.5] * 3, image_size=16)


class PairInTraining(Functional):
    """Logits, and in training a second output, as networks with auxiliary heads have."""

    def forward(self, x: Tensor) -> Any:
        return (super().forward(x), x) if self.training else super().forward(x)


def test_logits_that_are_there_in_eval_mode_only() -> None:
    network = tap(PairInTraining(), ["stage", "logits"]).train()
    images = torch.rand(2, 3, 16, 16)
    assert isinstance(network(images, levels=[1])[0], tuple)
    with pytest.raises(DistproError, match=r"level 2 \(logits\) is not there: in this mode .* returns a tuple of 2"):
        network(images, levels=[2])
    assert network.eval()(images, levels=[2])[1][2].shape == (2, 5)
