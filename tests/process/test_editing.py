"""Processes made of processes: numbers against numpy and scipy, what the history says, and the way through text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import quad

from distpro_cli.errors import DistproError, ProcessError
from distpro_cli.process.editing import average, between, digest, edit, only, resampled, scaled, smoothed, with_table
from distpro_cli.process.file import load_process, save_process, to_bytes
from distpro_cli.process.process import Process
from distpro_cli.process.tables import export_table, read_table
from tests.process.examples import lower_pathways, make_pathway, make_process
from tests.process.test_cost import PARTS

MOMENTS = (0.0, 0.013, 0.3, 0.5, 0.77, 1.0)


def with_scale(process: Process) -> Process:
    scale = np.random.default_rng(5).uniform(0.5, 2, size=process.weights.shape).astype(np.float32)
    return replace(process, scale=scale, weights=process.weights * scale)


def test_the_average_is_that_of_the_interpolated_weights() -> None:
    processes = [make_process(21), make_process(33, seed=1), make_process(10, seed=2)]
    shuffled = replace(
        processes[1],
        weights=processes[1].weights[:, ::-1],
        alpha=processes[1].alpha[:, ::-1],
        pathways=processes[1].pathways[::-1],
    )
    mean = average([processes[0], shuffled, processes[2]])
    for u in MOMENTS:
        expected = np.mean([process.at(u) for process in processes], axis=0)
        np.testing.assert_allclose(mean.at(u), expected, rtol=1e-5)
    assert mean.history == (
        f"average of 3 processes: {digest(processes[0])}, {digest(shuffled)}, {digest(processes[2])}",
    )
    assert mean.measured == {} and mean.recipe == processes[0].recipe
    assert mean.searched["teacher"] == "wrn_16_2"  # of all their recipes


def test_what_does_not_go_together_has_no_average() -> None:
    process = make_process()
    with pytest.raises(ProcessError, match=r"different normalisations \(biased-softmax, softmax\)"):
        average([process, replace(process, normalization="softmax")])
    with pytest.raises(ProcessError, match="different scales"):
        average([process, with_scale(process)])
    with pytest.raises(ProcessError, match="only in the process: 1-1"):
        average([only(process, ["2-1"]), process])


@pytest.mark.parametrize("width", [0.03, 0.2, 1.0])
def test_smoothing_is_the_mean_over_a_window(width: float) -> None:
    process = with_scale(make_process(17))
    smooth = smoothed(process, width)
    column = process.weights[:, 3]
    for row in (0, 1, 8, 16):
        low, high = max(process.progress[row] - width / 2, 0), min(process.progress[row] + width / 2, 1)
        inside = [float(u) for u in process.progress if low < u < high]
        area = quad(lambda u: np.interp(u, process.progress, column), low, high, points=inside or None, limit=200)[0]
        assert smooth.weights[row, 3] == pytest.approx(area / (high - low), rel=1e-5)
    assert smooth.history == (f"smoothed over {width:g} of the run",)
    constant = replace(process, weights=np.ones_like(process.weights))
    np.testing.assert_allclose(smoothed(constant, width).weights, 1, rtol=1e-6)


def test_a_factor_is_one_of_kappa() -> None:
    process = replace(with_scale(make_process()), searched={"teacher": "t", "kappa": 10.0}, gained={"last": 1.0})
    more = scaled(process, 0.25)
    np.testing.assert_allclose(more.weights, process.weights / 4)
    np.testing.assert_array_equal(more.alpha, process.alpha)
    assert more.searched["kappa"] == 2.5 and more.history == ("weights times 0.25",)
    assert more.gained == {}  # that was the other's


def test_pathways_and_time_are_cut() -> None:
    process = replace(with_scale(make_process()), parts=PARTS)
    few = only(process, ["3-1", "1-1"])
    np.testing.assert_array_equal(few.weights, process.weights[:, [0, 3]])
    assert [info.id for info in few.pathways] == ["1-1", "3-1"]
    assert all(part.pathways is None or max(part.pathways, default=0) < 2 for part in few.parts)
    assert [part for part in few.parts if part.pathways is None] == [part for part in PARTS if part.pathways is None]
    part = between(process, (0.2, 0.7))
    for u in MOMENTS:
        np.testing.assert_allclose(part.at(u), process.at(0.2 + 0.5 * u), rtol=1e-4)
    assert part.progress[0] == 0 and part.progress[-1] == 1
    np.testing.assert_allclose(between(process, (0.501, 0.503)).at(1.0), process.at(0.503), rtol=1e-4)
    coarse = resampled(process, 5)
    np.testing.assert_allclose(coarse.weights, [process.at(u) for u in (0, 0.25, 0.5, 0.75, 1)], rtol=1e-5)


def test_steps_come_in_order_and_all_are_noted(tmp_path: Path) -> None:
    made = edit([make_process(), make_process(seed=1)], pathways=["2-2"], time=(0, 0.5), smooth=0.1, factor=2, rows=11)
    notes = [
        "average of 2",
        "only 1 of 10 pathways: 2-2",
        "the part from 0 to 0.5",
        "smoothed",
        "weights times 2",
        "read",
    ]
    assert all(line.startswith(note) for line, note in zip(made.history, notes, strict=True))
    save_process(made, tmp_path / "p.safetensors")
    again = load_process(tmp_path / "p.safetensors")
    assert again.history == made.history and again.searched == made.searched


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"smooth": 0.0}, "--smooth is 0; allowed: more than 0, up to 1"),
        ({"smooth": float("nan")}, "--smooth is nan"),
        ({"factor": -1.0}, "--factor is -1"),
        ({"factor": float("inf")}, "--factor is inf"),
        ({"time": (0.7, 0.2)}, "--time is 0.7:0.2"),
        ({"time": (0.5, float("nan"))}, "--time is 0.5:nan"),
        ({"rows": 1}, "--rows is 1; allowed: 2 to 10000"),
        ({"pathways": ["9-9"]}, r"there is no 9-9.*; there are: 1-1, 2-1"),
        ({"pathways": []}, "names none"),
    ],
)
def test_senseless_changes_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(DistproError, match=message):
        edit([make_process()], **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", [".csv", ".yaml", ".yml"])
@pytest.mark.parametrize("scaled_too", [False, True])
def test_the_way_through_text_changes_no_bit(tmp_path: Path, suffix: str, scaled_too: bool) -> None:
    process = make_process(31)
    odd = process.weights.copy()
    odd[3, 2], odd[4, 2], odd[5, 2] = 1e-30, 3.4e38, 0.1
    process = replace(process, weights=odd)
    process = with_scale(replace(process, weights=make_process(31).weights)) if scaled_too else process
    export_table(process, tmp_path / f"t{suffix}")
    back = with_table(process, read_table(tmp_path / f"t{suffix}"))
    assert to_bytes(back) == to_bytes(process)


def test_what_was_edited_by_hand_counts_for_thresholds_too(tmp_path: Path) -> None:
    process = make_process(5, pathways=lower_pathways()[:3])
    export_table(process, tmp_path / "t.csv")
    lines = (tmp_path / "t.csv").read_text().splitlines()
    heads = lines[0].split(",")
    assert heads == ["progress", "1-1", "2-1", "2-2", "alpha 1-1", "alpha 2-1", "alpha 2-2"]
    cells = [line.split(",") for line in lines]
    cells[3][1] = "99"
    (tmp_path / "t.csv").write_text("\n".join(",".join(line) for line in cells) + "\n")
    made = with_table(process, read_table(tmp_path / "t.csv"))
    assert made.weights[2, 0] == 99 and made.normalization == "none" and made.history == ("edited by hand",)
    np.testing.assert_array_equal(made.alpha, made.weights)
    assert made.schedule(keep=1 / 15).mask[2, 0]
    # Who gives alpha as well has it as given.
    cells[3][4] = "7"
    (tmp_path / "t.csv").write_text("\n".join(",".join(line) for line in cells) + "\n")
    made = with_table(process, read_table(tmp_path / "t.csv"))
    assert made.alpha[2, 0] == 7 and made.normalization == process.normalization


def test_a_table_may_have_other_rows_and_fewer_pathways(tmp_path: Path) -> None:
    process = with_scale(make_process(11))
    (tmp_path / "t.yaml").write_text("progress: [0, 0.3, 1]\nweights:\n  2-1: [0, 5, 1e-3]\n  4-4: [1, 1, 1]\n")
    made = with_table(process, read_table(tmp_path / "t.yaml"))
    assert [info.id for info in made.pathways] == ["2-1", "4-4"]
    np.testing.assert_allclose(made.weights, [[0, 1], [5, 1], [1e-3, 1]])
    assert made.scale is not None
    columns = [[info.id for info in process.pathways].index(name) for name in ("2-1", "4-4")]
    expected = [[np.interp(u, process.progress, process.scale[:, k]) for k in columns] for u in (0, 0.3, 1)]  # type: ignore[index]
    np.testing.assert_allclose(made.scale, expected, rtol=1e-5)
    np.testing.assert_allclose(made.alpha, made.weights / made.scale, rtol=1e-5)


BAD_TABLES = [
    ("t.csv", "", "expected a line of heads that starts with progress"),
    ("t.csv", "progress,1-1\n0,1\n", "at least two rows"),
    ("t.csv", "progress,1-1\n0,1\n1,x\n", "row 2, column 1-1: 'x' is no finite number"),
    ("t.csv", "progress,1-1\n0,1\n1,inf\n", "row 2, column 1-1: 'inf'"),
    ("t.csv", "progress,1-1\n0,1\n1\n", "row 2 has 1 values where there are 2 columns"),
    ("t.csv", "progress,1-1,1-1\n0,1,1\n1,1,1\n", "the column 1-1 occurs twice"),
    ("t.csv", "progress,7-7\n0,1\n1,1\n", "the process has no pathway 7-7"),
    ("t.csv", "progress,alpha 1-1\n0,1\n1,1\n", "pathway 1-1 has no column of weights"),
    ("t.csv", "progress,1-1\n0,1\n1,-1\n", "t.csv: weights holds a negative value"),
    ("t.csv", "progress,1-1\n0.1,1\n1,1\n", "t.csv: progress does not increase from 0 to 1"),
    ("t.yaml", "weights: {1-1: [1, 1]}\n", "expected the keys progress and weights"),
    ("t.yaml", "progress: [0, 1]\nweights: {1-1: [1]}\n", "weights of 1-1 is no list of 2 numbers"),
    ("t.yaml", "progress: [0, 1]\nweights: {1-1: [1, true]}\n", "'True' is no finite number"),
    ("t.yaml", "progress: [0, 1]\nweights: {1-1: [1, 1]}\nscal: 3\n", "unknown key 'scal'"),
    ("t.yaml", "progress: [0, 1", "t.yaml: "),
]


@pytest.mark.parametrize(("name", "text", "message"), BAD_TABLES)
def test_tables_that_are_none_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DistproError) as error:
        with_table(make_process(), read_table(tmp_path / name))
    assert message in str(error.value)


def test_other_files_are_no_tables(tmp_path: Path) -> None:
    with pytest.raises(
        DistproError, match=r"suffix is '\.cvs'; allowed: \.csv, \.yaml, \.yml \(did you mean '\.csv'\?\)"
    ):
        export_table(make_process(), tmp_path / "t.cvs")
    with pytest.raises(DistproError, match=r"t\.csv: cannot be read: No such file"):
        read_table(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(DistproError, match="not UTF-8"):
        read_table(tmp_path / "t.csv")
    with pytest.raises(DistproError, match=r"too many for YAML; export \.csv"):
        export_table(make_process(2000), tmp_path / "t.yaml")


def test_names_with_commas_and_spaces_survive(tmp_path: Path) -> None:
    odd = [make_pathway(1, 1), make_pathway(1, 1, transform="a, b.py:N", name='1-1:a, b.py:N+"hcl"')]
    process = make_process(4, pathways=odd)
    for name in ("t.csv", "t.yaml"):
        export_table(process, tmp_path / name)
        assert to_bytes(with_table(process, read_table(tmp_path / name))) == to_bytes(process)


def test_a_note_is_no_longer_than_a_file_may_hold(tmp_path: Path) -> None:
    many = [replace(info, id=f"{info.id}:{'x' * 60}") for info in lower_pathways()]
    made = only(make_process(3, pathways=many), [info.id for info in many[1:]])
    save_process(made, tmp_path / "p.safetensors")
    assert load_process(tmp_path / "p.safetensors").history == made.history and made.history[0].endswith("...")
