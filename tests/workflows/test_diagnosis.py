"""Why a method did worse: shares and directions against sums done by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from distpro_cli.workflows.diagnosis import _cosines, distillation_share
from tests.training.test_hypergradients import SHARED_BLOCKS, batches, make_distiller


def test_share_of_the_loss(tmp_path: Path) -> None:
    rows = [
        {"step": 0, "task": 2.0, "distances": {"1-1": 3.0, "2-2": 1.0}, "weights": {"1-1": 0.5, "2-2": 0.5, "3-3": 0}},
        {"step": 5, "test_top1": 50.0},
        {"step": 10, "task": 1.0, "distances": {"1-1": 1.0}, "weights": {"1-1": 3.0, "2-2": 0.0, "3-3": 0.0}},
    ]
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert distillation_share(file) == pytest.approx((2 / 4 + 3 / 4) / 2)
    file.write_text(json.dumps({"step": 0, "task": 2.0}) + "\n")
    assert distillation_share(file) is None
    assert distillation_share(tmp_path / "nowhere") is None


def test_cosines_are_those_of_the_gradients_and_move_nothing() -> None:
    distiller = make_distiller(groups=SHARED_BLOCKS)
    before = {key: value.clone() for key, value in distiller.student.state_dict().items()}
    batch, _ = batches()
    found = _cosines(distiller, batch, 0, [1, 6])
    assert all(torch.equal(before[key], value) for key, value in distiller.student.state_dict().items())

    def gradient(weights: list[float]) -> torch.Tensor:
        distiller.backward(batch, weights, 0)
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
        distiller.optimizer.zero_grad()
        return flat

    parameters = distiller.student_parameters
    none = [0.0] * len(distiller.trained.infos)
    of_task = gradient(none)
    for position, k in enumerate([1, 6]):
        weights = list(none)
        weights[k] = 1.0
        own = gradient(weights) - of_task
        assert found[position] == pytest.approx(torch.cosine_similarity(own, of_task, dim=0).item(), abs=2e-3)
