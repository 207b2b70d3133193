"""Search, transfer, train and inspect through the real command line, on the digits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.numpy import load_file

from distpro_cli.process.file import load_process
from tests.conftest import Run


def test_search_reports_and_writes_a_process(distpro: Run, workplace: Path) -> None:
    result = distpro("search", "tiny.yaml", "--json")
    assert result.status == 0, result.err
    summary = result.json
    assert summary["process"] == "processes/tiny.safetensors"
    assert summary["pathways"] == 10
    assert summary["steps"] == 2 * (128 // 32)
    assert summary["rows"] == summary["steps"] + 1
    assert 0 <= summary["student"]["top1_last"] <= summary["student"]["top1_best"] <= 100
    assert "epoch 2/2" in result.err
    tensors = load_file(summary["process"])
    assert tensors["weights"].shape == tensors["alpha"].shape == (9, 10)
    assert not np.allclose(tensors["alpha"][0], tensors["alpha"][-1])
    run_dir = workplace / summary["run_dir"]
    assert json.loads((run_dir / "summary.json").read_text()) == summary
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert sum("test_top1" in row for row in rows) == 2
    assert set(rows[0]["distances"]) == {p.id for p in load_process(Path(summary["process"])).pathways}


def test_search_prints_the_pathway_table(distpro: Run) -> None:
    result = distpro("search", "tiny.yaml", "--quiet", "search.epochs=1")
    assert result.status == 0, result.err
    assert "4-3" in result.out and "processes/tiny.safetensors" in result.out
    assert result.err == ""


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(distpro: Run, process: Path) -> None:
    for seed in (0, 6):
        result = distpro("search", "tiny.yaml", "search.epochs=1", "-o", f"{seed}.safetensors", "--seed", seed, "-q")
        assert result.status == 0, result.err
    assert Path("0.safetensors").read_bytes() == process.read_bytes()
    assert load_process("6.safetensors").alpha[-1].tolist() != load_process(process).alpha[-1].tolist()


# Central differences are taken at the student of a plain SGD step, so they drift from the others.
@pytest.mark.parametrize(("mode", "cosine"), [("exact", 0.95), ("central-difference", 0.7)])
def test_reference_hypergradients_search_to_nearly_the_same_process(
    distpro: Run, process: Path, mode: str, cosine: float
) -> None:
    overrides = ["search.epochs=1", f"search.hypergradient={mode}"]
    result = distpro("search", "tiny.yaml", *overrides, "--json", "-q", "-o", "reference.safetensors")
    assert result.status == 0, result.err
    reference, cheap = (load_file(name)["alpha"] for name in ("reference.safetensors", process))
    moved = reference[1] - reference[0]
    # Adam's first step is alpha_lr times the sign of the hypergradient, whatever its size.
    np.testing.assert_allclose(np.abs(moved), 0.1, rtol=1e-3)
    np.testing.assert_allclose(moved, cheap[1] - cheap[0], atol=1e-3)
    towards, ours = reference[-1] - reference[0], cheap[-1] - cheap[0]
    assert towards @ ours > cosine * np.linalg.norm(towards) * np.linalg.norm(ours)


def test_interval_and_mixed_precision(distpro: Run) -> None:
    overrides = ["search.epochs=1", "search.interval=3", "precision=bfloat16", "distill.clip_grad=1.0"]
    result = distpro("search", "tiny.yaml", *overrides, "--json", "-q")
    assert result.status == 0, result.err
    alpha = load_file(result.json["process"])["alpha"]
    np.testing.assert_array_equal(alpha[1], alpha[2])
    assert not np.array_equal(alpha[0], alpha[1])


def test_transfer_alone_uses_the_recipe_inside(distpro: Run, process: Path) -> None:
    result = distpro("transfer", "--process", process, "--json", "-q")
    assert result.status == 0, result.err
    summary = result.json
    assert summary["pathways_used"] == 10 and summary["remaining_percent"] == 100
    assert Path(summary["student"]["weights"]).exists()


def test_transfer_takes_overrides_without_a_recipe(distpro: Run, process: Path) -> None:
    result = distpro("transfer", "--process", process, "distill.epochs=1", "--json", "-q")
    assert result.status == 0, result.err
    rows = (Path(result.json["run_dir"]) / "metrics.jsonl").read_text().splitlines()
    assert sum("test_top1" in row for row in rows) == 1


@pytest.mark.parametrize(("option", "value"), [("--threshold", "0.6"), ("--keep", "0.3")])
def test_transfer_drops_pathways(distpro: Run, process: Path, option: str, value: str) -> None:
    result = distpro("transfer", "-p", process, option, value, "distill.epochs=1", "--json", "-q")
    assert result.status == 0, result.err
    assert 0 < result.json["remaining_percent"] < 100


def test_transfer_with_uniform_weights(distpro: Run) -> None:
    result = distpro("transfer", "tiny.yaml", "--process", "uniform", "distill.epochs=1", "--json", "-q")
    assert result.status == 0, result.err
    weights = json.loads((Path(result.json["run_dir"]) / "metrics.jsonl").read_text().splitlines()[0])["weights"]
    # K κ exp(α) / (e^b + K exp(α)) at α = b = κ = 1 and K = 10
    np.testing.assert_allclose(list(weights.values()), 10 / 11, rtol=1e-6)
    assert "give a RECIPE" in distpro("transfer", "--process", "uniform").err


def test_transfer_refuses_another_set_of_pathways(distpro: Run, process: Path) -> None:
    result = distpro("transfer", "tiny.yaml", "-p", process, "pathways.0.connections=same", "-q")
    assert result.status == 2
    assert "2-1" in result.err and "Traceback" not in result.err


def test_transfer_to_a_timm_student_gives_weights_that_timm_loads(distpro: Run, process: Path) -> None:
    overrides = [
        "student.name=resnet10t",
        "student.levels=[1,2,3,pooled]",
        "data.image_size=32",
        "distill.epochs=1",
    ]
    result = distpro("transfer", "-p", process, *overrides, "--json", "-q")
    assert result.status == 0, result.err
    model = timm.create_model("resnet10t", num_classes=10, checkpoint_path=result.json["student"]["weights"])
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("network", ["student", "teacher"])
def test_train_alone(distpro: Run, network: str) -> None:
    result = distpro("train", "tiny.yaml", "--network", network, "--json", "-q")
    assert result.status == 0, result.err
    assert 0 <= result.json[network]["top1_last"] <= 100
    assert Path(result.json[network]["weights"]).exists()


def test_the_teacher_is_trained_once(distpro: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTPRO_CACHE", str(workplace / "cache"))
    first = distpro("search", "tiny.yaml", "search.epochs=1", "-o", "a.safetensors")
    second = distpro("search", "tiny.yaml", "search.epochs=1", "-o", "b.safetensors", "--seed", 1)
    assert "teacher wrn_10_1: epoch 1/1" in first.err
    assert "already trained" in second.err and "teacher wrn_10_1: epoch" not in second.err
    assert len(list((workplace / "cache" / "teachers").iterdir())) == 1
