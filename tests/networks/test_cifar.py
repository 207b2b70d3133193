"""The CIFAR families: sizes as in the literature, names, stages."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from distpro_cli.errors import DistproError
from distpro_cli.networks import NETWORKS
from distpro_cli.networks.levels import TappedNetwork

# Millions of parameters for 100 classes, as CRD (arXiv 1910.10699) and the families' own papers state them.
LITERATURE_MILLIONS = {
    "wrn_16_2": 0.70,
    "wrn_40_1": 0.57,
    "wrn_40_2": 2.26,
    "resnet20": 0.28,
    "resnet32": 0.47,
    "resnet56": 0.86,
    "resnet110": 1.74,
    "resnet8x4": 1.23,
    "resnet32x4": 7.43,
    "vgg8_cifar": 3.97,
    "vgg13_cifar": 9.46,
    "mobilenet_v2_cifar": 0.81,
    "shufflenet_v1_cifar": 0.95,
    "shufflenet_v2_cifar": 1.36,
    "resnet50_cifar": 23.71,
}
SMALL = ["wrn_10_1", "resnet8", "resnet8x4", "vgg8_cifar", "resnet50_cifar"]
MOBILE = ["mobilenet_v2_cifar", "shufflenet_v1_cifar", "shufflenet_v2_cifar"]


def build(name: str, **options: object) -> nn.Module:
    builder = NETWORKS.get(name)
    assert builder is not None
    return builder(num_classes=100, **options)


@pytest.mark.parametrize("name", LITERATURE_MILLIONS)
def test_parameter_count_is_the_literatures(name: str) -> None:
    with torch.device("meta"):
        model = build(name)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert round(millions, 2) == LITERATURE_MILLIONS[name]


@pytest.mark.parametrize("name", SMALL + MOBILE)
def test_stages_are_as_stated(name: str) -> None:
    model = build(name)
    network = TappedNetwork(model, mean=[0.5] * 3, std=[0.5] * 3, image_size=32)
    stated = [(entry["module"], entry["num_chs"], entry["reduction"]) for entry in model.feature_info][-4:]
    found = [(level.name, level.shape[0], level.reduction) for level in network.levels[:-1]]
    assert found == stated
    assert network.levels[-1].name == "pooled"
    assert network.levels[-1].shape == (model.get_classifier().in_features,)
    assert model.get_classifier().out_features == model.num_classes == 100


def test_wrn_has_four_levels_so_that_the_lower_set_has_ten_pathways() -> None:
    network = TappedNetwork(build("wrn_16_2"), mean=[0.5] * 3, std=[0.5] * 3, image_size=32)
    assert [level.name for level in network.levels] == ["block1", "block2", "block3", "pooled"]


@pytest.mark.parametrize("spelling", ["WRN-16-2", "wrn_16_2", "wrn16_2"])
def test_usual_spellings(spelling: str) -> None:
    builder = NETWORKS.get(spelling)
    assert builder is not None and builder.keywords == {"depth": 16, "width": 2}


def test_no_name_of_timm_is_taken() -> None:
    assert [name for name in timm.list_models() if NETWORKS.get(name)] == []
    assert {"resnet_8x4", "resnet8x4"} <= {name for name in ("resnet_8x4", *NETWORKS.names()) if NETWORKS.get(name)}


def test_wrn_depth_rule() -> None:
    with pytest.raises(DistproError, match=r"wrn_18_2: the depth of a WRN is 6n \+ 4 .*found 18; take wrn_16_2"):
        build("wrn_18_2")
    with pytest.raises(DistproError, match="widening factor is at least 1"):
        build("wrn_16_0")


def test_convolutions_start_by_kaiming() -> None:
    torch.manual_seed(0)
    weight = build("wrn_16_2").get_submodule("block3.layer.1.conv2").weight
    assert weight.std().item() == pytest.approx((2 / (weight.shape[0] * 9)) ** 0.5, rel=0.02)
