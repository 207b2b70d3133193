"""Normalisations against closed forms, their gradients, the record, and a round trip through a state."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from distpro_cli.recipe.schema import Search
from distpro_cli.training.alpha import NORMALIZATIONS, AlphaOptimizer


def make(num_pathways: int = 3, total_steps: int = 10, **spec: object) -> AlphaOptimizer:
    return AlphaOptimizer(num_pathways, Search(**spec), total_steps, torch.device("cpu"))  # type: ignore[arg-type]


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


def test_the_record_holds_every_step_and_the_end() -> None:
    optimizer = make(total_steps=4)
    for step in range(4):
        optimizer.record(step)
        optimizer.update(torch.tensor([1.0, 0.0, -1.0]))
    optimizer.record(4)
    progress, weights, alpha = optimizer.table()
    np.testing.assert_allclose(progress, [0, 0.25, 0.5, 0.75, 1])
    assert weights.shape == alpha.shape == (5, 3)
    np.testing.assert_allclose(alpha[0], 1)
    np.testing.assert_array_equal(alpha[-1], optimizer.alpha_k.detach())
    np.testing.assert_array_equal(weights[-1], optimizer.weights())


def test_a_long_search_keeps_a_few_thousand_rows() -> None:
    optimizer = make(total_steps=1_000_000)
    assert len(optimizer.kept_steps) <= 4000
    assert optimizer.kept_steps[0] == 0 and optimizer.kept_steps[-1] == 1_000_000


def test_state_goes_round() -> None:
    first, second = make(), make()
    gradients = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    for gradient in gradients[:3]:
        first.update(gradient)
    first.record(2)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for gradient in gradients[3:]:
        first.update(gradient)
        second.update(gradient)
    assert torch.equal(first.alpha_k, second.alpha_k)
    assert torch.equal(first.alpha_tk, second.alpha_tk)
