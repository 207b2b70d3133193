"""A network that is not finite is never saved, cached or taken for a success, and the message names it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import Run

ONE_STEP = ["data.train_images=32", "distill.epochs=1", "teacher.train.epochs=1", "distill.optimizer.weight_decay=0"]


@pytest.fixture(autouse=True)
def _own_cache(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTPRO_CACHE", str(workplace / "cache"))


def test_the_case_of_the_quickstart(distpro: Run) -> None:
    given = ["data.train_images=256", "distill.epochs=2", "data.test_images=32"]
    result = distpro("train", "quickstart", "--network", "student", "distill.optimizer.lr=1e6", *given)
    assert result.status == 2 and "error: student wrn_10_1: step " in result.err
    assert not list(Path().rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("lr", "decay", "what"),
    [("1e30", "1e10", "hold NaN or infinity"), ("1e25", "0", "loss on the test images is (nan|inf)")],
)
def test_the_last_update_is_looked_at(distpro: Run, lr: str, decay: str, what: str) -> None:
    """One step in all: its loss is finite, what it leaves behind is not, or puts out what is not."""
    given = [f"distill.optimizer.lr={lr}", f"distill.optimizer.weight_decay={decay}"]
    result = distpro("train", "tiny.yaml", *ONE_STEP, *given)
    assert result.status == 2, result.err
    assert re.search(rf"error: student wrn_10_1: step 0: .*{what}", result.err), result.err
    assert not [*Path().rglob("student.safetensors"), *Path().rglob("summary.json"), *Path().rglob("checkpoint.pt")]


def test_a_rate_beyond_float32_is_an_error(distpro: Run) -> None:
    result = distpro("train", "tiny.yaml", *ONE_STEP, "distill.optimizer.lr=1e300")
    assert result.status == 2 and "allowed: numbers up to 1e+30" in result.err and result.err.count("error:") == 1


def test_a_diverged_teacher_is_named_and_not_cached(distpro: Run) -> None:
    for command in (["search", "tiny.yaml"], ["compare", "tiny.yaml", "--methods", "uniform,kd", "--seeds", "1"]):
        result = distpro(
            *command, *ONE_STEP, *(f"teacher.train.optimizer.{one}" for one in ("lr=1e30", "weight_decay=1e10"))
        )
        assert result.status == 2 and "error: teacher wrn_10_1: step 0: " in result.err, result.err
        assert "student" not in result.err.rpartition("error: ")[2]
    assert not list(Path().rglob("*.safetensors"))


CLIPPED = """\
import torch
from torch import nn

class Clipped(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.register_buffer("limit", torch.tensor(float("inf")))
        self.stages = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3, stride=2))
        self.head = nn.Linear(8, num_classes)

    def forward(self, images):
        return self.head(self.stages(images).mean((2, 3)).minimum(self.limit))
"""


def test_limits_that_are_infinite_from_the_start_are_no_fault(distpro: Run) -> None:
    Path("clipped.py").write_text(CLIPPED)
    network = ["student.name=clipped.py:Clipped", "student.levels=[stages.0, stages.2]"]
    trained = distpro("train", "tiny.yaml", *ONE_STEP, *network, "--json")
    assert trained.status == 0, trained.err
    path = Path(trained.json["student"]["weights"])
    assert distpro("train", "tiny.yaml", *ONE_STEP, *network, f"student.weights={path}").status == 0
    state = load_file(path)
    assert state["limit"].isinf()
    state["stages.1.running_var"][0] = torch.inf
    save_file(state, "inf.safetensors")
    result = distpro("train", "tiny.yaml", *ONE_STEP, *network, "student.weights=inf.safetensors")
    assert result.status == 2 and "1 of" in result.err and "(stages.1.running_var)" in result.err


def test_nan_in_a_file_is_found_when_it_is_read(distpro: Run) -> None:
    trained = distpro("train", "tiny.yaml", *ONE_STEP, "--json")
    path = Path(trained.json["student"]["weights"])
    state = load_file(path)
    state["block2.layer.0.conv1.weight"][0] = torch.nan
    save_file(state, "nan.safetensors")
    result = distpro("search", "tiny.yaml", "teacher.weights=nan.safetensors")
    assert result.status == 2
    assert "nan.safetensors: 1 of" in result.err and "(block2.layer.0.conv1.weight), so the network" in result.err


def test_a_teacher_whose_output_is_not_finite_is_named(distpro: Run) -> None:
    trained = distpro("train", "tiny.yaml", *ONE_STEP, "--json")
    state = load_file(trained.json["student"]["weights"])
    state["fc.weight"] *= 1e38
    state["bn1.weight"] *= 1e20
    save_file(state, "huge.safetensors")
    result = distpro("transfer", "tiny.yaml", "--process", "uniform", "teacher.weights=huge.safetensors")
    assert result.status == 2 and "error: teacher wrn_10_1: its output on the test images is not finite" in result.err
