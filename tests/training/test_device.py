"""Where a run computes, and what it promises there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from distpro_cli.runs.checkpoint import load_checkpoint, save_checkpoint
from distpro_cli.training.device import choose_device, determinism_kept, set_determinism
from tests.conftest import Run

NETWORK = """
import torch
from torch import nn

class Puts(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, 2, 1)
        self.head = nn.Linear(4, num_classes)

    def forward(self, images):
        features = self.first(images)
        if not self.training:
            return self.head(features.mean((2, 3)))
        copied = torch.zeros_like(features).put_(torch.arange(features.numel(), device=features.device), features)
        return self.head(copied.mean((2, 3)))
"""
PUTS = ["student.name=puts.py:Puts", "distill.epochs=1"]


@pytest.fixture(autouse=True)
def _settings_kept() -> Iterator[None]:
    with determinism_kept():
        yield


@pytest.mark.parametrize(
    ("wanted", "device", "mode"),
    [(None, "cpu", 1), (None, "cuda", 0), (None, "mps", 0), (True, "cuda", 2), (True, "cpu", 2), (False, "cpu", 0)],
)
def test_determinism_is_asked_for_on_the_cpu_and_where_it_is_wanted(
    wanted: bool | None, device: str, mode: int
) -> None:
    before = torch.get_deterministic_debug_mode(), torch.backends.cudnn.deterministic
    with determinism_kept():
        set_determinism(wanted, torch.device(device))
        assert torch.get_deterministic_debug_mode() == mode
        assert torch.backends.cudnn.deterministic == (mode > 0)
        assert not torch.backends.cudnn.benchmark
    assert (torch.get_deterministic_debug_mode(), torch.backends.cudnn.deterministic) == before


def test_a_numbered_device_becomes_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[torch.device] = []
    monkeypatch.setattr(torch, "empty", lambda *_, device: None)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert [str(choose_device(name)) for name in ("cuda:1", "cuda", "cpu")] == ["cuda:1", "cuda", "cpu"]
    assert current == [torch.device("cuda:1")]


def test_an_operation_without_a_deterministic_kernel_is_named(distpro: Run) -> None:
    Path("puts.py").write_text(NETWORK)
    refused = distpro("train", "tiny.yaml", *PUTS, "deterministic=true", "--run-dir", "refused")
    assert refused.status == 2 and "deterministic: put_ has no kernel that is; set deterministic=false" in refused.err
    assert distpro("train", "tiny.yaml", *PUTS, "deterministic=false", "--run-dir", "taken").status == 0
    wrong = distpro("train", "tiny.yaml", "deterministic=often")
    assert wrong.status == 2 and "deterministic" in wrong.err


def test_a_run_that_moves_to_another_kind_of_device_says_so(distpro: Run, searched: Path) -> None:
    shutil.copytree(searched / "run", "run")
    command = ["search", "tiny.yaml", "search.epochs=1", "--run-dir", "run", "--resume", "-o", "p.safetensors"]
    checkpoint = Path("run/checkpoint.pt")
    state = load_checkpoint(checkpoint)
    for before, times in ((state.pop("device"), 0), ("cuda", 1), (None, 0)):
        save_checkpoint(state | ({} if before is None else {"device": before}), checkpoint)
        Path("run/summary.json").unlink()
        moved = distpro(*command)
        assert moved.status == 0, moved.err
        assert moved.err.count(f"resumed on cpu from {before}: bits may differ from a run on one of them") == times
