"""`search.scale` through the command line: search, resume, transfer, inspect, compare."""

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

SCALED = {scale: [f"search.scale={scale}", "search.weight=0.2"] for scale in ("loss", "gradient")}
GROUPS = (
    "pathways=[{connections: same, transform: conv1}, {connections: same, transform: identity, distance: kl}, "
    "{connections: same, transform: review}]"
)


@pytest.mark.parametrize("scale", SCALED)
def test_search_inspect_and_transfer(distpro: Run, scale: str) -> None:
    found = distpro("search", "tiny.yaml", *SCALED[scale], GROUPS, "-o", "p.safetensors", "-q")
    assert found.status == 0, found.err
    process = load_process(Path("p.safetensors"))
    assert process.scale is not None and process.scale.shape == process.weights.shape == (len(process.progress), 9)
    assert not (process.scale[0] == process.scale[-1]).any()
    with safe_open("p.safetensors", framework="numpy") as file:
        assert file.metadata()["version"] == "2"
        np.testing.assert_array_equal(file.get_tensor("scale"), process.scale)
    exponentials = np.exp(process.alpha.astype(np.float64))
    relative = 9 * 0.2 * exponentials / (np.e + exponentials.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(process.weights, relative * process.scale, rtol=1e-5)

    table = distpro("inspect", "p.safetensors").out
    assert "unit of the weights" in table and "weight / scale from 0" in table
    shown = distpro("inspect", "p.safetensors", "--json").json
    assert shown["version"] == 2
    assert [row["end"] for row in shown["pathways"]] == process.weights[-1].tolist()
    pull = np.trapezoid(process.weights / process.scale, process.progress, axis=0)
    np.testing.assert_allclose([row["share"] for row in shown["pathways"]], pull / pull.sum(), rtol=1e-5)

    for unit in ("recorded", "measured"):
        moved = distpro("transfer", "-p", "p.safetensors", "distill.epochs=1", f"distill.scale={unit}", "-q", "--json")
        assert moved.status == 0, moved.err
        row = json.loads((Path(moved.json["run_dir"]) / "metrics.jsonl").read_text().splitlines()[0])
        weights = np.array(list(row["weights"].values()))
        assert (weights.tolist() == process.weights[0].tolist()) is (unit == "recorded")
        if unit == "measured" and scale == "loss":  # what each adds to the loss is then its weight in units of it
            distances = list(row["distances"].values())
            np.testing.assert_allclose(list(row["scaled_weights"].values()), process.scaled_weights[0], rtol=1e-5)
            np.testing.assert_allclose(weights * distances, process.scaled_weights[0], rtol=1e-3)
        assert load_process(Path(moved.json["run_dir"]) / "process.safetensors").scale is not None


@pytest.mark.parametrize(
    ("scale", "options"),
    [
        ("gradient", ["search.outer=train", "search.learn_weight=true"]),
        ("gradient", ["search.interval=2"]),
        ("loss", ["search.interval=1"]),
        ("loss", ["search.outer=train"]),
    ],
)
def test_resuming_is_bit_identical(
    distpro: Run, monkeypatch: pytest.MonkeyPatch, scale: str, options: list[str]
) -> None:
    """Interrupted while a gradient scale is measured, and after it."""
    arguments = ["search", "tiny.yaml", *SCALED[scale], *options, "search.epochs=3", "-q"]
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


def test_rivals_have_none(distpro: Run) -> None:
    unknown = distpro("search", "tiny.yaml", "search.scale=gradients", "-q")
    assert unknown.status == 2 and "(did you mean 'gradient'?)" in unknown.err
    assert distpro("search", "tiny.yaml", "search.method=cosine", "-o", "cosine.safetensors", "-q").status == 0
    cosine = load_process(Path("cosine.safetensors"))
    assert cosine.scale is None and (cosine.weights[0] == 1).all()  # their κ is 1, not 10
    arguments = ["--methods", "student,online,random", "--epochs", 1, "--seeds", 1, "-q", "--json"]
    compared = distpro("compare", "tiny.yaml", "search.scale=loss", "search.weight=7", *arguments)
    assert compared.status == 0, compared.err
    processes = {
        method["name"]: load_process(Path(method["run_dirs"][0]) / "process.safetensors")
        for method in compared.json["methods"][1:]
    }
    assert processes["online"].scale is not None and processes["random"].scale is None
    # Random weights sum to K κ; a κ in units of the loss is none of theirs.
    np.testing.assert_allclose(processes["random"].weights.sum(axis=1), processes["random"].weights.shape[1], rtol=1e-5)


def scaled(process: Process) -> Process:
    scale_k = np.array([1000.0 if k == 3 else 0.1 * (k + 1) for k in range(len(process.pathways))], dtype=np.float32)
    return replace(process, weights=process.weights * scale_k, scale=np.tile(scale_k, (len(process.progress), 1)))


def test_pathways_are_compared_in_units_of_the_scale() -> None:
    plain = make_process(11)
    process = scaled(plain)
    np.testing.assert_allclose(process.share, plain.share, rtol=1e-5)
    assert collapse(process) is None and collapse(replace(process, scale=None)) is not None
    weights = process.weights.copy()
    assert process.scale is not None
    weights[4:, 0] = 30 * process.scale[0, 0] * plain.weights[4:].sum(axis=1)
    message = collapse(replace(process, weights=weights))
    assert message is not None and f"pathway {process.pathways[0].id} takes 9" in message
    mean = process.mean_over_time()
    assert mean.scale is not None and (mean.weights[0] == mean.weights[1]).all()
    np.testing.assert_allclose(mean.scaled_weights[0], plain.mean, rtol=1e-5)


@pytest.mark.parametrize(
    ("scale", "version", "message"),
    [
        (np.ones((11, 9)), "2", "scale has the shape [11, 9]; expected [11, 10]"),
        (np.zeros((11, 10)), "2", "scale holds a value out of range; allowed: 1e-18 to 1e+18"),
        (-np.ones((11, 10)), "2", "out of range"),
        (np.full((11, 10), 1e-30), "2", "out of range"),
        (np.full((11, 10), np.nan), "2", "scale holds a value that is not finite"),
        (np.ones((11, 10)), "1", "unknown tensor 'scale'; a process has alpha, progress, weights"),
        (np.ones((11, 10)), "3", "made by a newer distpro: format version 3, this one reads up to 2"),
    ],
)
def test_a_wrong_scale_in_a_file_is_refused(distpro: Run, scale: np.ndarray, version: str, message: str) -> None:
    save_process(scaled(make_process(11)), Path("p.safetensors"))
    assert load_process(Path("p.safetensors")).scale is not None
    with safe_open("p.safetensors", framework="numpy") as file:
        metadata = file.metadata()
        tables = {name: file.get_tensor(name) for name in file.keys() if name != "scale"}  # noqa: SIM118
    tables["scale"] = scale.astype(np.float32)
    save_file(tables, "wrong.safetensors", {**metadata, "version": version})
    result = distpro("inspect", "wrong.safetensors")
    assert result.status == 2 and "wrong.safetensors: " in result.err and message in result.err


def test_a_process_without_a_scale_keeps_its_bytes(workplace: Path) -> None:
    save_process(make_process(), Path("p.safetensors"))
    with safe_open("p.safetensors", framework="numpy") as file:
        assert "scale" not in file.keys() and file.metadata()["version"] == "1"  # noqa: SIM118
    assert load_process(Path("p.safetensors")).scale is None
