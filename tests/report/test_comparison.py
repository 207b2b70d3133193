"""The words and tables of a comparison."""

from __future__ import annotations

import io
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from distpro_cli.errors import DistproError
from distpro_cli.metric import Metric
from distpro_cli.report.comparison import NO_SEARCH, SearchCost, markdown, print_comparison, summarize_method
from distpro_cli.report.comparison_plot import plot_comparison

ACCURACY = Metric("accuracy", "accuracy", "%")
ERROR = Metric("mse", "squared error", "mm", higher_is_better=False)


def run(last: float, seconds: float, metric: Metric = ACCURACY) -> dict[str, Any]:
    return {
        "student": {f"{metric.name}_last": last, f"{metric.name}_best": last + 1},
        "seconds": seconds,
        "device_seconds": 2 * seconds,
        "remaining_percent": 50.0,
        "pathways_used": 4,
        "run_dir": "runs/x",
    }


@pytest.fixture
def summary() -> dict[str, Any]:
    alone = summarize_method("student", [run(60.0, 10), run(62.0, 12)], [60.0, 62.0], NO_SEARCH, ACCURACY)
    process = summarize_method(
        "process keep 0.5",
        [run(63.0, 20), run(66.0, 22)],
        [60.0, 62.0],
        SearchCost(120.0, 240.0, estimated=True),
        ACCURACY,
    )
    hint = summarize_method("hint", [run(59.0, 20), run(60.0, 22)], [60.0, 62.0], NO_SEARCH, ACCURACY)
    reasons = ["distillation is 90 % of the loss, mean over the run"]
    return {
        "methods": [alone, process, hint],
        "teacher": {"name": "wrn_16_2", "accuracy": 70.0},
        "metric": asdict(ACCURACY),
        "student": "wrn_10_1",
        "epochs": 5,
        "seeds": [0, 1],
        "device": "cpu, 2 threads",
        "worse": [{"name": "hint", "difference": -1.5, "certain": False, "reasons": reasons}],
        "diverged": [{"name": "kd", "message": "kd, seed 1: step 3: the task loss is nan"}],
        "verdict": {"sentence": "For this pair use process keep 0.5: its loss is 2 × Σ hcl(1-1, 2-2)."},
        "run_dir": "runs/compare-x",
    }


def test_a_method_in_numbers(summary: dict[str, Any]) -> None:
    process = summary["methods"][1]
    assert process["accuracy_last"] == {"mean": 64.5, "std": pytest.approx(2.1213, abs=1e-4), "values": [63.0, 66.0]}
    assert process["difference"]["mean"] == 3.5
    assert (process["seconds"], process["device_seconds"]) == (21, 42)
    assert summary["methods"][0]["difference"] is None


def test_markdown_is_a_table(summary: dict[str, Any]) -> None:
    text = markdown(summary)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 3
    assert {row.count("|") for row in rows} == {9}
    assert rows[3] == "| process keep 0.5 | 64.50 ±2.12 | 65.50 ±2.12 | +3.50 ±6.35 | 50 | 21 | 42 | ≈120 |"
    assert text.startswith("teacher wrn_16_2: accuracy 70.00 %; student wrn_10_1")
    assert "hint did worse than the student alone (-1.50 points, within chance): distillation is 90 %" in text
    assert rows[0].startswith("| method | last | best | Δ student | left % |")
    assert "\n\naccuracy in % after 5 epochs, mean ± std over seeds 0, 1; Δ student: mean of the" in text
    assert text.endswith("\n\nFor this pair use process keep 0.5: its loss is 2 × Σ hcl(1-1, 2-2).\n")
    assert "\nomitted: diverged: kd, seed 1: step 3: the task loss is nan\n" in text


def test_a_metric_with_a_unit_of_which_less_is_better() -> None:
    alone = summarize_method("student", [run(0.25, 10, ERROR)], [0.25], NO_SEARCH, ERROR)
    worse = summarize_method("hint", [run(1.5, 20, ERROR)], [0.25], NO_SEARCH, ERROR)
    assert alone["mse_last"]["mean"] == 0.25 and worse["mse_best"]["mean"] == 2.5
    assert worse["difference"]["mean"] == 1.25
    text = markdown(
        {
            "methods": [alone, worse],
            "teacher": {"name": "t", "mse": 0.125},
            "metric": asdict(ERROR),
            "student": "s",
            "epochs": 5,
            "seeds": [0],
            "device": "cpu",
            "worse": [{"name": "hint", "difference": 1.25, "certain": None, "reasons": ["it is"]}],
            "verdict": {"sentence": "Train the student alone."},
            "diverged": [],
        }
    )
    assert text.startswith("teacher t: squared error 0.125 mm; student s\n")
    assert "| hint | 1.5 | 2.5 | +1.25 | 50 |" in text
    assert "squared error in mm (lower is better) after 5 epochs" in text
    assert "hint did worse than the student alone (+1.25 mm): it is" in text


def test_the_terminal_table_folds_nothing_into_a_pipe(
    summary: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    print_comparison(summary)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == summary["verdict"]["sentence"] and lines[-2] == "table, plot and summary: runs/compare-x"
    (line,) = (line for line in lines if line.startswith("process keep 0.5"))
    assert " ".join(line.split()) == "process keep 0.5 64.50 ±2.12 65.50 ±2.12 +3.50 ±6.35 50 21 42 ≈120"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_lacks_a_character_gets_ascii(
    summary: dict[str, Any], monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, write_through=True))
    print_comparison(summary)
    text = raw.getvalue().decode(encoding)
    head = next(line for line in text.splitlines() if "wall" in line)
    assert head.split() == ["vs", "left", "wall", "device", "search"]
    assert "2 x sum of hcl(1-1, 2-2)" in text
    assert "~120" in text and "; vs student: mean of" in text
    assert ("64.50 +-2.12" if encoding == "ascii" else "64.50 ±2.12") in text


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_plot_is_the_same_every_time(summary: dict[str, Any], tmp_path: Path, suffix: str) -> None:
    paths = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for path in paths:
        plot_comparison(summary, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert len(paths[0].read_bytes()) > 5000
    with pytest.raises(DistproError, match="exists"):
        plot_comparison(summary, paths[0])
