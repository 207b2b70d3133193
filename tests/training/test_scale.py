"""The scale of the weights: norms against autograd by hand, no trace left, and the rules for what does not pull."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distpro_cli.process.process import Process
from distpro_cli.recipe.schema import PathwayGroup, Search
from distpro_cli.tasks.task import Batch
from distpro_cli.training.alpha import AlphaOptimizer, Record
from distpro_cli.training.hypergradients import make_hypergradient
from distpro_cli.training.scale import GradientScale, LossScale, Scale, distances, measure, num_steps
from distpro_cli.training.step import Distiller
from distpro_cli.training.weights import ScheduledWeights, SearchedWeights
from tests.helpers import CPU
from tests.training.test_hypergradients import OWN_BLOCKS, SHARED_BLOCKS, batch_in_float64, batches, in_float64
from tests.training.test_hypergradients import make_distiller as make

every_kind_of_block = pytest.mark.parametrize(
    "groups", [pytest.param(OWN_BLOCKS, id="own"), pytest.param(SHARED_BLOCKS, id="shared")]
)


def by_autograd(distiller: Distiller, batch: Batch) -> tuple[Tensor, Tensor]:
    """Returns ‖g_0‖ and ‖g_k‖ through the whole graph at once, [K] each."""
    distiller = copy.deepcopy(distiller)
    active = range(len(distiller.trained.infos))
    teacher = distiller.teacher_features(batch, active)
    output, own = distiller.student_forward(batch, distiller.pathways.student_levels(active), 0)
    _, task = distiller.task_loss(output, batch.targets)
    distances = distiller.pathways(own, teacher, active)
    pairs = []
    for k, info in enumerate(distiller.trained.infos):
        feature = own[info.student.number]
        found = [torch.autograd.grad(loss, feature, retain_graph=True)[0] for loss in (task, distances[k])]
        pairs.append([gradient.double().square().sum().sqrt().item() for gradient in found])
    task_k, pathway_k = torch.tensor(pairs).T
    return task_k, pathway_k


@every_kind_of_block
def test_norms_are_autograds(groups: Sequence[PathwayGroup]) -> None:
    distiller, (inner, _) = in_float64(groups), map(batch_in_float64, batches())
    for mine, theirs in zip(measure(distiller, inner, 0), by_autograd(distiller, inner), strict=True):
        assert (theirs > 0).all()
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=0)


@every_kind_of_block
@pytest.mark.parametrize("kind", [GradientScale, LossScale])
def test_looking_leaves_no_trace(groups: Sequence[PathwayGroup], kind: type[Scale]) -> None:
    looked, plain = make(groups=groups, momentum=0.9), make(groups=groups, momentum=0.9)
    inner, _ = batches()
    scale = kind(looked, 100)
    for step in range(2):
        before = copy.deepcopy([module.state_dict() for module in looked.trained.modules().values()])
        scale.look(inner, step)
        for module, state in zip(looked.trained.modules().values(), before, strict=True):
            assert all(p.grad is None for p in module.parameters())
            assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
        weights_k = torch.ones(len(looked.trained.infos))
        looked.step(inner, weights_k, step)
        plain.step(inner, weights_k, step)
    for mine, theirs in zip(looked.trained.modules().values(), plain.trained.modules().values(), strict=True):
        for name, value in mine.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[name]), name


def test_the_first_steps_are_summed_and_then_it_stays() -> None:
    distiller, (inner, other) = make(), batches()
    scale = GradientScale(distiller, 100)
    assert (scale.scale_k == 1).all()
    sums = torch.zeros(2, len(distiller.trained.infos))
    for step in range(12):
        batch = inner if step % 2 else other
        if step < 10:
            sums += torch.stack(by_autograd(distiller, batch))
        scale.look(batch, step)
        torch.testing.assert_close(scale.scale_k, sums[0] / sums[1], rtol=1e-4, atol=0)
        distiller.step(batch, torch.ones(sums.shape[1]), step)
    assert (scale.state["seen"] == 10).all()
    other_scale = GradientScale(distiller, 100)
    other_scale.load_state_dict(copy.deepcopy(scale.state_dict()))
    assert torch.equal(other_scale.scale_k, scale.scale_k)


@every_kind_of_block
def test_a_weight_of_1_adds_1_to_the_loss(groups: Sequence[PathwayGroup]) -> None:
    """And Σ_k weight_k / D_k · D_k pulls as Σ_k weight_k log D_k does."""
    distiller = make(groups=groups)
    inner, _ = batches()
    active = range(len(distiller.trained.infos))
    scale = LossScale(distiller, 100)
    scale.look(inner, 0)
    teacher = distiller.teacher_features(inner, active)
    _, own = distiller.student_forward(inner, distiller.pathways.student_levels(active), 0)
    distances = distiller.pathways(own, teacher, active)
    parameters = distiller.student_parameters
    logarithms = torch.stack([distances[k].log() for k in active]).sum()
    expected = torch.autograd.grad(logarithms, parameters, retain_graph=True, allow_unused=True)
    scaled = torch.stack([scale.scale_k[k] * distances[k] for k in active])
    torch.testing.assert_close(scaled, torch.ones(len(active)))
    for mine, theirs in zip(torch.autograd.grad(scaled.sum(), parameters, allow_unused=True), expected, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs)


def test_the_loss_is_averaged_over_steps() -> None:
    distiller, (inner, other) = make(momentum=0.9), batches()
    scale = LossScale(distiller, 100)
    scale.look(inner, 0)
    mean_k = 1 / scale.scale_k
    for step in range(4):
        scale.look(other, step)  # nothing any more
        losses = distiller.step(inner if step % 2 else other, torch.ones(len(mean_k)), step)
        mean_k = 0.9 * mean_k + 0.1 * torch.stack([losses.distances[k] for k in range(len(mean_k))])
        scale.see(losses)
        torch.testing.assert_close(scale.scale_k, 1 / mean_k)
    restored = LossScale(distiller, 100)
    restored.load_state_dict(copy.deepcopy(scale.state_dict()))
    assert torch.equal(restored.scale_k, scale.scale_k)
    restored.load_state_dict({"loss": torch.zeros_like(mean_k), "first": mean_k})
    torch.testing.assert_close(restored.scale_k, 1e4 / mean_k)  # learnt to the last bit
    restored.load_state_dict({"loss": torch.zeros_like(mean_k), "first": torch.zeros_like(mean_k)})
    assert (restored.scale_k == 1).all()


@pytest.mark.parametrize(("total", "expected"), [(4, 10), (500, 10), (600, 12), (10_000, 200), (160_000, 200)])
def test_how_many_steps_are_looked_at(total: int, expected: int) -> None:
    assert num_steps(total) == expected


@pytest.mark.parametrize(
    ("task", "pathway", "expected"),
    [
        ([4.0, 6.0, 1.0], [2.0, 3.0, 4.0], [2.0, 2.0, 0.25]),
        ([4.0, 0.0, 2.0], [2.0, 6.0, 4.0], [2.0, 0.5, 0.5]),  # the mean of 4 and 2
        ([0.0, 0.0], [2.0, 6.0], [1.5, 0.5]),  # ‖g_0‖ is 1 in each of 3 steps
        ([4.0, 2.0], [0.0, 4.0], [1.0, 0.5]),
        ([0.0, 0.0], [0.0, 0.0], [1.0, 1.0]),
        ([1e30, 1.0], [1e-30, 1.0], [1.0, 1.0]),  # beyond float32
    ],
)
def test_what_does_not_pull(task: list[float], pathway: list[float], expected: list[float]) -> None:
    scale = GradientScale(make(), 100)
    three = torch.full((len(task),), 3.0)
    scale.load_state_dict({"task": torch.tensor(task), "pathway": torch.tensor(pathway), "seen": three})
    assert scale.scale_k.tolist() == expected


def searched(distiller: Distiller, outer: Batch, **spec: Any) -> SearchedWeights:
    num_pathways, search = len(distiller.trained.infos), Search(scale="gradient", **spec)
    alpha = AlphaOptimizer(torch.ones(num_pathways), torch.ones(num_pathways), search, 8, CPU)
    hypergradient = make_hypergradient("cheap", distiller)
    record = Record(num_pathways, 8, CPU)
    scale = GradientScale(distiller, 8)
    return SearchedWeights(distiller, hypergradient, alpha, record, lambda _: iter([outer] * 8), scale)


def test_pathways_start_as_equals() -> None:
    inner, outer = batches()
    distiller = make(groups=(*OWN_BLOCKS, PathwayGroup(connections=[[4, 4]], transform="linear", distance="cosine")))
    task_k, pathway_k = by_autograd(distiller, inner)
    weights = searched(distiller, outer, weight=0.5)
    weights.step(inner, 0)
    pull_k = weights.record.weight_tk[0] * pathway_k / task_k
    num_pathways = len(pull_k)
    expected = torch.full_like(pull_k, 0.5 * num_pathways / (num_pathways + 1))
    torch.testing.assert_close(pull_k, expected, rtol=1e-4, atol=0)
    assert (pathway_k / task_k).max() > 3 * (pathway_k / task_k).min()
    torch.testing.assert_close(torch.tensor(weights.scale()), task_k / pathway_k, rtol=1e-4, atol=0)


@pytest.mark.parametrize("normalization", ["biased-softmax", "softmax", "sigmoid"])
def test_the_hypergradient_goes_through_the_scale(normalization: str) -> None:
    """Against finite differences of Σ h_k weight_k by every alpha, and by log κ."""
    spec = Search(normalization=normalization, learn_weight=True)  # type: ignore[arg-type]
    alpha = AlphaOptimizer(torch.tensor([0.5, 1.0, -0.3]), torch.tensor([1.0, 2.0, 3.0]), spec, 10, CPU)
    alpha.scale_k = torch.tensor([5.0, 0.2, 30.0])
    h_k = torch.tensor([0.3, -2.0, 0.1])
    expected, epsilon = [], 1e-2
    for moved in [*alpha.alpha_k.detach().unbind(), alpha.log_kappa.detach()]:
        ends = []
        for sign in (1, -1):
            moved += sign * epsilon  # a view into what the optimiser holds
            ends.append((alpha.weights() @ h_k).item())
            moved -= sign * epsilon
        expected.append((ends[0] - ends[1]) / (2 * epsilon))
    alpha.update(h_k)
    assert alpha.alpha_k.grad is not None and alpha.log_kappa.grad is not None
    found = [*alpha.alpha_k.grad.tolist(), alpha.log_kappa.grad.item()]
    assert found == pytest.approx(expected, rel=1e-2, abs=1e-3)


def test_a_run_measures_the_unit_of_its_weights_itself() -> None:
    """What multiplies a distance is its weight over the running loss of this run; one that is off keeps its own."""
    distiller, (inner, _) = make(momentum=0.9), batches()
    infos = distiller.trained.infos
    others = np.linspace(3, 1, 5 * (len(infos) - 2)).reshape(5, -1)
    table = np.column_stack([np.linspace(1, 2, 5), np.zeros(5), others])
    table[2:4, 1] = 0.7  # is on for a part of the run
    alpha = (table > 0).astype(np.float32)
    process = Process(np.linspace(0, 1, 5), table, alpha, infos, "none", "")
    source = ScheduledWeights(distiller, process.schedule(threshold=0.5), 5, LossScale(distiller, 5))
    plain = make(momentum=0.9)
    mean_k, seen = distances(plain, inner, 0), []
    for step in range(5):
        weights = process.schedule(threshold=0.5).at(step / 5).tolist()
        given = [float(weight / mean) for weight, mean in zip(weights, mean_k, strict=True)]
        expected = plain.step(inner, given, step)
        losses, _ = source.step(inner, step)
        assert losses.distances.keys() == expected.distances.keys()
        seen.append(1 in losses.distances)
        torch.testing.assert_close(source.current(), given)
        torch.testing.assert_close(dict(losses.distances), dict(expected.distances))
        for k, distance in expected.distances.items():
            mean_k[k] = 0.9 * mean_k[k] + 0.1 * distance
    assert True in seen and False in seen
