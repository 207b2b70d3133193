"""Interpolation, thresholds and shares against numpy's own, and the rows that are kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from distpro_cli.errors import DistproError, ProcessError
from distpro_cli.process.schedule import rows_to_keep
from distpro_cli.process.summary import summarize
from tests.process.examples import constant_process, lower_pathways, make_process


@pytest.mark.parametrize("u", [0.0, 0.013, 0.5, 0.731, 1.0])
def test_weights_are_interpolated_linearly(u: float) -> None:
    process = make_process()
    expected = [np.interp(u, process.progress, column) for column in process.weights.T]
    np.testing.assert_allclose(process.at(u), expected, rtol=1e-5)
    np.testing.assert_allclose(process.schedule().at(u), expected, rtol=1e-5)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_a_threshold_keeps_what_scaled_alpha_reaches(threshold: float) -> None:
    process = make_process()
    scaled = (process.alpha - process.alpha.min()) / (process.alpha.max() - process.alpha.min())
    schedule = process.schedule(threshold=threshold)
    for row, u in enumerate(process.progress):
        expected = np.where(scaled[row] >= threshold, process.weights[row], 0)
        np.testing.assert_allclose(schedule.at(float(u)), expected, rtol=1e-5)
    assert schedule.remaining_percent == pytest.approx(100 * (scaled >= threshold).mean())
    left = summarize(process, [threshold])["remaining_percent"]
    assert left == {f"{threshold:g}": pytest.approx(schedule.remaining_percent)}


@pytest.mark.parametrize("keep", [0.01, 0.3, 0.5, 1.0])
def test_keep_takes_the_strongest_share(keep: float) -> None:
    process = make_process()
    schedule = process.schedule(keep=keep)
    count = round(keep * process.alpha.size)
    assert schedule.mask.sum() == count
    assert process.alpha[schedule.mask].min() >= process.alpha[~schedule.mask].max(initial=-np.inf)


def test_pathways_go_on_and_off_over_time() -> None:
    schedule = make_process().schedule(threshold=0.6)
    on = [schedule.at(u) > 0 for u in np.linspace(0, 1, 101)]
    assert not on[0][-1] and on[-1][-1]


def test_equal_alpha_is_kept_whole() -> None:
    constant = constant_process(lower_pathways(), 0.9)
    assert constant.schedule(threshold=0.9).remaining_percent == 100
    np.testing.assert_allclose(constant.at(0.3), 0.9)


@pytest.mark.parametrize(
    "options", [{"threshold": 0.5, "keep": 0.5}, {"threshold": 1.5}, {"threshold": -0.1}, {"keep": 0.0}, {"keep": 2.0}]
)
def test_senseless_dropping_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(DistproError, match="--"):
        make_process().schedule(**options)


def test_means_are_the_integral() -> None:
    process = make_process(401)
    np.testing.assert_allclose(process.mean, np.trapezoid(process.weights, process.progress, axis=0), rtol=1e-5)
    np.testing.assert_allclose(process.mean_over_time().at(0.7), process.mean, rtol=1e-5)
    assert process.share.sum() == pytest.approx(1)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 1999, 2000, 2001, 1_234_567])
def test_rows_kept_are_few_ordered_and_hold_both_ends(num_steps: int) -> None:
    rows = rows_to_keep(num_steps)
    assert rows[0] == 0 and rows[-1] == num_steps - 1
    assert rows == sorted(set(rows)) and len(rows) <= 2000
    if num_steps <= 2000:
        assert rows == list(range(num_steps))


@pytest.mark.parametrize("field", ["weights", "alpha", "progress"])
def test_tables_that_do_not_fit_are_refused(field: str) -> None:
    process = make_process()
    with pytest.raises(ProcessError):
        replace(process, **{field: getattr(process, field)[:-1]})


LENGTHS = [1, 2, 3, 7, 20, 21, 1000, 10**6]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("num_steps", LENGTHS)
def test_interpolation_in_runs_of_any_length(num_steps: int, seed: int) -> None:
    """End points are exact, between two rows nothing leaves their range, and a monotone piece stays monotone."""
    generator = np.random.default_rng([num_steps, seed])
    rows = int(generator.integers(2, 300))
    inner = np.unique(generator.uniform(size=rows).astype(np.float32))
    progress = np.concatenate([[0], inner[(inner > 0) & (inner < 1)], [1]]).astype(np.float32)
    rising = np.cumsum(generator.exponential(size=len(progress)) * generator.integers(0, 2, size=len(progress)))
    free = generator.lognormal(sigma=4, size=len(progress))
    process = replace(
        constant_process(lower_pathways()[:3], 1.0),
        progress=progress,
        weights=np.stack([rising, rising[::-1], free], axis=1),
        alpha=np.zeros((len(progress), 3)),
    )
    schedule, table = process.schedule(), process.weights
    assert schedule.at(0.0).tolist() == table[0].tolist() and schedule.at(1.0).tolist() == table[-1].tolist()
    for row in range(0, len(progress), 7):
        assert schedule.at(float(progress[row])).tolist() == table[row].tolist()
    steps = np.unique(np.concatenate([[0], generator.integers(0, num_steps, size=400), [num_steps - 1]]))
    found = np.stack([schedule.at(step / num_steps) for step in steps])
    assert (np.diff(found[:, 0]) >= 0).all() and (np.diff(found[:, 1]) <= 0).all()
    for step, weights in zip(steps, found, strict=True):
        u = np.float32(step / num_steps)
        around = table[[np.searchsorted(progress, u, side="right") - 1, np.searchsorted(progress, u, side="left")]]
        assert (weights >= around.min(axis=0)).all() and (weights <= around.max(axis=0)).all()
