"""Gradient accumulation: the batch's own step and hypergradient, on a network without BatchNorm."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from distpro_cli.recipe.schema import PathwayGroup
from distpro_cli.tasks.task import Batch
from distpro_cli.training.feature_gradients import FeatureGradients
from distpro_cli.training.hypergradients import HYPERGRADIENTS, make_hypergradient
from distpro_cli.training.scale import distances
from distpro_cli.training.step import Distiller, Kept
from tests.conftest import Run
from tests.test_transformer_pairs import SIZE, make_distiller, recipe_of

GROUPS = [
    PathwayGroup(connections=[[1, 1], [2, 1], [4, 4]], transform="transformer", transform_options={"dropout": 0.0}),
    PathwayGroup(connections=[[5, 5]], transform="linear", distance="cosine"),
]


def distillers() -> tuple[Distiller, Distiller]:
    torch.manual_seed(0)
    whole = make_distiller(recipe_of("vit", "deit"), GROUPS)
    parted = copy.deepcopy(whole)
    parted.micro_batch_size = 3
    parted.student_parameters = [p for p in parted.student.parameters() if p.requires_grad]
    return whole, parted


def batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(16, 3, SIZE, SIZE, generator=generator)
    return [Batch(images[:8], torch.arange(8)), Batch(images[8:], torch.arange(8))]


def assert_close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-6)


@pytest.mark.parametrize("name", HYPERGRADIENTS.names())
def test_step_and_hypergradient_are_the_batchs(name: str) -> None:
    weights_k = torch.tensor([0.5, 1.0, 1.5, 2.0])
    found: list[tuple[Any, ...]] = []
    for distiller in distillers():
        optimizer = torch.optim.SGD([p for m in distiller.trained.modules().values() for p in m.parameters()], lr=0.05)
        distiller.optimizer = optimizer
        inner, outer = batches()
        losses, outer_losses, hypergradient_k = make_hypergradient(name, distiller).step(inner, outer, weights_k, 0)
        parameters = [p.detach().clone() for m in distiller.trained.modules().values() for p in m.parameters()]
        found.append((losses, outer_losses, hypergradient_k, parameters))
    whole, parted = found
    for one, other in zip(parted[:2], whole[:2], strict=True):
        assert_close(one.task, other.task)
        assert_close(dict(one.distances), dict(other.distances))
        assert_close(dict(one.scores), dict(other.scores))
    assert torch.cosine_similarity(parted[2], whole[2], dim=0) > 0.9999
    torch.testing.assert_close(parted[2], whole[2], rtol=1e-4 if name == "exact" else 0.02, atol=1e-6)
    assert_close(parted[3], whole[3])


def test_gradients_at_features_and_the_step_alone() -> None:
    kept: list[dict[int, FeatureGradients]] = []
    alone: list[list[Tensor]] = []
    for distiller in distillers():
        inner, _ = batches()
        at_student: dict[int, FeatureGradients] = {}
        distiller.backward(inner, [1.0, 0.5, 0.0, 2.0], 0, Kept(at_student=at_student))
        kept.append(at_student)
        distiller.optimizer.zero_grad()
        distiller.optimizer = torch.optim.SGD(distiller.student_parameters, lr=0.05)
        distiller.step_alone(inner, 0)
        alone.append([p.detach().clone() for p in distiller.student_parameters])
    assert kept[0].keys() == kept[1].keys() == {0, 1, 3}
    for k, expected in kept[0].items():
        assert_close(kept[1][k].task, expected.task)
        assert_close(kept[1][k].pathway, expected.pathway)
    assert_close(alone[1], alone[0])


def test_targets_of_any_nesting_are_split() -> None:
    targets = {"boxes": [torch.full((n, 4), n) for n in range(5)], "class": torch.arange(5)}
    parts = Batch(torch.rand(5, 3, 2, 2), targets).split(2)
    assert [len(part.images_bchw) for part in parts] == [2, 2, 1]
    assert [len(boxes) for part in parts for boxes in part.targets["boxes"]] == [0, 1, 2, 3, 4]
    assert parts[2].targets["class"].tolist() == [4]


@pytest.mark.parametrize("given", ["method=hypergradient", "method=cosine", "hypergradient=exact", "scale=loss"])
def test_a_search_by_micro_batches_runs(distpro: Run, given: str) -> None:
    result = distpro(
        *("search", "tiny.yaml", "search.epochs=1", "distill.micro_batch_size=12", "--json", "-q"),
        *(f"search.{given}", "-o", "p.safetensors"),
    )
    assert result.status == 0, result.err


def test_the_first_losses_are_the_batchs() -> None:
    found = [distances(distiller, batches()[0], 0) for distiller in distillers()]
    torch.testing.assert_close(found[1], found[0])


def test_a_warm_up_longer_than_the_run(distpro: Run) -> None:
    for given, message in (
        ("distill.schedule.warmup_epochs=5", "schedule.warmup_epochs is 5, longer than the run of 2 epochs"),
        ("teacher.train.schedule.warmup_epochs=1.5", "teacher.train.schedule: schedule.warmup_epochs is 1.5, longer"),
        ("search.schedule={warmup_epochs: 5}", "5 epochs of warm-up from search.schedule, longer than its 2 epochs"),
    ):
        result = distpro("search", "tiny.yaml", given, "-q")
        assert result.status == 2 and message in result.err
