"""What a loss was made of, in one line."""

from __future__ import annotations

import numpy as np
import pytest

from distpro_cli.process.process import Process
from distpro_cli.report.formula import loss_formula, make_terms
from tests.process.examples import RECIPE, constant_process, lower_pathways, make_pathway


def test_constant_weights_are_numbers() -> None:
    review = [make_pathway(n, n, transform="review") for n in (1, 2)]
    logits = make_pathway(4, 4, transform="identity", distance="kl")
    process = constant_process([*review, logits], 5.0)
    terms = make_terms(process.pathways, [{}, {}, {"temperature": 4.0}], [process.schedule()])
    assert loss_formula(["squared_error"], terms) == (
        "squared_error + 5 × Σ hcl(1-1, 2-2; review(width=8)) + 5 × kl(4-4; temperature=4.0)"
    )


def test_weights_over_time_are_a_range_and_a_mean() -> None:
    pathways = lower_pathways(3)
    progress, rows = np.array([0, 0.5, 1]), np.array([0.25, 1.25, 0.25])
    table = np.outer(rows, [1, 1, 1, 1, 1, 2]).astype(np.float32)
    process = Process(progress, table, table, pathways, "none", RECIPE)
    (term, *_) = terms = make_terms(pathways, [{}] * 6, [process.schedule()])
    assert (term.low, term.high, term.mean) == pytest.approx((0.25, 1.25, 0.75))
    mean = 0.75 * 7 / 6
    assert (
        loss_formula(["a", "b"], terms) == f"a + b + [0.25 to 2.5, mean {mean:.3g}] × Σ hcl(6 pathways; conv2(width=8))"
    )


def test_what_is_dropped_or_never_on_does_not_count() -> None:
    pathways = lower_pathways(2)
    table = np.tile(np.array([0.0, 1.0, 2.0], np.float32), (2, 1))
    process = Process(np.array([0, 1]), table, table, pathways, "none", RECIPE)
    infos, nothing = process.pathways, [{}] * 3
    assert [term.info.id for term in make_terms(infos, nothing, [process.schedule()])] == ["2-1", "2-2"]
    assert [term.info.id for term in make_terms(infos, nothing, [process.schedule(keep=0.34)])] == ["2-2"]
    assert loss_formula(["a"], make_terms(infos, nothing, [constant_process(infos, 0.0).schedule()])) == "a"


def test_runs_with_processes_of_their_own_are_taken_together() -> None:
    infos = (make_pathway(1, 1),)
    schedules = [constant_process(infos, weight).schedule() for weight in (1.0, 3.0)]
    assert loss_formula(["a"], make_terms(infos, [{}], schedules)) == (
        "a + [1 to 3, mean 2] × hcl(1-1; conv2(width=8))"
    )
