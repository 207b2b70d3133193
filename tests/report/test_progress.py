"""What a run shows while it goes: plain lines, and the panel on a terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest

from distpro_cli.metric import Metric
from distpro_cli.report import progress
from distpro_cli.report.progress import LiveReporter, PlainReporter, describe

ACCURACY = Metric("accuracy", "mean accuracy", "%")
ERROR = Metric("mse", "squared error", "mm", higher_is_better=False)


@pytest.mark.parametrize(
    ("row", "metric", "text"),
    [
        ({"train_accuracy": 12.5}, ACCURACY, "loss 0.500  train 12.50 %"),
        ({"train_accuracy": 12.5, "outer_accuracy": 11.0}, ACCURACY, "loss 0.500  inner 12.50 %  outer 11.00 %"),
        ({"train_accuracy": 12.5, "train_mse": 0.25}, ERROR, "loss 0.500  train 0.25 mm"),
        ({"weights": {"1-1": 0.5, "2-1": 2.0}}, ERROR, "loss 0.500  strongest 2-1 2.00 1-1 0.50"),
    ],
)
def test_a_step_in_words(row: dict[str, Any], metric: Metric, text: str) -> None:
    assert describe({"task": 0.5, **row}, metric) == text


def test_plain_lines_name_the_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PLAIN_LINE_SECONDS", 0.0)
    stream = io.StringIO()
    reporter = PlainReporter(stream)
    reporter.start("search", 20, 10, ERROR)
    reporter.step(15, {"task": 0.5, "train_mse": 0.25})
    reporter.epoch(1, 2, 0.125)
    first, second, third = stream.getvalue().splitlines()
    assert first == "search: 20 steps, resuming at step 10"
    assert second.startswith("search: step 15/20  loss 0.500  train 0.25 mm  ")
    assert third == "search: epoch 1/2  test squared error 0.125 mm"


def test_the_panel_shows_the_last_evaluation() -> None:
    reporter = LiveReporter()
    reporter.start("search", 20, 0, ACCURACY)
    reporter.epoch(1, 2, 50.0)
    reporter.step(15, {"task": 0.5, "train_accuracy": 12.5})
    reporter.stop()
    assert reporter._bar.tasks[0].fields["status"] == "loss 0.500  train 12.50 %  test 50.00 % after epoch 1/2"
