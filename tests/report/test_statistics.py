"""Spreads and paired intervals, against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from distpro_cli.report.statistics import paired_difference, spread, t_quantile


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 9, 30, 31, 200])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_t_quantile(degrees: int, confidence: float) -> None:
    assert t_quantile(degrees, confidence) == pytest.approx(stats.t.ppf((1 + confidence) / 2, degrees), rel=1e-9)


def test_paired_interval_is_that_of_the_paired_t_test() -> None:
    values, baseline = [61.2, 60.4, 62.9, 61.0], [60.0, 60.1, 61.1, 60.9]
    found = paired_difference(values, baseline)
    expected = stats.ttest_rel(values, baseline).confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))
    wider, expected = paired_difference(values, baseline, 0.99), stats.ttest_rel(values, baseline)
    assert wider["high"] == pytest.approx(expected.confidence_interval(0.99).high)
    assert found["mean"] == pytest.approx(np.mean(values) - np.mean(baseline))
    assert found["values"] == pytest.approx([1.2, 0.3, 1.8, 0.1])


def test_one_seed_has_no_spread_and_no_interval() -> None:
    assert spread([50.0]) == {"mean": 50.0, "std": 0.0, "values": [50.0]}
    assert paired_difference([50.0], [49.0]) == {"mean": 1.0, "low": None, "high": None, "values": [1.0]}


def test_spread_is_that_of_a_sample() -> None:
    assert spread([1.0, 2.0, 4.0])["std"] == pytest.approx(np.std([1, 2, 4], ddof=1))
