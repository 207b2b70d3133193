"""Normalisations against closed forms, their gradients, the record, and a round trip through a state."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from distpro_cli.recipe.schema import Search
from distpro_cli.training.alpha import NORMALIZATIONS, AlphaOptimizer, Record, alpha_lr
from tests.helpers import CPU, PAPER


def make(num_pathways: int = 3, *, factors: list[float] | None = None, **spec: object) -> AlphaOptimizer:
    search = Search(**PAPER | spec)
    start_k = torch.full((num_pathways,), search.alpha_start)
    return AlphaOptimizer(start_k, torch.tensor(factors or [1.0] * num_pathways), search, 10, CPU)


def test_biased_softmax_is_the_papers_formula() -> None:
    alpha, kappa, bias = [0.3, -1.0, 2.0], 1.7, 1.0
    expected = [3 * kappa * math.exp(a) / (math.exp(bias) + sum(map(math.exp, alpha))) for a in alpha]
    found = NORMALIZATIONS["biased-softmax"](torch.tensor(alpha), kappa, bias)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "softmax",
            [3 * 2 * math.exp(a) / (math.exp(0.5) + math.exp(-2) + math.exp(1)) for a in (0.5, -2, 1)],
        ),
        ("sigmoid", [2 / (1 + math.exp(-a)) for a in (0.5, -2, 1)]),
        ("abs", [1.0, 4.0, 2.0]),
        ("none", [1.0, 0.0, 2.0]),
    ],
)
def test_other_normalizations(name: str, expected: list[float]) -> None:
    found = NORMALIZATIONS[name](torch.tensor([0.5, -2.0, 1.0]), 2.0, 1.0)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("name", list(NORMALIZATIONS))
def test_weights_are_never_negative_and_follow_the_hypergradient_down(name: str) -> None:
    optimizer = make(normalization=name)
    before = optimizer.weights()
    for _ in range(30):
        optimizer.update(torch.tensor([1.0, 0.0, -1.0]))
    after = optimizer.weights()
    assert (after >= 0).all()
    if name != "abs":  # |alpha| may pass zero and grow again
        assert after[0] < before[0]
    assert after[2] > before[2]


def test_a_weight_at_zero_can_come_back() -> None:
    optimizer = make(normalization="none", alpha_start=-0.5)
    assert optimizer.weights().tolist() == [0, 0, 0]
    for _ in range(10):
        optimizer.update(torch.tensor([-1.0, 1.0, 0.0]))
    assert optimizer.weights()[0] > 0


def test_the_first_update_is_adams() -> None:
    optimizer = make(alpha_lr=0.1)
    optimizer.update(torch.tensor([5.0, -3.0, 1.0]))
    # Adam's first step has length lr for every component, whatever the gradient's size.
    np.testing.assert_allclose((optimizer.alpha_k.detach() - 1).abs(), 0.1, rtol=1e-4)


def test_alpha_is_adams_step_averaged_over_time() -> None:
    """Against the closed form: alpha - start = lr · Σ (1 - lr d)^(n - m + 1) · step_m, steps by torch's own Adam."""
    optimizer = make(alpha_lr=0.1, alpha_decay=0.5, normalization="none", learn_weight=False)
    free = torch.nn.Parameter(torch.ones(3))
    adam = torch.optim.Adam([free], lr=0.1, betas=(0.5, 0.999))
    gradients = torch.randn(12, 3, generator=torch.Generator().manual_seed(1))
    expected = torch.zeros(3)
    for gradient in gradients:
        before = free.detach().clone()
        free.grad = gradient.clone()
        adam.step()
        expected = (expected + free.detach() - before) * (1 - 0.1 * 0.5)
        optimizer.update(gradient)
    torch.testing.assert_close(optimizer.alpha_k.detach() - 1, expected, rtol=1e-5, atol=1e-6)


