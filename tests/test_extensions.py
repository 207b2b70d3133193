"""What a newcomer can add in one file of their own, through the real command line; see also process/test_matching."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from distpro_cli.training import loop
from tests.conftest import Run

TOYS = Path(__file__).parent / "toys"


@pytest.fixture
def toys(workplace: Path) -> Path:
    """The current folder, with the toys beside the recipe."""
    for file in TOYS.glob("*.py"):
        shutil.copy(file, workplace)
    return workplace


def test_a_task_trains_searches_transfers_and_compares(distpro: Run, toys: Path) -> None:
    task = ["task=regression.py:Ink", "search.epochs=1", "distill.epochs=1"]
    trained = distpro("train", "tiny.yaml", *task, "--json", "-q")
    assert trained.status == 0, trained.err
    student = trained.json["student"]
    assert student["ink_error_best"] == student["ink_error_last"] > 0
    assert trained.json["metric"]["higher_is_better"] is False
    found = distpro("search", "tiny.yaml", *task, "-o", "p.safetensors")
    assert found.status == 0, found.err
    assert "teacher ink error" in found.out and "top-1" not in found.out + found.err
    assert "next: distpro transfer --process p.safetensors --trust\n" in found.out
    distilled = distpro("transfer", "-p", "p.safetensors", "--trust", "--json", "-q")
    assert distilled.status == 0, distilled.err
    assert distilled.json["teacher"]["ink_error"] > 0
    methods = ["--methods", "student,uniform,process", "-p", "p.safetensors", "--seeds", 1]
    compared = distpro("compare", "tiny.yaml", *task, *methods, "--run-dir", "c")
    assert compared.status == 0, compared.err
    assert "ink error" in compared.out and "top-1" not in compared.out + (toys / "c" / "comparison.md").read_text()
    summary = json.loads((toys / "c" / "summary.json").read_text())
    by_name = {method["name"]: method for method in summary["methods"]}
    assert by_name["student"]["ink_error_last"]["values"] == [student["ink_error_last"]]
    worse = {one["name"] for one in summary["worse"]}
    assert worse == {name for name, one in by_name.items() if (one["difference"] or {"mean": 0})["mean"] > 0}


def test_a_transform_block_is_searched(distpro: Run, toys: Path) -> None:
    group = "pathways=[{connections: same, transform: 'transform.py:Scaled', transform_options: {scale: 2}}]"
    result = distpro("search", "tiny.yaml", group, "search.epochs=1", "--json", "-q")
    assert result.status == 0, result.err
    assert result.json["pathways"] == 4
    wrong = distpro("search", "tiny.yaml", group.replace("scale", "scael"), "-q", "--run-dir", "other", "--force")
    assert wrong.status == 2 and "did you mean 'scale'?" in wrong.err


def test_a_hypergradient_with_state_sees_every_step_and_resumes(
    distpro: Run, toys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ["search.hypergradient=hypergradient.py:Averaged", "search.hypergradient_options={momentum: 0.5}"]
    arguments = ["search", "tiny.yaml", *own, "search.epochs=2", "search.interval=2", "-q"]
    whole = distpro(*arguments, "-o", "whole.safetensors", "--run-dir", "whole")
    assert whole.status == 0, whole.err
    state = torch.load(toys / "whole" / "checkpoint.pt", weights_only=True)["weights"]["hypergradient"]
    assert state["moves"] == 4 and state["seen"] == 4  # of 8 steps, every second moves alpha
    original = loop.Trainer._train_step

    def stop(self: loop.Trainer, batch: object) -> None:
        original(self, batch)  # type: ignore[arg-type]
        self.interruption.pending = self.plan.title == "search" and self.progress.step == 5

    monkeypatch.setattr(loop.Trainer, "_train_step", stop)
    assert distpro(*arguments, "-o", "p.safetensors", "--run-dir", "run").status == 130
    monkeypatch.setattr(loop.Trainer, "_train_step", original)
    resumed = distpro(*arguments, "-o", "p.safetensors", "--run-dir", "run", "--resume")
    assert resumed.status == 0, resumed.err
    assert (toys / "p.safetensors").read_bytes() == (toys / "whole.safetensors").read_bytes()
    plain = distpro("search", "tiny.yaml", "search.epochs=2", "search.interval=2", "-q", "-o", "plain.safetensors")
    assert plain.status == 0, plain.err
    ours, theirs = (load_file(toys / f"{name}.safetensors")["alpha"] for name in ("whole", "plain"))
    assert not np.array_equal(ours, theirs)


BROKEN = """
from distpro_cli.metric import Metric
from distpro_cli.tasks.task import Task


class Half(Task):
    metric = Metric("x", "x")


class NoMetric(Task):
    def data(self, spec, seed, outer_share=None): ...
    def losses(self, output, targets): ...
    def evaluate(self, forward, batches): ...


class Thing: ...
"""


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("task=own.py:Half", "task own.py:Half: it lacks data, evaluate, losses, which Task asks for"),
        ("task=own.py:NoMetric", "task own.py:NoMetric: it lacks metric"),
        ("task=own.py:Thing", "task own.py:Thing: it is no subclass of distpro_cli.tasks.task.Task"),
        ("search.hypergradient=own.py:Thing", "hypergradient own.py:Thing: it is no subclass of"),
    ],
)
def test_what_is_not_whole_is_refused_in_one_line(distpro: Run, workplace: Path, override: str, expected: str) -> None:
    (workplace / "own.py").write_text(BROKEN)
    result = distpro("search", "tiny.yaml", override, "-q")
    assert result.status == 2 and expected in result.err and result.err.count("\n") == 1
