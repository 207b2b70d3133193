"""Constants read off made-up timings are those that made them; timings that make no sense are refused."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
import torch

from distpro_cli.costs import calibration
from distpro_cli.costs.calibration import CASES, Ready, calibrate, fit
from distpro_cli.errors import DistproError
from distpro_cli.process.machine import BUILT_IN, Machine, Work

CPU = torch.device("cpu")
WORKS = [work for case in CASES for work in Ready(case, torch.device("meta"), "float32", 8).work() if work.operations]


def made_up(*per_unit: float) -> list[float]:
    return [float(np.dot(per_unit, astuple(work))) for work in WORKS]


@pytest.mark.parametrize(
    "per_unit",
    [(1e-10, 2e-11, 3e-11, 1e-5), (1e-10, 2e-11, 3e-11, 0.0), (1e-10, 2e-11, 0.0, 1e-5), (5e-13, 2e-15, 2e-15, 8e-6)],
)
def test_a_fit_recovers_what_made_the_times(per_unit: tuple[float, ...]) -> None:
    found, errors = fit(WORKS, made_up(*per_unit))
    assert found == pytest.approx(per_unit, rel=1e-6, abs=1e-20)
    assert errors.max() < 1e-6


def test_a_fit_is_the_best_of_those_that_are_not_negative() -> None:
    noise = np.exp(np.random.default_rng(0).normal(0, 0.5, len(WORKS)))
    seconds = (np.array(made_up(1e-10, 2e-11, 3e-11, 1e-5)) * noise).tolist()
    share_n4 = np.array([astuple(work) for work in WORKS]) / np.array(seconds)[:, None]
    found, errors = fit(WORKS, seconds)
    assert (found >= 0).all() and errors == pytest.approx(np.abs(share_n4 @ found - 1))
    # Karush, Kuhn and Tucker: flat where a constant is above 0, rising where it is 0.
    slope_4 = share_n4.T @ (share_n4 @ found - 1) / np.linalg.norm(share_n4, axis=0)
    assert np.abs(slope_4[found > 0]).max() < 1e-9 and (slope_4[found == 0] > -1e-9).all()


def test_constants_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "measured", lambda *_: (WORKS, made_up(1e-10, 2e-11, 3e-11, 1e-5)))
    found = calibrate(CPU, "bfloat16", "a machine")
    machine = found.machine("bfloat16")
    assert machine.name == "a machine, bfloat16" and found.worst_error < 1e-6
    assert machine.flops_per_byte == pytest.approx(5) and machine.backward_factor == pytest.approx(1.5)
    assert machine.operation_bytes == pytest.approx(1e5)
    work = Work(100, 60, 30, 2)
    assert Machine(5, 1.5, 10).cost(work) == pytest.approx(100 + (60 + 45) / 5 + 20)
    assert BUILT_IN.cost(work) == pytest.approx(100 + (60 + 42) / 6)


@pytest.mark.parametrize(
    ("per_unit", "free"), [((0.0, 2e-11, 3e-11, 1e-5), "moving bytes"), ((1e-10, 0.0, 0.0, 1e-5), "arithmetic")]
)
def test_times_that_make_no_sense_are_refused(
    monkeypatch: pytest.MonkeyPatch, per_unit: tuple[float, ...], free: str
) -> None:
    tries = []
    monkeypatch.setattr(calibration, "measured", lambda *_: (tries.append(1), (WORKS, made_up(*per_unit)))[1])
    with pytest.raises(DistproError, match=rf"a machine, float32: the timings make no sense \({free} took no time\)"):
        calibrate(CPU, "float32", "a machine")
    assert len(tries) == calibration.ATTEMPTS


def test_every_case_runs_both_ways_and_counts_by_hand() -> None:
    convolution = Ready(CASES[0], CPU, "float32", 2)
    convolution.backward(convolution.forward())
    map_bytes, weight_bytes, product = 4 * 2 * 16 * 32 * 32, 4 * 16 * 16 * 9, 2 * 2 * 16 * 32 * 32 * 16 * 9
    assert convolution.work() == [
        Work(2 * map_bytes + weight_bytes, product, 0, 1),
        Work(3 * map_bytes + 2 * weight_bytes, 0, 2 * product, 1),
    ]
    half = Ready(CASES[0], CPU, "bfloat16", 2)
    assert half.forward().dtype == torch.bfloat16
    half.backward(half.forward())
