"""Costs against sums done by hand, and the report of a whole recipe."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distpro_cli.costs.complexity import network_cost, pathway_costs, recipe_report, shared_costs
from distpro_cli.networks.levels import TappedNetwork
from distpro_cli.pathways.module import Pathways
from distpro_cli.pathways.transforms import TRANSFORMS, Transform, register_transform
from distpro_cli.process.pathway import LevelInfo, PathwayInfo
from distpro_cli.recipe.schema import Recipe
from tests.pathways.levels import level

FLOAT = 4


def pathways_of(student: LevelInfo, teacher: LevelInfo, transform: str, distance: str) -> Pathways:
    return Pathways([PathwayInfo("1-1", teacher, student, transform, distance)])


def test_one_convolution_by_hand() -> None:
    (cost,) = pathway_costs(pathways_of(level(6, 8, 8), level(12, 8, 8), "conv1", "mse"))
    assert cost.parameters == 6 * 12 + 2 * 12
    assert cost.multiply_adds == 6 * 12 * 64
    # BatchNorm keeps the convolution's output and, shared by two images, mean and deviation of 12 channels;
    # MSE keeps both sides. The student's feature is the student's to keep.
    assert cost.backward_bytes == FLOAT * (3 * 12 * 64 + 2 * 12 // 2)


def test_two_convolutions_at_the_smaller_resolution() -> None:
    (cost,) = pathway_costs(pathways_of(level(6, 16, 16), level(12, 4, 4), "conv2", "hcl"))
    assert cost.parameters == 6 * 6 + 2 * 6 + 9 * 6 * 12 + 2 * 12
    assert cost.multiply_adds == (6 * 6 + 9 * 6 * 12) * 16


def test_the_gated_block_by_hand() -> None:
    (cost,) = pathway_costs(pathways_of(level(6, 4, 4), level(12, 8, 8), "gated", "hcl"))
    assert cost.parameters == 9 * 6 * 6 + 2 * 6 + 6 + 9 * 6 * 6 + 2 * 6 + 9 * 6 * 12 + 2 * 12
    assert cost.multiply_adds == (9 * 6 * 6 + 6 + 9 * 6 * 6) * 16 + 9 * 6 * 12 * 64


def test_identity_keeps_the_difference_and_its_pools() -> None:
    (cost,) = pathway_costs(pathways_of(level(6, 8, 8), level(6, 8, 8), "identity", "hcl"))
    (uneven,) = pathway_costs(pathways_of(level(6, 7, 7), level(6, 7, 7), "identity", "hcl"))
    assert uneven.multiply_adds == 0
    assert (cost.parameters, cost.multiply_adds) == (0, 0)
    assert cost.backward_bytes == FLOAT * 6 * (64 + 16 + 4 + 1)


def test_a_shared_chain_by_hand() -> None:
    student, teacher = [level(6, 8, 8), level(10, 4, 4, number=2)], [level(12, 8, 8), level(20, 4, 4, number=2)]
    infos = [PathwayInfo(f"{n + 1}-{n + 1}", teacher[n], student[n], "review", "hcl", {"mid": 5}, {}) for n in range(2)]
    pathways = Pathways(infos)
    (chain,) = shared_costs(pathways)
    assert chain.parameters == 5 * (6 + 10) + 2 * 2 * 5 + (10 * 2 + 2)
    # The half of the gate that weighs the deeper map is run before it is repeated.
    assert chain.multiply_adds == 5 * 6 * 64 + 5 * 10 * 16 + 5 * 2 * 64 + 5 * 2 * 16
    for cost, channels, cells in zip(pathway_costs(pathways), (12, 20), (64, 16), strict=True):
        assert (cost.parameters, cost.multiply_adds) == (9 * 5 * channels + 2 * channels, 9 * 5 * channels * cells)


def test_measuring_leaves_the_pathways_alone() -> None:
    pathways = pathways_of(level(6, 7, 7), level(12, 4, 4), "attention", "hcl")
    before = {key: tensor.clone() for key, tensor in pathways.state_dict().items()}
    pathway_costs(pathways)
    assert all(torch.equal(before[key], tensor) for key, tensor in pathways.state_dict().items())


def test_a_block_that_needs_values_is_measured_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TRANSFORMS, "_known", list(TRANSFORMS._known))

    @register_transform("looks-at-values")
    class Looks(Transform):
        def __init__(self, student: LevelInfo, teacher: LevelInfo) -> None:
            super().__init__(student, teacher)
            self.layer = nn.Conv2d(self.in_channels, self.out_channels, 1, bias=False)

        def convert(self, map_bchw: Tensor) -> Tensor:
            mapped: Tensor = self.layer(map_bchw)
            return mapped * 2 if mapped.sum().item() > 0 else mapped

    (cost,) = pathway_costs(pathways_of(level(6, 8, 8), level(12, 8, 8), "looks-at-values", "mse"))
    assert cost.multiply_adds == 6 * 12 * 64


def test_network_by_hand() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 7)
    )
    network = TappedNetwork(model, levels=["1"], mean=[0.5] * 3, std=[0.5] * 3, image_size=8)
    cost = network_cost(network, 8)
    assert cost.parameters == 3 * 5 * 9 + 5 + 5 * 7 + 7
    assert cost.multiply_adds == 3 * 5 * 9 * 64 + 5 * 7
    assert network.training


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_report_of_a_recipe(no_network: None) -> None:
    recipe = Recipe.model_validate(
        {
            "data": {"name": "folder", "root": "$NOWHERE", "num_classes": 10, "image_size": 32},
            "teacher": {"name": "wrn_16_2", "levels": [0, 1, 2, "pooled", "logits"]},
            "student": {"name": "wrn_10_1", "levels": [0, 1, 2, "pooled", "logits"]},
            "pathways": [
                {"connections": "lower", "transform": "conv2"},
                {"connections": "same", "transform": "identity", "distance": "kl"},
            ],
        }
    )
    report = recipe_report(recipe)
    assert [row["id"] for row in report["pathways"]] == [
        *(f"{i}-{j}" for i in range(1, 5) for j in range(1, i + 1)),
        "5-5",
    ]
    assert report["teacher"]["name"] == "wrn_16_2"
    assert 691_000 < report["teacher"]["parameters"] < 693_000  # 0.69 M, Zagoruyko and Komodakis 2016
    assert report["student"]["levels"][0] == {
        "number": 1,
        "name": report["pathways"][0]["student_name"],
        "kind": "map",
        "shape": [16, 32, 32],
        "reduction": 1,
        "point": "output of block1",
    }
    row = report["pathways"][1]
    assert (row["teacher_level"], row["student_level"]) == (2, 1)
    assert (row["teacher_shape"], row["student_shape"]) == ([64, 16, 16], [16, 32, 32])
    assert (row["teacher_reduction"], row["student_reduction"]) == (2, 1)
    assert row["parameters"] == 16 * 16 + 2 * 16 + 9 * 16 * 64 + 2 * 64
    assert row["multiply_adds"] == (16 * 16 + 9 * 16 * 64) * 256
    assert report["totals"]["pathways"] == 11
    for key in ("parameters", "multiply_adds", "backward_bytes"):
        assert report["totals"][key] == sum(row[key] for row in report["pathways"])


def test_report_of_a_timm_pair_that_would_be_pretrained(no_network: None) -> None:
    recipe = Recipe.model_validate(
        {
            "data": {"name": "folder", "image_size": 64},
            "teacher": {"name": "resnet18", "weights": "pretrained"},
            "student": {"name": "mobilenetv2_050"},
        }
    )
    report = recipe_report(recipe)
    assert report["totals"]["pathways"] == 11
    assert report["teacher"]["parameters"] == 11_689_512


def test_totals_hold_what_pathways_share() -> None:
    recipe = Recipe.model_validate(
        {
            "data": {"name": "digits"},
            "teacher": {"name": "wrn_16_2"},
            "student": {"name": "wrn_10_1"},
            "pathways": [{"connections": "same", "transform": "review"}],
        }
    )
    report = recipe_report(recipe)
    (chain,) = report["shared"]
    assert (chain["transform"], chain["student_levels"]) == ("review", [1, 2, 3, 4])
    for key in ("parameters", "multiply_adds", "backward_bytes"):
        assert chain[key] > 0
        assert report["totals"][key] == chain[key] + sum(row[key] for row in report["pathways"])
