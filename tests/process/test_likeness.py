"""How alike processes are, against numpy's own correlation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from distpro_cli.process.likeness import MOMENTS, likeness, likenesses
from tests.process.examples import make_process


def test_it_is_the_correlation_of_the_shares() -> None:
    one, other = make_process(33), make_process(57, seed=1)
    moments = np.linspace(0, 1, MOMENTS)
    tables = [np.array([process.at(u) for u in moments], dtype=np.float64) for process in (one, other)]
    first, second = (table / table.sum(axis=1, keepdims=True) for table in tables)
    expected = np.corrcoef(first.ravel(), second.ravel())[0, 1]
    assert likeness(one, other) == pytest.approx(expected, abs=1e-5)
    assert likeness(one, other) == pytest.approx(likeness(other, one), abs=1e-12)


def test_neither_kappa_nor_unit_nor_order_counts() -> None:
    one = make_process(21)
    scale = np.random.default_rng(0).uniform(0.5, 2, one.weights.shape).astype(np.float32)
    scaled = replace(one, weights=3 * one.weights * scale, scale=scale)
    turned = replace(
        scaled,
        weights=scaled.weights[:, ::-1],
        alpha=scaled.alpha[:, ::-1],
        scale=scale[:, ::-1],
        pathways=scaled.pathways[::-1],
    )
    assert likeness(one, turned) == pytest.approx(1.0, abs=1e-6)


def test_over_the_pathways_that_both_have() -> None:
    one = make_process(21)
    fewer = replace(
        make_process(21, pathways=one.pathways[1:4], seed=3),
    )
    assert likeness(one, fewer) is not None
    single = make_process(21, pathways=one.pathways[:1])
    assert likeness(one, single) is None


def test_a_process_without_preference_has_none() -> None:
    one = make_process(21)
    even = replace(one, weights=np.ones_like(one.weights))
    assert likenesses([one, even]) == [[pytest.approx(1.0)], [None, None]]
