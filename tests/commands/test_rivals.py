"""Every method of a search through the real command line, and those that run in the run that counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distpro_cli.process.file import load_process
from distpro_cli.recipe.schema import Search
from distpro_cli.recipe.scheme_names import ONLINE_METHODS
from distpro_cli.training import loop
from distpro_cli.training.rivals import RIVALS
from tests.conftest import Run

SHORT = ["pathways=[{connections: same, transform: conv1}]", "search.epochs=1"]


def test_every_method_has_a_source_of_weights() -> None:
    assert {"hypergradient", *RIVALS} == set(ONLINE_METHODS.values())


@pytest.mark.parametrize("method", sorted(RIVALS))
def test_a_rival_makes_a_process_that_transfers(distpro: Run, method: str) -> None:
    found = distpro("search", "tiny.yaml", *SHORT, f"search.method={method}", "-o", "p.safetensors", "-q", "--json")
    assert found.status == 0, found.err
    # Of 160 train images a fifth judges, where anything does.
    assert found.json["steps"] == (4 if method == "cosine-outer" else 5)
    process = load_process(Path("p.safetensors"))
    assert process.normalization == "none" and (process.weights == process.alpha).all()
    assert np.ptp(process.weights, axis=0).max() > 0
    if method == "share":
        transferred = distpro("transfer", "-p", "p.safetensors", "distill.epochs=1", "-q", "--json")
        assert transferred.status == 0, transferred.err
        assert transferred.json["pathways_used"] == found.json["pathways"] == 4
    unknown = distpro("search", "tiny.yaml", "search.method=metabalanced", "-q")
    assert unknown.status == 2 and "metabalance" in unknown.err


def test_outer_batches_from_the_train_part_cost_no_image(distpro: Run) -> None:
    found = distpro("search", "tiny.yaml", *SHORT, "search.outer=train", "search.interval=2", "-q", "--json")
    assert found.status == 0, found.err
    assert found.json["steps"] == 160 // 32
    process = load_process(Path(found.json["process"]))
    assert np.ptp(process.alpha, axis=0).min() > 0
    whole = distpro(
        "search", "tiny.yaml", *SHORT, "search.outer=train", "data.train_images=32", "-o", "other.safetensors", "-q"
    )
    assert whole.status == 2 and "search.outer: train needs more than one batch of train images" in whole.err


@pytest.mark.parametrize("method", ["metabalance", "uncertainty"])
def test_resuming_is_bit_identical(distpro: Run, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    arguments = ["search", "tiny.yaml", *SHORT, f"search.method={method}", "search.epochs=2", "-q"]
    assert distpro(*arguments, "-o", "whole.safetensors", "--run-dir", "whole").status == 0
    original = loop.Trainer._train_step

    def stop(self: loop.Trainer, batch: object) -> None:
        original(self, batch)  # type: ignore[arg-type]
        self.interruption.pending = self.plan.title == "search" and self.progress.step == 3

    part = [*arguments, "-o", "part.safetensors", "--run-dir", "part"]
    with monkeypatch.context() as patched:
        patched.setattr(loop.Trainer, "_train_step", stop)
        assert distpro(*part).status == 130
    assert distpro(*part, "--resume").status == 0
    for name in ("{}.safetensors", "{}/student.safetensors"):
        assert Path(name.format("part")).read_bytes() == Path(name.format("whole")).read_bytes()


def test_online_methods_are_compared(distpro: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["compare", "tiny.yaml", *SHORT, "--methods", "student,online,random", "--seeds", 1, "-q", "--json"]
    original = loop.Trainer._train_step

    def stop(self: loop.Trainer, batch: object) -> None:
        original(self, batch)  # type: ignore[arg-type]
        self.interruption.pending = "random, seed 0" in self.plan.title and self.progress.step == 3

    with monkeypatch.context() as patched:
        patched.setattr(loop.Trainer, "_train_step", stop)
        assert distpro(*arguments).status == 130
    result = distpro(*arguments)
    assert result.status == 0, result.err
    assert [method["name"] for method in result.json["methods"]] == ["student", "online", "random"]
    for method in result.json["methods"][1:]:
        assert method["search_seconds"] == 0 and method["seconds"] > 0
        assert method["remaining_percent"] == 100 and method["pathways_used"] == 4
        (folder,) = map(Path, method["run_dirs"])
        process = load_process(folder / "process.safetensors")
        assert len(process.progress) == 2 * (160 // 32) + 1  # the epochs of distill, on all train images
        assert (folder / "student.safetensors").exists()
    kept = distpro(*arguments)
    assert kept.json["methods"] == result.json["methods"]
    alone = distpro(
        "search",
        "tiny.yaml",
        *SHORT,
        "search.epochs=2",
        "search.method=random",
        "-o",
        "alone.safetensors",
        "-q",
        "--json",
    )
    assert alone.json["student"]["top1_last"] == result.json["methods"][2]["top1_last"]["values"][0]
    other = distpro(*arguments[:-2], "search.alpha_lr=0.5", "-q", "--json")
    assert other.json["methods"][1]["run_dirs"] != result.json["methods"][1]["run_dirs"]
    assert other.json["methods"][0] == result.json["methods"][0]


def test_an_online_run_that_did_worse_is_explained(distpro: Run) -> None:
    options = ["search.weight=300", "distill.clip_grad=1", "--methods", "student,uncertainty", "--seeds", 1]
    result = distpro("compare", "tiny.yaml", *SHORT, *options, "--epochs", 8, "--quiet")
    assert result.status == 0, result.err
    assert "uncertainty did worse than the student alone (-" in result.out
    assert "% of the loss, mean over the run" in result.out and "gradient" in result.out


def test_judging_images_are_held_out_only_where_something_judges() -> None:
    assert Search().held_out_share == Search(method="cosine-outer").held_out_share == 0.2
    assert Search(outer="train").held_out_share is None and Search(method="share").held_out_share is None
