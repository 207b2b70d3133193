"""The predicted cost of dropping against a simulation step by step, and against sums done by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from distpro_cli.errors import ProcessError
from distpro_cli.process.cost import Part, relative_cost, relative_rule_cost, relative_search_cost
from distpro_cli.process.file import load_process, save_process
from distpro_cli.process.schedule import Schedule
from tests.process.examples import constant_process, lower_pathways, make_process

NUM_STEPS = 4_000
PARTS = (
    Part("student forward", 10.0),
    Part("student backward", 20.0),
    Part("student update", 1.5),
    Part("teacher 1", 7.0, tuple(range(10))),
    Part("teacher 3", 9.0, (3, 4, 5, 6, 7, 8, 9)),
    Part("teacher 4", 8.0, (6, 7, 8, 9)),
    Part("shared 1 level 2", 3.0, (1, 2)),
    *(Part(f"pathway {k}", 1.0 + k, (k,)) for k in range(10)),
)


def simulated(parts: Sequence[Part], schedule: Schedule) -> float:
    """The same, one step after the other."""
    total = 0.0
    for step in range(NUM_STEPS):
        on = set(np.flatnonzero(schedule.at((step + 0.5) / NUM_STEPS)))
        total += sum(part.cost for part in parts if part.pathways is None or on & set(part.pathways))
    return total / NUM_STEPS / sum(part.cost for part in parts)


@pytest.mark.parametrize("dropping", [{"threshold": 0.5}, {"threshold": 0.7}, {"keep": 0.5}, {"keep": 0.26}])
def test_equals_a_simulation_of_every_step(dropping: dict[str, float]) -> None:
    for process in (make_process(7), make_process(7, seed=1)):
        schedule = process.schedule(**dropping)
        assert relative_cost(PARTS, schedule) == pytest.approx(simulated(PARTS, schedule), abs=2e-3)


def test_weights_of_zero_are_off_and_equal_scores_follow_keep() -> None:
    process = make_process(5)
    weights = process.weights.copy()
    weights[:3, 4:] = 0  # on again from the third row on, where the interpolation leaves 0
    process = replace(process, weights=weights)
    schedule = process.schedule()
    assert relative_cost(PARTS, schedule) == pytest.approx(simulated(PARTS, schedule), abs=2e-3)
    level = replace(process, alpha=np.ones_like(process.alpha))
    schedule = level.schedule(keep=0.5)
    assert relative_cost(PARTS, schedule) == pytest.approx(simulated(PARTS, schedule), abs=2e-3)
    nothing = constant_process(lower_pathways(), 0.0)
    assert relative_cost(PARTS, nothing.schedule()) == pytest.approx(31.5 / sum(part.cost for part in PARTS))


def test_nothing_dropped_costs_everything() -> None:
    assert relative_cost(PARTS, make_process().schedule()) == pytest.approx(1)


def test_a_search_step_adds_two_forwards_a_backward_and_the_shared_blocks() -> None:
    total = sum(part.cost for part in PARTS)
    added = 2 * 10 + 20 + 1.5 + 3 / 3
    assert relative_search_cost(PARTS) == pytest.approx(1 + added / total)
    assert relative_search_cost(PARTS, interval=4) == pytest.approx(1 + added / total / 4)
    half = 1.5 * 10 + 0.5 * 20 + 1.5 + 3 / 3
    assert relative_search_cost(PARTS, interval=2, outer=0.5) == pytest.approx(1 + half / total / 2)


def test_a_step_by_a_rule_over_gradients_adds_a_way_back() -> None:
    total = sum(part.cost for part in PARTS)
    assert relative_rule_cost(PARTS) == pytest.approx(1 + 20 / total)
    assert relative_rule_cost(PARTS, interval=5) == pytest.approx(1 + 20 / total / 5)


def test_parts_go_through_a_file_and_older_files_have_none(tmp_path: Path) -> None:
    process = replace(make_process(), parts=PARTS)
    save_process(process, tmp_path / "with.safetensors")
    assert load_process(tmp_path / "with.safetensors").parts == PARTS
    save_process(process, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "with.safetensors").read_bytes()
    save_process(make_process(), tmp_path / "without.safetensors")
    with safe_open(tmp_path / "without.safetensors", framework="numpy") as file:
        assert "parts" not in file.metadata()
    old = load_process(tmp_path / "without.safetensors")
    assert old.parts == () and old.relative_cost(old.schedule()) is None
    assert process.mean_over_time().parts == PARTS


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "not a list"),
        ([{"name": "a", "cost": 1}], "part 1 lacks pathways"),
        ([{"name": "a", "cost": -1, "pathways": None}], "part 1: cost is -1"),
        ([{"name": "a", "cost": "1", "pathways": None}], "part 1: cost is '1'"),
        ([{"name": "a\n", "cost": 1, "pathways": None}], "part 1: name"),
        ([{"name": "a", "cost": 1, "pathways": [0.5]}], "pathways are [0.5]"),
        ([{"name": "a", "cost": 1, "pathways": [10]}], "names pathway 10; there are 0 to 9"),
        ([{"name": "a", "cost": 0, "pathways": None}], "do not add up"),
        ([{"name": "a", "cost": 1, "pathways": None}] * 50_001, "at most 50000"),
    ],
)
def test_wrong_parts_are_refused(tmp_path: Path, parts: object, message: str) -> None:
    save_process(replace(make_process(), parts=PARTS), tmp_path / "p.safetensors")
    with safe_open(tmp_path / "p.safetensors", framework="numpy") as file:
        metadata = file.metadata()
        tables = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    path = tmp_path / "wrong.safetensors"
    save_file(tables, path, {**metadata, "parts": json.dumps(parts)})
    with pytest.raises(ProcessError) as error:
        load_process(path)
    assert message in str(error.value) and str(path) in str(error.value)
