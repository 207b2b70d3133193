"""The running average of the student's weights: its formula, its evaluation, its file, and resumption."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from distpro_cli.networks.build import build_network
from distpro_cli.tasks.task import Batch
from distpro_cli.training import loop
from distpro_cli.training.step import Solo, Stepper
from tests.conftest import Result, Run
from tests.helpers import CPU, classification, digits_recipe

# All that DeiT draws, on a network that draws as well; in parts of a batch.
DEIT = (
    *("distill.mixup=0.8", "distill.cutmix=1.0", "distill.augment_repeats=3", "distill.micro_batch_size=20"),
    *("data.augment.auto_augment=rand-m9-mstd0.5-inc1", "data.augment.random_erasing=0.25"),
    "distill.optimizer={name: adamw, lr: 0.001}",
    "student={name: deit_tiny_distilled_patch16_224, options: {patch_size: 4, depth: 2, num_heads: 3, embed_dim: 12, "
    "drop_path_rate: 0.3, proj_drop_rate: 0.1}}",
    "pathways=[{connections: same, transform_options: {dropout: 0.1}}]",
)


def test_the_average_by_hand() -> None:
    torch.manual_seed(0)
    recipe, task = digits_recipe(), classification()
    student = build_network(recipe.student, recipe.data, task).train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    stepper = Stepper(Solo(student), optimizer, task, device=CPU, ema_decay=0.75)
    expected = [p.detach().clone() for p in student.parameters()]
    for step in range(3):
        stepper.step_alone(Batch(torch.rand(8, 3, 32, 32), torch.arange(8)), step)
        expected = [0.75 * mean + 0.25 * p.detach() for mean, p in zip(expected, student.parameters(), strict=True)]
    assert stepper.average is not None and not stepper.average.training
    for mean, found in zip(expected, stepper.average.parameters(), strict=True):
        torch.testing.assert_close(found, mean)


def interrupted_and_resumed(distpro: Run, monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str]) -> Result:
    """Stops a run after seven steps and resumes it, with other workers, in the folder `part`."""
    original = loop.Trainer._train_step

    def stop_at(self: loop.Trainer, batch: object) -> None:
        original(self, batch)  # type: ignore[arg-type]
        self.interruption.pending = self.plan.title in ("transfer", "search") and self.progress.step == 7

    monkeypatch.setattr(loop.Trainer, "_train_step", stop_at)
    assert distpro(*arguments, "part").status == 130
    monkeypatch.setattr(loop.Trainer, "_train_step", original)
    resumed = distpro(*arguments, "part", "data.workers=2", "--resume")
    assert resumed.status == 0, resumed.err
    return resumed


def test_it_is_evaluated_saved_and_resumed(distpro: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("transfer", "tiny.yaml", "-p", "uniform", *DEIT, "distill.ema_decay=0.9", "--json", "-q", "--run-dir")
    whole = distpro(*arguments, "whole")
    assert whole.status == 0, whole.err
    figures = whole.json["student"]
    rows = [json.loads(line) for line in Path("whole/metrics.jsonl").read_text().splitlines()]
    assert [row["test_ema_top1"] for row in rows if "test_top1" in row][-1] == figures["ema"]["top1_last"]
    resumed = interrupted_and_resumed(distpro, monkeypatch, arguments)
    assert resumed.json["student"]["ema"]["top1_last"] == figures["ema"]["top1_last"]
    for name in ("student", "student-ema"):
        first, second = (load_file(Path(folder) / f"{name}.safetensors") for folder in ("whole", "part"))
        assert all(np.array_equal(first[key], second[key]) for key in first)
    assert any(not np.array_equal(first[key], load_file("whole/student.safetensors")[key]) for key in first)


@pytest.mark.parametrize("outer", ["held-out", "train"])
def test_a_search_under_deits_settings_repeats_its_bits_and_resumes(
    distpro: Run, monkeypatch: pytest.MonkeyPatch, outer: str
) -> None:
    given = ("search", "tiny.yaml", *DEIT, "search.scale=loss", f"search.outer={outer}", "--json", "-q")
    whole = distpro(*given, "-o", "whole.safetensors", "--run-dir", "whole")
    assert whole.status == 0, whole.err
    interrupted_and_resumed(distpro, monkeypatch, (*given, "-o", "part.safetensors", "--run-dir"))
    first, second = (load_file(f"{name}.safetensors") for name in ("whole", "part"))
    assert all(np.array_equal(first[key], second[key]) for key in first)
    first, second = (load_file(f"{name}/student.safetensors") for name in ("whole", "part"))
    assert all(np.array_equal(first[key], second[key]) for key in first)


def test_the_average_of_a_trained_teacher_teaches(distpro: Run) -> None:
    given = ("teacher.train.ema_decay=0.5", "teacher.train.epochs=2", "teacher.seed=7")
    trained = distpro("train", "tiny.yaml", "--network", "teacher", *given, "--run-dir", "t", "--json", "-q")
    assert trained.status == 0, trained.err
    figures = trained.json["teacher"]
    files = {name: Path("t") / f"{name}.safetensors" for name in ("teacher", "teacher-ema")}
    assert figures["ema"]["weights"] == str(files["teacher-ema"])
    last, average = (load_file(path) for path in files.values())
    assert any(not np.array_equal(last[key], average[key]) for key in last)
    shown = distpro("train", "tiny.yaml", "--network", "teacher", *given, "--run-dir", "t", "--resume").out
    assert f"teacher, running average: top-1 {figures['ema']['top1_last']:.2f} % after the last epoch" in shown
    expected = {"teacher": figures["top1_last"], "teacher-ema": figures["ema"]["top1_last"]}
    for name, path in files.items():
        arguments = ("transfer", "tiny.yaml", "-p", "uniform", "distill.epochs=1", "--json", "--run-dir")
        of_file = distpro(*arguments, name, f"teacher.weights={path}", "teacher.train=null")
        assert of_file.json["teacher"]["top1"] == expected[name]
    taught = distpro(*arguments, "taught", *given)
    assert "already trained, taken from" in taught.err
    assert taught.json["teacher"]["top1"] == expected["teacher-ema"]
    assert Path("taught/student.safetensors").read_bytes() != Path("teacher/student.safetensors").read_bytes()
    ours, theirs = (load_file(f"{name}/student.safetensors") for name in ("taught", "teacher-ema"))
    assert all(np.array_equal(ours[key], theirs[key]) for key in ours)


def test_a_teacher_that_a_run_trains_first_says_both_figures(distpro: Run) -> None:
    given = ("teacher.train.ema_decay=0.5", "teacher.seed=8", "search.epochs=1")
    result = distpro("search", "tiny.yaml", *given, "--json")
    assert result.status == 0, result.err
    assert "teacher wrn_10_1: the running average of its weights teaches, top-1 " in result.err
    rows = (Path(result.json["run_dir"]) / "teacher-metrics.jsonl").read_text().splitlines()
    assert result.json["teacher"]["top1"] == json.loads(rows[-1])["test_ema_top1"]
