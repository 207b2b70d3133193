"""Rivals of the hypergradient: every formula by hand from known gradients, and the gradients against autograd."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distpro_cli.networks.build import build_network
from distpro_cli.pathways.connections import resolve_pathways
from distpro_cli.pathways.module import Pathways
from distpro_cli.recipe.schema import PathwayGroup, Search
from distpro_cli.training.alpha import Record
from distpro_cli.training.feature_gradients import FeatureGradients, feature_gradients
from distpro_cli.training.hypergradients import make_hypergradient
from distpro_cli.training.rivals import RIVALS, Cosine, GradientRule, Rival
from distpro_cli.training.step import Kept, StepLosses
from distpro_cli.world import World
from tests.helpers import CPU, PAPER, classification, digits_recipe
from tests.training.test_hypergradients import (
    SHARED_BLOCKS,
    batch_in_float64,
    batches,
    in_float64,
    make_distiller,
    weights,
)

LOGITS = (PathwayGroup(), PathwayGroup(connections=[[4, 4]], transform="conv1", distance="mse"))


def make(name: str, num_pathways: int = 2, steps_per_epoch: int = 2, total_steps: int = 6, **spec: Any) -> Any:
    """Makes a rival without networks; its factors are 1, 2, 3 …"""
    distiller: Any = SimpleNamespace(device=CPU, seed=3, world=World())
    factor_k = torch.arange(1.0, num_pathways + 1)
    record = Record(num_pathways, total_steps, CPU)
    search = Search(method=name, **PAPER | spec)  # type: ignore[arg-type]
    return RIVALS[name](distiller, search, factor_k, record, lambda start: iter(()), steps_per_epoch)


def pulls(*pairs: tuple[Sequence[float], Sequence[float]]) -> list[FeatureGradients]:
    return [FeatureGradients(torch.tensor(task), torch.tensor(pathway)) for task, pathway in pairs]


def test_random_weights_are_a_softmax_of_draws_and_sum_to_k_times_kappa() -> None:
    rival = make("random", 3, weight=0.5)
    rival.distiller.step = lambda batch, weights_k, step: "losses"
    seen = []
    for step in range(4):
        seen.append(rival.weights() / rival.factor_k)
        assert rival.step("batch", step) == ("losses", None)
    for weight_k in seen:
        assert weight_k.sum().item() == pytest.approx(3 * 0.5)
    assert len({tuple(weight_k.tolist()) for weight_k in seen}) == 4
    again = make("random", 3, weight=0.5)
    assert torch.equal(again.weights() / again.factor_k, seen[0])

    assert make("random", 1).weights().tolist() == [1.0]  # the softmax of one number


def test_metabalance_averages_norms_and_relaxes_their_ratio() -> None:
    rival = make("metabalance", weight=2.0)
    assert rival.weights().tolist() == [2.0, 4.0]
    rival.look(pulls(([3.0, 4.0], [0.0, 1.0]), ([3.0, 4.0], [10.0, 0.0])), 0)
    expected = [2 * 1 * (0.7 * 5 / 1 + 0.3), 2 * 2 * (0.7 * 5 / 10 + 0.3)]
    assert rival.weights().tolist() == pytest.approx(expected)
    rival.look(pulls(([0.0, 1.0], [0.0, 2.0]), ([1.0, 0.0], [0.0, 0.0])), 1)
    task = 0.9 * 0.1 * 5 + 0.1 * 1
    ratios = [task / (0.9 * 0.1 * 1 + 0.1 * 2), task / (0.9 * 0.1 * 10)]
    expected = [2 * factor * (0.7 * ratio + 0.3) for factor, ratio in zip((1, 2), ratios, strict=True)]
    assert rival.weights().tolist() == pytest.approx(expected)


def test_cosine_lets_agreeing_pathways_pull() -> None:
    rival = make("cosine", 4, weight=2.0)
    agreeing, opposed, without = ([1.0, 0.0], [1.0, 1.0]), ([1.0, 0.0], [-1.0, 1.0]), ([0.0, 0.0], [1.0, 1.0])
    rival.look(pulls(agreeing, opposed, without, ([0.0, 2.0], [0.0, 1e-5])), 0)
    assert rival.weights().tolist() == pytest.approx([2 * math.sqrt(0.5), 0, 0, 2 * 4 * 1.0])


def test_share_is_kept_and_set_anew_each_epoch() -> None:
    rival = make("share", steps_per_epoch=2, weight=0.5)
    first = pulls(([2.0, 0.0], [0.0, 1.0]), ([3.0, 4.0], [0.0, 10.0]))
    rival.look(first, 0)  # ratios 1/2 and 2, under factors 1 and 2
    assert rival.weights().tolist() == pytest.approx([0.5 / 4.5, 2 * 0.5 / 4.5])
    held = rival.weights()
    second = pulls(([4.0, 0.0], [0.0, 5.0]), ([5.0, 0.0], [0.0, 0.0]))
    rival.look(second, 1)  # the epoch ends: sums 6 and 6, 10 and 10
    assert rival.weights().tolist() == pytest.approx([0.5 / 3, 1.0 / 3])
    assert not torch.equal(rival.weights(), held)
    ratios = torch.tensor([1.0, 1.0])
    assert (rival.weights() * ratios).sum().item() == pytest.approx(0.5)
    held = rival.weights()
    rival.look(first, 2)
    assert torch.equal(rival.weights(), held)
    rival.look(first, 3)  # only this epoch counts
    assert rival.weights().tolist() == pytest.approx([0.5 / 4.5, 2 * 0.5 / 4.5])


def test_uncertainty_follows_the_losses() -> None:
    rival = make("uncertainty", total_steps=400, weight=3.0, alpha_lr=0.1)
    distance_k = torch.tensor([0.25, 4.0])
    rival.distiller.step = lambda batch, weights_k, step: StepLosses(
        {}, torch.zeros(()), dict(enumerate(distance_k.unbind()))
    )
    assert rival.weights().tolist() == pytest.approx([3 / 2, 2 * 3 / 2])
    rival.step("batch", 0)
    # d/ds (D/(2 e^s) + s/2) at s = 0 is (1 - D)/2; Adam's first step has length lr.
    assert rival.s_k.tolist() == pytest.approx([-0.1, 0.1], rel=1e-4)
    for step in range(1, 400):
        rival.step("batch", step)
    assert rival.s_k.exp().tolist() == pytest.approx(distance_k.tolist(), rel=0.02)
    assert (rival.weights() / rival.factor_k * distance_k).tolist() == pytest.approx([1.5, 1.5], rel=0.02)


def test_the_inverse_loss_follows_every_step() -> None:
    rival = make("loss", total_steps=8, weight=10.0, interval=2)
    distances = [torch.tensor([2.0, 8.0]), torch.tensor([1.0, 8.0]), torch.tensor([0.0, 4.0])]
    used = []

    def step(batch: object, weights_k: torch.Tensor, step: int) -> StepLosses:
        used.append(weights_k)
        return StepLosses({}, torch.zeros(()), dict(enumerate(distances[step].unbind())))

    rival.distiller.step = step
    for number in range(3):
        rival.step("batch", number)
    assert used[0].tolist() == [0, 0]  # nothing is known yet
    assert used[1].tolist() == pytest.approx([10 / 2, 2 * 10 / 8])
    assert used[2].tolist() == pytest.approx([10 / (0.9 * 2 + 0.1 * 1), 2 * 10 / 8])
    last = [0.9 * (0.9 * 2 + 0.1), 0.9 * 8 + 0.1 * 4]
    assert rival.weights().tolist() == pytest.approx([10 / last[0], 2 * 10 / last[1]])
    assert Search(method="loss").kappa == 10 and Search(method="share").kappa == 1


@pytest.mark.parametrize("name", sorted(RIVALS))
def test_the_table_is_the_weights_and_a_state_goes_round(name: str) -> None:
    def play(rival: Rival, steps: range) -> None:
        generator = torch.Generator().manual_seed(steps.start)
        for step in steps:
            drawn = torch.rand(2, 2, 3, generator=generator)
            if isinstance(rival, GradientRule):
                rival.record.write(step, rival.scores(), rival.weights())
                rival.look([FeatureGradients(task, pathway) for task, pathway in drawn], step)
            elif name != "cosine-outer":
                losses = StepLosses({}, torch.zeros(()), dict(enumerate(drawn[:, 0, 0].unbind())))
                rival.distiller.step = lambda batch, weights_k, step, losses=losses: losses  # type: ignore[method-assign]
                rival.step(None, step)  # type: ignore[arg-type]

    first, second = make(name), make(name)
    play(first, range(3))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    play(first, range(3, 6))
    play(second, range(3, 6))
    for mine, theirs in zip(first.record.table().values(), second.record.table().values(), strict=True):
        assert (mine == theirs).all()
    table = first.record.table()
    weight_tk, alpha_tk = table["weights"], table["alpha"]
    assert (weight_tk == alpha_tk).all() and (weight_tk >= 0).all()


@pytest.mark.parametrize("groups", [pytest.param(LOGITS, id="own"), pytest.param(SHARED_BLOCKS, id="shared")])
def test_gradients_at_the_student_are_autograds(groups: Sequence[PathwayGroup]) -> None:
    distiller, (inner, _) = in_float64(groups), map(batch_in_float64, batches())
    reference = copy.deepcopy(distiller)
    found: dict[int, FeatureGradients] = {}
    distiller.backward(inner, weights(distiller).double(), 0, Kept(at_student=found))
    active = range(len(distiller.trained.infos))
    teacher = reference.teacher_features(inner, active)
    output, own = reference.student_forward(inner, reference.pathways.student_levels(active), 0)
    _, task = reference.task_loss(output, inner.targets)
    distances = reference.pathways(own, teacher, active)
    assert set(found) == set(active)
    for k, info in enumerate(distiller.trained.infos):
        feature = own[info.student.number]
        for mine, loss in ((found[k].task, task), (found[k].pathway, distances[k])):
            (theirs,) = torch.autograd.grad(loss, feature, retain_graph=True)
            assert theirs.abs().sum() > 0
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("groups", [pytest.param(LOGITS, id="own"), pytest.param(SHARED_BLOCKS, id="shared")])
def test_looking_at_them_changes_no_bit_of_the_step(groups: Sequence[PathwayGroup]) -> None:
    plain, looked_at = make_distiller(groups=groups), make_distiller(groups=groups)
    inner, _ = batches()
    plain.backward(inner, weights(plain), 0)
    looked_at.backward(inner, weights(plain), 0, Kept(at_student={}))
    for mine, theirs in zip(looked_at.trained.modules().values(), plain.trained.modules().values(), strict=True):
        for ours, expected in zip(mine.parameters(), theirs.parameters(), strict=True):
            assert ours.grad is not None and expected.grad is not None and torch.equal(ours.grad, expected.grad)


def test_a_feature_that_is_copied_when_tapped_still_has_the_tasks_gradient() -> None:
    """A ReLU that writes in place makes the tap take a copy, which the task does not go through."""
    recipe = digits_recipe("student.name=resnet8", "student.feature=before-activation")
    found: list[Tensor] = []
    for inplace in (True, False):
        torch.manual_seed(0)
        student = build_network(recipe.student, recipe.data, classification()).train()
        for module in student.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = inplace
        teacher = build_network(recipe.teacher, recipe.data, classification()).eval()
        pathways = Pathways(resolve_pathways([PathwayGroup(connections="same")], teacher.levels, student.levels))
        inner, _ = batches()
        output, features = student(inner.images_bchw, levels=[1])
        task = nn.functional.cross_entropy(output, inner.targets)
        starts: dict[Any, Tensor] = {pathways.start_of[0]: features[1]}
        pair = feature_gradients(pathways, task, features, starts, {0: torch.ones_like(features[1])})[0]
        assert pair.task.abs().sum() > 0 and torch.equal(pair.pathway, torch.ones_like(features[1]))
        found.append(pair.task)
    torch.testing.assert_close(*found)


def test_the_outer_cosine_has_the_sign_of_the_exact_one() -> None:
    distiller, (inner, outer) = in_float64(), map(batch_in_float64, batches())
    weights_k = weights(distiller).double()
    exact_k = make_hypergradient("exact", copy.deepcopy(distiller)).step(inner, outer, weights_k, 0)[2]
    record = Record(weights_k.numel(), 4, CPU)
    search = Search(method="cosine-outer", weight=1.0, interval=1)
    rival = RIVALS["cosine-outer"](distiller, search, torch.ones(weights_k.numel()), record, lambda _: iter([outer]), 2)
    _, outer_losses = rival.move(inner, weights_k, 0)
    assert outer_losses is not None
    relative_k = rival.weights()
    certain_k = exact_k.abs() > 0.01 * exact_k.abs().max()
    assert torch.equal((relative_k > 0)[certain_k], (exact_k < 0)[certain_k])  # more weight, less outer loss
    assert (relative_k <= 1).all() and int((relative_k > 0).sum()) > 0


def test_cosine_of_a_pathway_that_is_the_task_is_one() -> None:
    rival = make("cosine", 1)
    assert isinstance(rival, Cosine)
    gradient = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    rival.look([FeatureGradients(gradient, 3 * gradient)], 0)
    assert rival.weights().item() == pytest.approx(1.0, rel=1e-2)
