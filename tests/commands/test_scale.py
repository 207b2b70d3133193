"""`search.scale: gradient` through the command line: search, resume, transfer, inspect, compare."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from distpro_cli.process.file import load_process, save_process
from distpro_cli.process.process import Process
from distpro_cli.training import loop
from distpro_cli.workflows.search import collapse
from tests.conftest import Run
from tests.process.examples import make_process

SCALED = ["search.scale=gradient", "search.weight=0.2"]
GROUPS = (
    "pathways=[{connections: same, transform: conv1}, {connections: same, transform: identity, distance: kl}, "
    "{connections: same, transform: review}]"
)


def test_search_inspect_and_transfer(distpro: Run) -> None:
    found = distpro("search", "tiny.yaml", *SCALED, GROUPS, "-o", "p.safetensors", "-q")
    assert found.status == 0, found.err
    assert "scale: the weight that pulls as hard as the task" in found.out and "weight / scale from 0" in found.out
    process = load_process(Path("p.safetensors"))
    assert len(process.scale) == len(process.pathways) == 9 and len(set(process.scale)) == 9
    with safe_open("p.safetensors", framework="numpy") as file:
        assert json.loads(file.metadata()["scale"]) == list(process.scale) and file.metadata()["version"] == "1"
    # After the steps that are looked at, a weight is the normalised alpha times the scale of the file.
    exponentials = np.exp(process.alpha[-1].astype(np.float64))
    relative = 9 * 0.2 * exponentials / (np.e + exponentials.sum())
    np.testing.assert_allclose(process.weights[-1], relative * process.scale, rtol=1e-5)

    shown = distpro("inspect", "p.safetensors", "--json").json["pathways"]
    assert [row["scale"] for row in shown] == list(process.scale)
    assert [row["end"] for row in shown] == process.weights[-1].tolist()
    pull = [row["mean"] / row["scale"] for row in shown]
    assert [row["share"] for row in shown] == pytest.approx([value / sum(pull) for value in pull])

    moved = distpro("transfer", "-p", "p.safetensors", "distill.epochs=1", "-q", "--json")
    assert moved.status == 0, moved.err
    row = json.loads((Path(moved.json["run_dir"]) / "metrics.jsonl").read_text().splitlines()[0])
    assert list(row["weights"].values()) == process.weights[0].tolist()
    in_units = [weight / unit for weight, unit in zip(row["weights"].values(), process.scale, strict=True)]
    assert list(row["scaled_weights"].values()) == pytest.approx(in_units)


@pytest.mark.parametrize("options", [["search.outer=train", "search.learn_weight=true"], ["search.interval=2"]])
def test_resuming_is_bit_identical(distpro: Run, monkeypatch: pytest.MonkeyPatch, options: list[str]) -> None:
    """Interrupted while the scale is measured, and after it."""
    arguments = ["search", "tiny.yaml", *SCALED, *options, "search.epochs=3", "-q"]
    assert distpro(*arguments, "-o", "whole.safetensors", "--run-dir", "whole").status == 0
    original = loop.Trainer._train_step
    part = [*arguments, "-o", "part.safetensors", "--run-dir", "part"]
    for stop_at, more in ((3, []), (11, ["--resume"])):

        def stop(self: loop.Trainer, batch: object, stop_at: int = stop_at) -> None:
            original(self, batch)  # type: ignore[arg-type]
            self.interruption.pending = self.plan.title == "search" and self.progress.step == stop_at

        with monkeypatch.context() as patched:
            patched.setattr(loop.Trainer, "_train_step", stop)
            assert distpro(*part, *more).status == 130
    assert distpro(*part, "--resume").status == 0
    for name in ("{}.safetensors", "{}/student.safetensors"):
        assert Path(name.format("part")).read_bytes() == Path(name.format("whole")).read_bytes()


def test_rivals_refuse_it_and_compare_leaves_it_out(distpro: Run) -> None:
    refused = distpro("search", "tiny.yaml", *SCALED, "search.method=cosine", "-q")
    assert refused.status == 2
    assert "search.scale: gradient needs search.method: hypergradient; cosine makes its weights" in refused.err
    unknown = distpro("search", "tiny.yaml", "search.scale=gradients", "-q")
    assert unknown.status == 2 and "(did you mean 'gradient'?)" in unknown.err
    arguments = ["--methods", "student,online,random", "--epochs", 1, "--seeds", 1, "-q", "--json"]
    compared = distpro("compare", "tiny.yaml", *SCALED, *arguments)
    assert compared.status == 0, compared.err
    processes = {
        method["name"]: load_process(Path(method["run_dirs"][0]) / "process.safetensors")
        for method in compared.json["methods"][1:]
    }
    assert processes["online"].scale and not processes["random"].scale


def scaled(process: Process) -> Process:
    scale = tuple(1000.0 if k == 3 else 0.1 * (k + 1) for k in range(len(process.pathways)))
    return replace(process, weights=process.weights * np.float32(scale), scale=scale)


def test_pathways_are_compared_in_units_of_the_scale() -> None:
    plain = make_process(11)
    process = scaled(plain)
    np.testing.assert_allclose(process.share, plain.share, rtol=1e-5)
    assert collapse(process) is None and collapse(replace(process, scale=())) is not None
    weights = process.weights.copy()
    weights[4:, 0] = 30 * process.scale[0] * plain.weights[4:].sum(axis=1)
    message = collapse(replace(process, weights=weights))
    assert message is not None and f"pathway {process.pathways[0].id} takes 9" in message
    assert process.mean_over_time().scale == process.scale


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        ({}, "the metadata's scale is not a list"),
        ([1.0, 2.0], "scale has 2 values; expected one per pathway (10)"),
        ([0.0] * 10, "scale holds a value out of range; allowed: 1e-50 to 1e+50"),
        ([-1] * 10, "out of range"),
        ([1e-200] * 10, "out of range"),
        (["1"] * 10, "the metadata's scale holds '1'; expected a number"),
        ([True] * 10, "holds True"),
    ],
)
def test_a_wrong_scale_in_a_file_is_refused(distpro: Run, scale: object, message: str) -> None:
    save_process(scaled(make_process()), Path("p.safetensors"))
    assert load_process(Path("p.safetensors")).scale == scaled(make_process()).scale
    with safe_open("p.safetensors", framework="numpy") as file:
        metadata = file.metadata()
        tables = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tables, "wrong.safetensors", {**metadata, "scale": json.dumps(scale)})
    result = distpro("inspect", "wrong.safetensors")
    assert result.status == 2 and "wrong.safetensors: " in result.err and message in result.err


def test_a_process_without_a_scale_keeps_its_bytes(workplace: Path) -> None:
    save_process(make_process(), Path("p.safetensors"))
    with safe_open("p.safetensors", framework="numpy") as file:
        assert "scale" not in file.metadata()
    assert load_process(Path("p.safetensors")).scale == ()
