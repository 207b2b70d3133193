"""Detection through the command line: the engine's own search, resume, transfer and comparison."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from distpro_cli.training import loop
from tests.conftest import Run
from tests.tasks.detection.fake import write_split

pytest.importorskip("pycocotools", reason="detection needs pycocotools")

RECIPE = """\
task: detection
data: {root: data, num_classes: 2, image_size: 64, workers: 0}
teacher:
  name: mask_rcnn
  options: &small
    {backbone: test_resnet, channels: 8, head_width: 16, mask_width: 8, proposals: 16, regions: 8, anchor_scale: 4,
     frozen_norm: false}
  train: &training {epochs: 1, batch_size: 4, optimizer: {lr: 1e-3}}
student: {name: mask_rcnn, options: *small}
search: {epochs: 2, interval: 1}
distill: *training
"""
SIZES = [(48, 64), (64, 48), (60, 64), (64, 64), (64, 50), (40, 64)]
INHERIT = "student.inherit=[neck, heads]"
OUTPUT = ("--output", "p.safetensors", "--run-dir")


@pytest.fixture
def detector(workplace: Path) -> Path:
    """A recipe in the current folder, with data of several sizes."""
    write_split(workplace / "data", "train", SIZES * 2)
    write_split(workplace / "data", "val", SIZES[:2], seed=1)
    (workplace / "r.yaml").write_text(RECIPE)
    return workplace


def test_search_resume_transfer_and_compare(detector: Path, distpro: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = distpro("search", "r.yaml", *OUTPUT, "whole", "--json")
    assert whole.status == 0, whole.err
    assert "data: 12 train images, 2 of them without objects" in whole.err
    summary = whole.json
    assert summary["pathways"] == 10 and summary["metric"]["label"] == "box AP"
    rows = [json.loads(line) for line in (detector / "whole/metrics.jsonl").read_text().splitlines()]
    assert set(rows[0]["losses"]) == {"objectness", "proposal_box", "class", "box", "mask"}
    assert {"test_ap", "test_images"} <= rows[-1].keys()
    process = load_file("p.safetensors")
    assert np.isfinite(process["alpha"]).all() and not np.allclose(process["alpha"][0], process["alpha"][-1])

    original = loop.Trainer._train_step

    def stop_at(self: loop.Trainer, batch: object) -> None:
        original(self, batch)  # type: ignore[arg-type]
        self.interruption.pending = self.plan.title == "search" and self.progress.step == 3

    monkeypatch.setattr(loop.Trainer, "_train_step", stop_at)
    first = Path("p.safetensors").read_bytes()
    assert distpro("search", "r.yaml", "--force", *OUTPUT, "part", "-q").status == 130
    monkeypatch.setattr(loop.Trainer, "_train_step", original)
    torch.manual_seed(12345)
    assert distpro("search", "r.yaml", *OUTPUT, "part", "--resume", "-q").status == 0
    assert Path("p.safetensors").read_bytes() == first
    assert (detector / "part/student.safetensors").read_bytes() == (detector / "whole/student.safetensors").read_bytes()

    moved = distpro("transfer", "r.yaml", "-p", "p.safetensors", "--threshold", "0.5", "--json", INHERIT)
    assert moved.status == 0, moved.err
    assert "the student starts with the teacher's neck, heads: " in moved.err
    assert 0 < moved.json["remaining_percent"] < 100
    methods = "student,pkd"
    compared = distpro("compare", "r.yaml", "--methods", methods, "--run-dir", "c", "--json", "-q")
    assert compared.status == 0, compared.err
    assert [method["name"] for method in compared.json["methods"]] == methods.split(",")
    shown = distpro("inspect", "p.safetensors")
    assert shown.status == 0 and "pyramid.p6 /64" in shown.out


def test_a_search_is_as_exact_as_on_images(detector: Path, distpro: Run) -> None:
    """The cheap hypergradient and autograd's lead the same way: both forwards sample the same regions."""
    found = []
    for mode in ("cheap", "exact"):
        given = (
            f"search.hypergradient={mode}",
            "search.epochs=1",
            "pathways=[{connections: same}]",
            "teacher.train.epochs=1",
        )
        result = distpro("search", "r.yaml", *given, "-o", f"{mode}.safetensors", "-q")
        assert result.status == 0, result.err
        found.append(load_file(f"{mode}.safetensors")["alpha"])
    assert not np.allclose(found[1][-1], 1, atol=0.2)
    np.testing.assert_allclose(found[0], found[1], atol=0.02)  # small shifts cross kinks of ReLU


def test_a_process_of_five_levels_drives_a_detector_by_index(detector: Path, distpro: Run) -> None:
    """What a network of four stages and the pooled vector was searched with; P6 takes the vector's part."""
    (detector / "c.yaml").write_text(
        "data: {name: digits, image_size: 32, train_images: 64, test_images: 16, workers: 0}\n"
        "teacher: {name: test_resnet, train: {epochs: 1, batch_size: 16}}\nstudent: {name: test_resnet}\n"
        "pathways: [{connections: same, transform: conv2}]\nsearch: {epochs: 1}\n"
    )
    searched = distpro("search", "c.yaml", "-o", "c.safetensors", "-q")
    assert searched.status == 0, searched.err
    command = ("transfer", "r.yaml", "-p", "c.safetensors", "--trust")
    refused = distpro(*command, "-q")
    assert refused.status == 2 and "--allow kind" in refused.err
    moved = distpro(*command, "--match", "level", "--allow", "kind", "--json", "-q")
    assert moved.status == 0, moved.err
    assert moved.json["pathways_used"] == 5
    shown = distpro("inspect", "c.safetensors", "r.yaml", "--match", "level", "--allow", "kind")
    assert shown.status == 0 and "pyramid.p6" in shown.out
