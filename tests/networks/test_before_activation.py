"""`feature: before-activation`: the tensor that goes into the activation, family by family."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distpro_cli.networks import NETWORKS
from distpro_cli.networks.cifar.common import shuffle_channels
from distpro_cli.networks.cifar.shufflenet_v2 import BasicUnit
from distpro_cli.networks.levels import TappedNetwork

PLAIN = {"mean": [0.0] * 3, "std": [1.0] * 3}
BEFORE = "before-activation"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def images(size: int = 32) -> Tensor:
    return torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(1))


def build(name: str) -> nn.Module:
    """A network of ours whose BatchNorms are no longer as drawn."""
    builder = NETWORKS.get(name)
    assert builder is not None
    model = builder(num_classes=5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.3)
            nn.init.normal_(module.running_mean, 0.0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def features_of(model: nn.Module, feature: str, training: bool = False, size: int = 32) -> dict[int, Tensor]:
    network = TappedNetwork(model, feature=feature, image_size=size, **PLAIN).train(training)
    _, features = network(images(size), levels=range(1, len(network.levels) + 1))
    return features


class WideByHand:
    """WRN from its state dict in functions that write nothing in place; keeps its own running statistics."""

    def __init__(self, model: nn.Module, depth: int, training: bool) -> None:
        self.state = {key: value.detach().clone() for key, value in model.state_dict().items()}
        self.state["conv1.weight"].requires_grad_()
        self.blocks, self.training = (depth - 4) // 6, training

    def norm(self, x: Tensor, name: str) -> Tensor:
        parts = [self.state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *parts, training=self.training, momentum=0.1)

    def convolve(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = self.state[f"{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def __call__(self, x: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """Returns logits, what goes into the ReLU behind each stage, and the pooled vector."""
        x = self.convolve(x, "conv1")
        before = []
        for stage in (1, 2, 3):
            for number in range(self.blocks):
                name, stride = f"block{stage}.layer.{number}", 2 if stage > 1 and number == 0 else 1
                normalised = self.norm(x, f"{name}.bn1")
                if stage > 1 and number == 0:
                    before.append(normalised)
                activated = F.relu(normalised)
                inner = self.convolve(activated, f"{name}.conv1", stride)
                inner = self.convolve(F.relu(self.norm(inner, f"{name}.bn2")), f"{name}.conv2")
                shortcut = f"{name}.convShortcut"
                x = inner + (self.convolve(activated, shortcut, stride) if f"{shortcut}.weight" in self.state else x)
        before.append(self.norm(x, "bn1"))
        pooled = F.relu(before[-1]).mean((2, 3))
        return F.linear(pooled, self.state["fc.weight"], self.state["fc.bias"]), before, pooled


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("name", "depth"), [("wrn_10_2", 10), ("wrn_16_1", 16)])
def test_wrn_is_tapped_after_the_next_batchnorm(name: str, depth: int, training: bool) -> None:
    model = build(name)
    by_hand = WideByHand(model, depth, training)
    untapped = copy.deepcopy(model).train(training)
    network = TappedNetwork(model, feature=BEFORE, image_size=32, **PLAIN).train(training)
    assert network.points == (
        "output of block2.layer.0.bn1",
        "output of block3.layer.0.bn1",
        "output of bn1",
        "input of fc",
    )
    logits, features = network(images(), levels=(1, 2, 3, 4))
    expected_logits, before, pooled = by_hand(images())
    torch.testing.assert_close(logits, expected_logits)
    for level, expected in enumerate((*before, pooled), start=1):
        torch.testing.assert_close(features[level], expected)
    assert all((features[level] < 0).any() for level in (1, 2, 3))
    sum(feature.square().mean() for feature in features.values()).backward()
    sum(feature.square().mean() for feature in (*before, pooled)).backward()
    torch.testing.assert_close(model.conv1.weight.grad, by_hand.state["conv1.weight"].grad, rtol=1e-4, atol=1e-5)
    assert torch.equal(untapped(images()), logits)
    for (key, buffer), other in zip(model.named_buffers(), untapped.buffers(), strict=True):
        assert torch.equal(buffer, other), key
        if "running" in key:
            torch.testing.assert_close(buffer, by_hand.state[key])


def test_the_forward_stops_at_the_next_batchnorm() -> None:
    network = TappedNetwork(build("wrn_16_1"), feature=BEFORE, image_size=32, **PLAIN).train()
    ran: list[str] = []
    for name, module in network.model.named_modules():
        module.register_forward_hook(lambda module, args, output, name=name: ran.append(name))
    _, features = network(images(), levels=[1], output=False)
    assert list(features) == [1] and ran[-1] == "block1" and "block2.layer.0.relu1" not in ran
    _, whole = network(images(), levels=[1, 3])
    assert torch.equal(features[1], whole[1])


ENDED_BY_A_RELU = ["resnet20", "resnet8x4", "vgg8_cifar", "vgg13_cifar", "resnet50_cifar"]
SHUFFLED = ["shufflenet_v1_cifar", "shufflenet_v2_cifar"]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ENDED_BY_A_RELU + SHUFFLED)
def test_the_others_are_tapped_before_the_last_relu_of_the_stage(name: str, training: bool) -> None:
    model = build(name)
    output = features_of(copy.deepcopy(model), "output", training)
    before = features_of(model, BEFORE, training)
    *stages, pooled = output
    assert len(stages) >= 3 and torch.equal(before[pooled], output[pooled])
    for level in stages:
        assert (before[level] < 0).any() and torch.equal(before[level].relu(), output[level])


def test_mobilenets_linear_bottlenecks_have_no_activation_and_are_tapped_as_they_come_out() -> None:
    model = build("mobilenet_v2_cifar")
    output, before = features_of(copy.deepcopy(model), "output"), features_of(model, BEFORE)
    assert all(torch.equal(before[level], output[level]) for level in output)


def test_shufflenet_v2_computes_what_it_does_with_the_relu_before_the_shuffle(monkeypatch: pytest.MonkeyPatch) -> None:
    sums: list[Tensor] = []

    def published(unit: BasicUnit, feature_bchw: Tensor) -> Tensor:
        passed, changed = feature_bchw.chunk(2, 1)
        out = unit.bn2(unit.conv2(F.relu(unit.bn1(unit.conv1(changed)))))
        out = unit.bn3(unit.conv3(out))
        sums.append(shuffle_channels(torch.cat([passed, out], 1), 2))
        return shuffle_channels(torch.cat([passed, F.relu(out)], 1), 2)

    model = build("shufflenet_v2_cifar").train()
    network = TappedNetwork(model, feature=BEFORE, image_size=32, **PLAIN).double()
    twin = copy.deepcopy(model)
    logits, features = network(images().double(), levels=(1, 2, 3))
    logits.square().sum().backward()
    monkeypatch.setattr(BasicUnit, "forward", published)
    expected = twin(images().double())
    assert torch.equal(logits, expected)
    ends = (sums[2], sums[9], sums[12])  # 3, 7 and 3 such units
    assert all(torch.equal(features[level], end) for level, end in enumerate(ends, start=1))
    expected.square().sum().backward()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-9)


def test_a_fused_norm_is_tapped_between_norm_and_activation() -> None:
    model = timm.create_model("resnetv2_50", num_classes=5).eval()
    network = TappedNetwork(model, feature=BEFORE, image_size=64, **PLAIN)
    assert network.points[0] == "input of stages.1.blocks.0.norm1.act" and network.points[3] == "input of norm.act"
    _, features = network(images(64), levels=(1, 2, 3, 4))
    x = model.stem(images(64))
    norms = [*(stage.blocks[0].norm1 for stage in list(model.stages)[1:]), model.norm]
    for level, (stage, norm) in enumerate(zip(model.stages, norms, strict=True), start=1):
        x = stage(x)
        expected = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        torch.testing.assert_close(features[level], expected)
        torch.testing.assert_close(features[level].relu(), norm(x))


class Behind(nn.Module):
    """A stage, and whatever modules follow before the head."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.stage = nn.Conv2d(3, 4, 3, 2, 1)
        self.rest = nn.ModuleList(modules)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage(x)
        for module in self.rest:
            x = module(x)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("modules", "point"),
    [
        ((nn.BatchNorm2d(4), nn.ReLU(inplace=True)), "output of rest.0"),
        ((nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.GELU()), "output of rest.1"),
        ((timm.layers.BatchNormAct2d(4),), "input of rest.0.act"),
        ((timm.layers.BatchNormAct2d(4, apply_act=False), nn.SiLU()), "output of rest.0"),
        ((timm.layers.GroupNormAct(4, 2),), "input of rest.0.act"),
        ((nn.ReLU(),), "output of stage"),
        ((nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.ReLU()), "output of stage"),
        ((nn.BatchNorm2d(4),), "output of stage"),
    ],
)
def test_nothing_but_normalisation_may_come_between(modules: Any, point: str) -> None:
    model = Behind(*modules).eval()
    network = TappedNetwork(model, levels=["stage"], feature=BEFORE, image_size=16, **PLAIN)
    assert network.points == (point,)
    x = model.stage(images(16))
    if point != "output of stage":
        for module in modules:
            if isinstance(module, (timm.layers.BatchNormAct2d, timm.layers.GroupNormAct)):
                module = copy.deepcopy(module)
                module.act = nn.Identity()
            if not isinstance(module, (nn.ReLU, nn.GELU, nn.SiLU)):
                x = module(x)
    assert torch.equal(network(images(16), levels=[1])[1][1], x)
