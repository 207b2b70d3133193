"""Taps: what is named is what is seen, the network itself is left alone, and nothing runs in vain."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distpro_cli.networks.build import build_network
from distpro_cli.networks.levels import TappedNetwork
from distpro_cli.recipe.schema import Data, Network
from tests.networks.stub import TASK

PLAIN = {"mean": [0.0] * 3, "std": [1.0] * 3}
DATA = Data(name="folder", image_size=32, num_classes=10)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def images(size: int = 32, batch: int = 3) -> Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def tapped(network: TappedNetwork, size: int = 32) -> dict[int, Tensor]:
    _, features = network(images(size), levels=range(1, len(network.levels) + 1))
    return features


class InPlace(nn.Module):
    """Three features, each overwritten by what follows it; `inplace=False` computes the same without."""

    def __init__(self, inplace: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.inplace = inplace
        self.first = nn.Conv2d(3, 4, 3, 2, 1)
        self.act = nn.ReLU(inplace=inplace)
        self.second = nn.Conv2d(4, 4, 3, 2, 1)
        self.third = nn.Conv2d(4, 4, 3, 1, 1)
        self.drop = nn.Dropout(dropout, inplace=inplace)
        self.fourth = nn.Conv2d(4, 6, 3, 2, 1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x))
        x = self.second(x)
        x = F.relu_(x) if self.inplace else F.relu(x)
        y = self.third(x)
        if self.inplace:
            y += x
        else:
            y = y + x
        x = self.drop(self.fourth(y))
        return self.fc(x.mean((2, 3)))


LEVELS = ["first", "second", "third", "fourth"]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("feature", ["output", "before-activation"])
def test_in_place_writes_do_not_reach_the_taps(feature: str, training: bool) -> None:
    model = InPlace(inplace=True)
    twin = InPlace(inplace=False)
    twin.load_state_dict(model.state_dict())
    network = TappedNetwork(model, levels=LEVELS, feature=feature, image_size=32, **PLAIN).train(training)
    features = tapped(network)
    first = twin.first(images())
    second = twin.second(F.relu(first))
    third = twin.third(F.relu(second))
    fourth = twin.fourth(third + F.relu(second))
    for level, expected in enumerate((first, second, third, fourth), start=1):
        assert torch.equal(features[level], expected), LEVELS[level - 1]
    assert (features[1] < 0).any() and (features[2] < 0).any()
    sum(feature.square().mean() for feature in features.values()).backward()
    sum(feature.square().mean() for feature in (first, second, third, fourth)).backward()
    assert torch.allclose(model.first.weight.grad, twin.first.weight.grad, rtol=1e-5, atol=1e-7)


def test_dropout_that_writes_in_place_in_training_only() -> None:
    model = InPlace(inplace=True, dropout=0.5)
    network = TappedNetwork(model, levels=["fourth"], image_size=32, **PLAIN).train()
    seen = []
    model.fourth.register_forward_hook(lambda module, args, output: seen.append(output.clone()))
    assert torch.equal(tapped(network)[1], seen[0])


@pytest.mark.parametrize("name", ["resnet18", "regnetx_002"])
def test_before_and_after_activation_of_a_timm_network(name: str) -> None:
    model = timm.create_model(name, num_classes=10, zero_init_last=False).eval()
    copies = [copy.deepcopy(model) for _ in range(3)]
    before, after, output = (
        tapped(TappedNetwork(each, feature=feature, image_size=64, **PLAIN), 64)
        for each, feature in zip(copies, ("before-activation", "after-activation", "output"), strict=True)
    )
    for level in range(1, 5):
        assert (before[level] < 0).any()
        assert torch.equal(before[level].relu(), after[level])
        assert torch.equal(after[level], output[level])
    if name == "resnet18":
        stem = model.maxpool(model.act1(model.bn1(model.conv1(images(64)))))
        block, out = model.layer1[1], model.layer1[0](stem)
        expected = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(out))))) + out
        assert torch.equal(before[1], expected)


def test_pre_activation_network_is_tapped_at_the_relu_that_follows() -> None:
    network = build_network(Network(name="wrn_10_1", feature="after-activation"), DATA, TASK).eval()
    features = tapped(network)
    model, data = network.model, (images() - network.mean) / network.std
    for level, following in enumerate((model.block2.layer[0].bn1, model.block3.layer[0].bn1, model.bn1), start=1):
        data = getattr(model, f"block{level}")(model.conv1(data) if level == 1 else data)
        assert torch.equal(features[level], F.relu(following(data)))


def test_fused_norm_and_activation_is_seen_through() -> None:
    model = timm.create_model("densenet121", num_classes=5).eval()
    network = TappedNetwork(model, feature="after-activation", image_size=64, **PLAIN)
    with torch.no_grad():
        features = tapped(network, 64)
        raw = model.features.denseblock1(model.features.pool0(model.features.norm0(model.features.conv0(images(64)))))
        assert torch.equal(features[1], model.features.transition1.norm(raw))


def test_the_forward_stops_after_the_deepest_wanted_level() -> None:
    network = build_network(Network(name="resnet8"), DATA, TASK).train()
    ran: list[str] = []
    for name, module in network.model.named_children():
        module.register_forward_pre_hook(lambda module, args, name=name: ran.append(name))
    logits, features = network(images(), levels={1, 2}, output=False)
    assert logits is None and sorted(features) == [1, 2] and ran[-1] == "layer2" and "layer3" not in ran
    ran.clear()
    network(images(), levels={4}, output=False)
    assert "layer3" in ran and "fc" not in ran
    ran.clear()
    assert network(images(), output=False) == (None, {}) and ran == []


def test_logits_can_be_a_level() -> None:
    network = build_network(Network(name="resnet8", levels=["layer3", "logits"]), DATA, TASK).eval()
    assert (network.levels[1].kind, network.levels[1].shape) == ("logits", (10,))
    logits, features = network(images(), levels=(1, 2))
    assert features[2] is logits
    none, features = network(images(), levels=(2,), output=False)
    assert none is None and torch.equal(features[2], logits)


def test_images_are_normalised_and_the_model_is_untouched() -> None:
    model = timm.create_model("resnet18", num_classes=10).train()
    before = copy.deepcopy(model.state_dict())
    random_state = torch.get_rng_state()
    network = TappedNetwork(model, mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7], image_size=64)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.state_dict().keys() == before.keys() and all(module.training for module in model.modules())
    assert all(torch.equal(model.state_dict()[key], before[key]) for key in before)
    assert set(network.state_dict()) == {f"model.{key}" for key in before}
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    network.eval()
    assert torch.equal(network(images(64))[0], model((images(64) - mean) / std))
    assert network.num_parameters == sum(parameter.numel() for parameter in model.parameters())


def test_deep_copies_have_taps_of_their_own() -> None:
    network = build_network(Network(name="resnet8"), DATA, TASK).eval()
    twin = copy.deepcopy(network)
    nn.init.zeros_(twin.model.conv1.weight)
    assert not torch.equal(tapped(network)[1], tapped(twin)[1])
    assert torch.equal(tapped(network)[1], tapped(network)[1])


def test_called_twice_in_a_step_under_autocast_and_channels_last() -> None:
    network = build_network(Network(name="wrn_10_1"), DATA, TASK).train().to(memory_format=torch.channels_last)
    inputs = images().to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        logits, first = network(inputs, levels=(1, 4))
        _, second = network(inputs * 0.5, levels=(1,), output=False)
    assert logits is not None and logits.dtype == torch.bfloat16
    assert first[1].is_contiguous(memory_format=torch.channels_last) and not torch.equal(first[1], second[1])
    (logits.float().sum() + first[1].float().mean() + second[1].float().mean()).backward()
    assert network.model.conv1.weight.grad is not None


def test_inference_mode_works() -> None:
    network = build_network(Network(name="resnet8"), DATA, TASK).eval()
    with torch.inference_mode():
        assert len(tapped(network)) == 4


@pytest.mark.parametrize(
    ("name", "size", "kinds", "reductions"),
    [
        ("mobilenetv3_small_050", 64, "map map map map vector", [4, 8, 16, 32, None]),
        ("vgg11_bn", 32, "map map map map vector", [4, 8, 16, 32, None]),
        ("convnext_atto", 64, "map map map map vector", [4, 8, 16, 32, None]),
        ("vit_tiny_patch16_224", 224, "tokens tokens tokens tokens vector", [16, 16, 16, 16, None]),
        ("swin_tiny_patch4_window7_224", 64, "map map map map vector", [4, 8, 16, 32, None]),
    ],
)
def test_default_levels_of_timm_networks(name: str, size: int, kinds: str, reductions: list[int | None]) -> None:
    data = Data(name="folder", image_size=size, num_classes=7)
    network = build_network(Network(name=name), data, TASK).eval()
    assert " ".join(level.kind for level in network.levels) == kinds
    assert [level.reduction for level in network.levels] == reductions
    assert [(level.number, level.count) for level in network.levels] == [(i, 5) for i in range(1, 6)]
    with torch.no_grad():
        features = tapped(network, size)
    assert [tuple(feature.shape[1:]) for feature in features.values()] == [level.shape for level in network.levels]


def test_equally_deep_blocks_are_spaced_and_swin_is_channels_first() -> None:
    data = Data(name="folder", image_size=224, num_classes=7)
    vit = build_network(Network(name="vit_tiny_patch16_224", levels=[2, 5, -4, 11, "pooled"]), data, TASK)
    assert [level.name for level in vit.levels] == ["blocks.2", "blocks.5", "blocks.8", "blocks.11", "pooled"]
    assert vit.levels[0].shape == (197, 192)
    swin = build_network(Network(name="swin_tiny_patch4_window7_224"), Data(image_size=64, num_classes=7), TASK).eval()
    assert swin.levels[0].shape == (96, 16, 16)


@pytest.mark.parametrize(
    ("name", "options", "tokens", "prefix", "grid", "reduction"),
    [
        ("vit_tiny_patch16_224", {}, 5, 1, (2, 2), 16),
        # Behind five tokens that are no row of the grid, and a number of tokens that is a square itself.
        ("vit_tiny_patch16_224", {"reg_tokens": 4, "img_size": 64}, 21, 5, (4, 4), 16),
        ("vit_tiny_patch16_224", {"reg_tokens": 4}, 9, 5, (2, 2), 16),
        ("vit_tiny_patch16_224", {"patch_size": (16, 8)}, 9, 1, (2, 4), 16),
        ("deit_tiny_distilled_patch16_224", {}, 6, 2, (2, 2), 16),
        ("mixer_s32_224", {}, 1, 0, (1, 1), 32),
    ],
)
def test_prefix_and_grid_are_as_timm_states_them(
    name: str, options: dict[str, Any], tokens: int, prefix: int, grid: tuple[int, int], reduction: int
) -> None:
    size = options.get("img_size", 32)
    model = timm.create_model(name, num_classes=5, **{"img_size": size, **options})
    *blocks, pooled = TappedNetwork(model, image_size=size, **PLAIN).levels
    for level in blocks:
        found = (level.kind, level.shape[0], level.prefix, level.grid, level.reduction)
        assert found == ("tokens", tokens, prefix, grid, reduction)
    assert (pooled.kind, pooled.prefix, pooled.grid) == ("vector", 0, (1, 1))


def test_the_grid_of_tokens_before_the_class_token_joins_them() -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=64)
    (level,) = TappedNetwork(model, levels=["patch_embed"], image_size=64, **PLAIN).levels
    assert (level.shape[0], level.prefix, level.grid) == (16, 0, (4, 4))


class Tokens(nn.Module):
    """Tokens that say nothing of their grid, or something that is not true of them."""

    def __init__(self, num_tokens: int, **stated: Any) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.block, self.head = nn.Linear(3, 4), nn.Linear(4, 5)
        for name, value in stated.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)[:, : self.num_tokens]
        return self.head(self.block(tokens).mean(1))


@pytest.mark.parametrize(
    ("num_tokens", "prefix", "grid", "reduction"), [(15, 0, None, None), (18, 2, (4, 4), 4), (21, 0, None, None)]
)
def test_other_tokens_are_guessed(
    num_tokens: int, prefix: int, grid: tuple[int, int] | None, reduction: int | None
) -> None:
    class PatchEmbed(nn.Module):
        grid_size = (7, 7)

    for stated in ({}, {"num_prefix_tokens": 5, "patch_embed": PatchEmbed()}, {"patch_embed": nn.Identity()}):
        (level,) = TappedNetwork(Tokens(num_tokens, **stated), levels=["block"], image_size=16, **PLAIN).levels
        assert (level.prefix, level.grid, level.reduction) == (prefix, grid, reduction)
