"""A pair whose steps are made cheaper: on the CPU to the bit, elsewhere but for rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from distpro_cli.networks.frozen import round_once
from distpro_cli.tasks.task import Batch
from distpro_cli.workflows import pairs
from distpro_cli.workflows.pairs import build_pair, hasten
from distpro_cli.workflows.session import Session
from tests.conftest import Run
from tests.helpers import CONTEXT, digits_recipe


def test_a_run_in_bfloat16_keeps_its_bits(distpro: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rounded: list[int] = []

    def counted(*given: object) -> int:
        rounded.append(round_once(*given))  # type: ignore[arg-type]
        return rounded[-1]

    files = []
    for name, function in (("once", counted), ("every-time", lambda *given: 0)):
        monkeypatch.setattr(pairs, "round_once", function)
        output, run = workplace / f"{name}.safetensors", workplace / name
        overrides = ("precision=bfloat16", "search.epochs=1", "--output", output, "--run-dir", run)
        assert distpro("search", "tiny.yaml", *overrides).status == 0
        files.append([output.read_bytes(), (run / "student.safetensors").read_bytes()])
    assert len(rounded) == 1 and rounded[0] > 0
    assert files[0] == files[1]


def test_batch_norm_is_folded_where_bits_are_not_promised() -> None:
    session = Session(digits_recipe("teacher.train={}"), CONTEXT)
    pair = build_pair(session)
    pair.teacher.eval().requires_grad_(False)
    distiller = session.distiller(pair, session.recipe.distill)
    batch, count = Batch(torch.rand(4, 3, 32, 32), torch.arange(4)), len(pair.infos)

    def features() -> list[torch.Tensor]:
        return [*distiller.teacher_features(batch, range(count)).values()]

    def norms() -> int:
        return sum(isinstance(module, nn.BatchNorm2d) for module in pair.teacher.modules())

    expected, there = features(), norms()
    hasten(session, pair)
    assert norms() == there and all(map(torch.equal, features(), expected))
    session.device = torch.device("cuda")  # as far as the question goes; everything lies on the CPU
    hasten(session, pair)
    assert norms() < there
    for ours, theirs in zip(features(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
