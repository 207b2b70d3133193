"""Fitting a process to a pair: nothing but the order changes, and columns left out change no other column."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from distpro_cli.errors import DistproError, ProcessError
from distpro_cli.process.cost import Part
from distpro_cli.process.file import save_process
from distpro_cli.process.fitting import How, fit
from distpro_cli.process.pathway import PathwayInfo
from distpro_cli.process.process import Process
from tests.conftest import Run
from tests.process.examples import lower_pathways, make_pathway, make_process
from tests.process.test_cost import PARTS

LOOSE = f"{Path(__file__).parent.parent / 'toys' / 'matching.py'}:Loose"
DROPPING: list[dict[str, float]] = [{}, {"threshold": 0.3}, {"threshold": 0.6}, {"keep": 0.5}, {"keep": 0.07}]
MOMENTS = (0.0, 0.05, 0.21, 0.5, 0.777, 1.0)


def example(seed: int) -> Process:
    """A process with parts, and many entries of equal alpha, of which `keep` takes those that come first."""
    process = make_process(13, seed=seed)
    return replace(process, alpha=np.round(process.alpha, 1), parts=PARTS)


def by_id(process: Process, dropping: dict[str, float], u: float) -> dict[str, float]:
    weights = process.schedule(**dropping).at(u).tolist()
    return dict(zip((info.id for info in process.pathways), weights, strict=True))


def shuffled(pathways: Sequence[PathwayInfo], seed: int) -> list[PathwayInfo]:
    return [pathways[k] for k in np.random.default_rng(seed).permutation(len(pathways))]


def only(*ids: str) -> list[PathwayInfo]:
    infos = {info.id: info for info in lower_pathways()}
    return [infos[name] for name in ids]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dropping", DROPPING, ids=str)
def test_a_permutation_changes_no_weight_and_no_cost(seed: int, dropping: dict[str, float]) -> None:
    process = example(seed)
    infos = shuffled(process.pathways, seed)
    fitted = fit(process, infos)
    assert list(fitted.pathways) == infos
    for u in MOMENTS:
        assert by_id(fitted, dropping, u) == by_id(process, dropping, u)
    before, after = process.schedule(**dropping), fitted.schedule(**dropping)
    assert after.remaining_percent == before.remaining_percent
    assert fitted.relative_cost(after) == process.relative_cost(before)
    back = fit(fitted, process.pathways)
    np.testing.assert_array_equal(back.schedule(**dropping).mask, before.mask)
    assert back.parts == process.parts


@pytest.mark.parametrize("dropping", DROPPING, ids=str)
@pytest.mark.parametrize("ids", [("4-4", "2-1", "3-3"), ("2-2",)])
def test_columns_left_out_change_no_other_column(dropping: dict[str, float], ids: tuple[str, ...]) -> None:
    process = example(0)
    alpha = process.alpha.copy()
    alpha[0, 0], alpha[-1, 0] = -9, 9  # of 1-1, which is left out: the whole range
    process = replace(process, alpha=alpha)
    fitted = fit(process, only(*ids), How(LOOSE))
    again = fit(fit(process, only("1-1", *ids), How(LOOSE)), only(*ids), How(LOOSE))
    for u in MOMENTS:
        whole = by_id(process, dropping, u)
        assert by_id(fitted, dropping, u) == by_id(again, dropping, u) == {name: whole[name] for name in ids}
    mean = fitted.mean_over_time().schedule(**dropping)
    expected = fit(process.mean_over_time(), only(*ids), How(LOOSE)).schedule(**dropping)
    np.testing.assert_array_equal(mean.mask, expected.mask)
    np.testing.assert_allclose(mean.weights, expected.weights, rtol=1e-6)


def test_parts_follow_the_columns() -> None:
    parts = (
        Part("student forward", 4.0),
        Part("teacher 2", 2.0, (1, 2)),
        Part("teacher 4", 8.0, (9,)),
        Part("never", 1.0, ()),
        *(Part(f"pathway {k}", 1.0 + k, (k,)) for k in range(10)),
    )
    process = replace(make_process(), parts=parts)
    fitted = fit(process, only("2-2", "1-1"), How(LOOSE))  # columns 2 and 0
    assert fitted.parts == (
        Part("student forward", 4.0),
        Part("teacher 2", 2.0, (0,)),
        Part("never", 1.0, ()),
        Part("pathway 0", 1.0, (1,)),
        Part("pathway 2", 3.0, (0,)),
    )
    assert fitted.relative_cost(fitted.schedule()) == pytest.approx(10 / 11)


def test_a_column_may_drive_several_pathways() -> None:
    process = replace(make_process(), parts=PARTS)
    twin = make_pathway(2, 1, transform="conv1", name="2-1:conv1+hcl")
    fitted = fit(process, [*only("2-1"), twin], How(LOOSE))
    np.testing.assert_array_equal(fitted.weights, process.weights[:, [1, 1]])
    assert Part("teacher 1", 7.0, (0, 1)) in fitted.parts


def test_everything_else_is_kept_and_the_weights_are_those_of_the_columns() -> None:
    process = make_process()
    wider = [replace(i, student=replace(i.student, shape=(99, *i.student.shape[1:]))) for i in lower_pathways()[::-1]]
    fitted = fit(process, wider)
    np.testing.assert_array_equal(fitted.weights, process.weights[:, ::-1])
    np.testing.assert_array_equal(fitted.alpha, process.alpha[:, ::-1])
    np.testing.assert_array_equal(fitted.progress, process.progress)
    for name in ("normalization", "recipe", "versions", "seed", "measured"):
        assert getattr(fitted, name) == getattr(process, name)
    with pytest.raises(ProcessError, match="whole_alpha"):
        replace(fitted, alpha=process.alpha)


def test_columns_of_equal_pathways_follow_their_options() -> None:
    plain, wide = make_pathway(2, 1), replace(make_pathway(2, 1, name="2-1:b"), transform_options={"width": 16})
    process = make_process(pathways=[plain, wide])
    fitted = fit(process, [replace(wide, id="x"), replace(plain, id="y")])
    np.testing.assert_array_equal(fitted.weights, process.weights[:, ::-1])


def test_a_mismatch_names_every_difference() -> None:
    process = make_process()
    others = [make_pathway(1, 1, transform="conv1"), *lower_pathways()[2:]]
    with pytest.raises(ProcessError) as error:
        fit(process, others)
    text = str(error.value)
    assert "1-1" in text and "conv1" in text and "conv2" in text and "2-1" in text
    assert "3-3" not in text
    with pytest.raises(ProcessError, match="level"):
        fit(process, lower_pathways(5)[:10])


def test_a_mode_that_is_none_is_refused() -> None:
    process = make_process()
    with pytest.raises(DistproError, match=r"unknown --match mode 'levle' \(did you mean 'level'\?\)"):
        fit(process, lower_pathways(), How("levle"))
    with pytest.raises(DistproError, match=r"Lose.*did you mean 'Loose'"):
        fit(process, lower_pathways(), How(LOOSE.replace("Loose", "Lose")))
    with pytest.raises(DistproError, match=r"no subclass of distpro_cli\.process\.matching\.Matching"):
        fit(process, lower_pathways(), How(LOOSE.replace("Loose", "Process")))
    with pytest.raises(ProcessError, match=r"returned the columns \[\]; expected one per pathway of the pair \(1\)"):
        fit(process, only("2-1"), How(LOOSE.replace("Loose", "Careless")))
    with pytest.raises(ProcessError, match="no pathway 5-5"):
        fit(process, [make_pathway(5, 5, 5)], How(LOOSE))


def test_the_registered_name_is_found_in_the_file() -> None:
    assert [info.id for info in fit(make_process(), only("3-1"), How(LOOSE.replace("Loose", "loose"))).pathways] == [
        "3-1"
    ]


def test_a_mode_of_a_users_file_drives_a_transfer(distpro: Run, workplace: Path) -> None:
    process = make_process()
    save_process(process, workplace / "p.safetensors")
    overrides = ["pathways.0.connections=same", "distill.epochs=1", "--threshold", 0.6]
    result = distpro("transfer", "tiny.yaml", "-p", "p.safetensors", "--match", LOOSE, *overrides, "--json", "-q")
    assert result.status == 0, result.err
    rows = [json.loads(line) for line in (Path(result.json["run_dir"]) / "metrics.jsonl").read_text().splitlines()]
    row = [row for row in rows if "weights" in row][-1]
    whole = by_id(process, {"threshold": 0.6}, row["step"] / 5)
    assert row["weights"] == {name: whole[name] for name in ("1-1", "2-2", "3-3", "4-4")}
    assert 0 < sum(weight > 0 for weight in row["weights"].values()) < 4
    strict = distpro("transfer", "tiny.yaml", "-p", "p.safetensors", *overrides, "-q")
    assert strict.status == 2 and "only in the process: 2-1" in strict.err