def test_a_steady_lead_cannot_take_everything() -> None:
    pulled, free = make(alpha_decay=0.5), make(alpha_decay=0)
    for _ in range(500):
        for optimizer in (pulled, free):
            optimizer.update(torch.tensor([-1.0, 0.1, 0.1]))
    assert (pulled.alpha_k.detach() - 1).abs().max() <= 1 / 0.5
    share = [float(optimizer.weights()[0] / optimizer.weights().sum()) for optimizer in (pulled, free)]
    assert share[0] < 0.97 < share[1]
    for _ in range(200):  # and what has no lead any more goes back to where it started
        pulled.update(torch.zeros(3))
    np.testing.assert_allclose(pulled.alpha_k.detach(), 1, atol=1e-2)


def test_the_memory_is_a_share_of_the_search() -> None:
    pulled = Search(alpha_lr=0.1, alpha_decay=0.5, alpha_memory=0.03)
    assert alpha_lr(pulled, 100) == alpha_lr(pulled, 600) == 0.1
    assert alpha_lr(pulled, 160_000) == pytest.approx(1 / (0.5 * 0.03 * 160_000))
    for off in ({"alpha_memory": None}, {"alpha_decay": 0}):
        assert alpha_lr(Search(alpha_lr=0.1, **off), 160_000) == 0.1  # type: ignore[arg-type]


def test_kappa_is_learnt_beside_alpha() -> None:
    """The derivative by κ, at κ's start, is Σ weight_k · h_k."""
    optimizer = make(learn_weight=True, weight=3.0, alpha_decay=0.5)
    np.testing.assert_array_equal(optimizer.weights(), make(weight=3.0).weights())
    weights, gradient = optimizer.weights(), torch.tensor([-2.0, 0.5, 0.1])
    optimizer.update(gradient)
    assert optimizer.log_kappa.grad is not None
    assert optimizer.log_kappa.grad.item() == pytest.approx(float(weights @ gradient), rel=1e-5)
    for _ in range(50):
        optimizer.update(torch.full((3,), -1.0))
    assert optimizer.weights().sum() > 1.5 * weights.sum()
    assert optimizer.log_kappa.abs() <= 1 / optimizer.spec.alpha_decay


def test_groups_have_weights_of_their_own() -> None:
    np.testing.assert_allclose(
        make(factors=[5.0, 1.0, 0.5]).weights(), make().weights() * torch.tensor([5.0, 1.0, 0.5]), rtol=1e-6
    )


def test_the_record_holds_every_step_and_the_end() -> None:
    record = Record(3, 4, CPU)
    for step in range(5):
        record.write(step, torch.full((3,), float(step)), torch.full((3,), 2.0 * step))
    table = record.table()
    progress, weights, alpha = table["progress"], table["weights"], table["alpha"]
    np.testing.assert_allclose(progress, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_array_equal(alpha, np.arange(5.0)[:, None].repeat(3, 1))
    np.testing.assert_array_equal(weights, 2 * alpha)
    again = Record(3, 4, CPU)
    again.load_state_dict(copy.deepcopy(record.state_dict()))
    assert torch.equal(again.alpha_tk, record.alpha_tk) and torch.equal(again.weight_tk, record.weight_tk)


def test_a_long_search_keeps_a_few_thousand_rows() -> None:
    record = Record(1, 1_000_000, CPU)
    assert len(record.kept_steps) <= 4000
    assert record.kept_steps[0] == 0 and record.kept_steps[-1] == 1_000_000


@pytest.mark.parametrize("learn_weight", [False, True])
def test_state_goes_round(learn_weight: bool) -> None:
    first, second = make(learn_weight=learn_weight), make(learn_weight=learn_weight)
    gradients = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    for gradient in gradients[:3]:
        first.update(gradient)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for gradient in gradients[3:]:
        first.update(gradient)
        second.update(gradient)
    assert torch.equal(first.alpha_k, second.alpha_k) and torch.equal(first.log_kappa, second.log_kappa)
