"""Runs that can be trusted: signals, kills, resumption, nothing overwritten, clear errors."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distpro_cli.recipe.strict_yaml import read_yaml, write_yaml
from distpro_cli.training import loop
from tests.conftest import Run, search_tiny, start_distpro

# What the first version's search did not know.
# Of what the first version did not know, the keys for which the tiny recipe has today's defaults.
NEW_IN_SEARCH = ("method", "outer", "alpha_memory", "learn_weight", "hypergradient_options")
OUTPUT = ["--output", "p.safetensors", "--run-dir", "run"]


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return search_tiny(tmp_path_factory, epochs=3)


@pytest.mark.parametrize("stop_step", [2, 4, 7])
def test_resume_in_the_middle_of_an_epoch_is_bit_identical(
    distpro: Run, workplace: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch, stop_step: int
) -> None:
    original = loop.Trainer._train_step

    def stop_at(self: loop.Trainer, batch: object) -> None:
        original(self, batch)  # type: ignore[arg-type]
        if self.plan.title == "search" and self.progress.step == stop_step:
            self.interruption.pending = True

    monkeypatch.setattr(loop.Trainer, "_train_step", stop_at)
    stopped = distpro("search", "tiny.yaml", "search.epochs=3", *OUTPUT, "-q")
    assert stopped.status == 130
    assert "--resume" in stopped.err and "--run-dir run" in stopped.err
    monkeypatch.setattr(loop.Trainer, "_train_step", original)
    torch.manual_seed(12345)  # a resumed run owes nothing to the random state it finds
    resumed = distpro("search", "tiny.yaml", "search.epochs=3", *OUTPUT, "--resume", "-q")
    assert resumed.status == 0, resumed.err
    for name in ("p.safetensors", "run/student.safetensors", "run/metrics.jsonl"):
        assert (workplace / name).read_bytes() == (uninterrupted / name).read_bytes(), name


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_writes_a_checkpoint_and_says_how_to_resume(workplace: Path, number: int) -> None:
    process = start_distpro("search", "tiny.yaml", "search.epochs=500", *OUTPUT)
    wait_for(workplace / "run" / "checkpoint.pt", process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    command = errors.split("resume with: ")[1].strip()
    assert command == "distpro search tiny.yaml search.epochs=500 --output p.safetensors --run-dir run --resume"
    assert shlex.split(command)
    assert "Traceback" not in errors
    state = torch.load(workplace / "run" / "checkpoint.pt", weights_only=True)
    assert 0 < state["progress"]["step"] < 500 * 4


def test_kill_at_any_moment_and_resume(distpro: Run, workplace: Path, uninterrupted: Path) -> None:
    arguments = ["search", "tiny.yaml", "search.epochs=3", "checkpoint_seconds=0.01", *OUTPUT, "--quiet"]
    process = start_distpro(*arguments)
    wait_for(workplace / "run" / "checkpoint.pt", process)
    time.sleep(0.15)
    process.kill()
    process.communicate()
    resumed = distpro(*arguments, "--resume")
    assert resumed.status == 0, resumed.err
    whole, mine = (
        torch.load(folder / "run" / "checkpoint.pt", weights_only=True)["weights"]["alpha_rows"]
        for folder in (uninterrupted, workplace)
    )
    assert torch.equal(whole, mine)


@pytest.mark.parametrize("scale", ["recorded", "measured"])
def test_transfer_resumes_bit_identical(distpro: Run, monkeypatch: pytest.MonkeyPatch, scale: str) -> None:
    assert distpro("search", "tiny.yaml", "search.scale=loss", "search.epochs=1", "-o", "p.safetensors").status == 0
    given = ["transfer", "tiny.yaml", "-p", "p.safetensors", f"distill.scale={scale}", "-q"]
    whole = distpro(*given, "--run-dir", "whole", "--json")
    original = loop.Trainer._train_step

    def stop(self: loop.Trainer, batch: object) -> None:
        original(self, batch)  # type: ignore[arg-type]
        self.interruption.pending = self.progress.step == 3

    monkeypatch.setattr(loop.Trainer, "_train_step", stop)
    assert distpro(*given, "--run-dir", "part").status == 130
    monkeypatch.setattr(loop.Trainer, "_train_step", original)
    resumed = distpro(*given, "--run-dir", "part", "--resume", "--json")
    assert resumed.status == 0, resumed.err
    assert Path(whole.json["student"]["weights"]).read_bytes() == Path(resumed.json["student"]["weights"]).read_bytes()
    other = distpro(*given, f"distill.scale={'recorded' if scale == 'measured' else 'measured'}", "--json")
    assert Path(other.json["student"]["weights"]).read_bytes() != Path(whole.json["student"]["weights"]).read_bytes()


def test_weights_that_are_factors_have_no_unit_to_measure(distpro: Run) -> None:
    runs = [
        distpro("transfer", "tiny.yaml", "-p", "uniform", f"distill.scale={scale}", "-q", "--json").json
        for scale in ("recorded", "measured")
    ]
    one, other = (load_file(run["student"]["weights"]) for run in runs)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_resuming_a_finished_run_prints_its_result_again(distpro: Run) -> None:
    first = distpro("train", "tiny.yaml", "distill.epochs=1", "--run-dir", "run", "--json", "-q")
    again = distpro("train", "tiny.yaml", "distill.epochs=1", "--run-dir", "run", "--json", "-q", "--resume")
    assert again.status == 0 and again.json == first.json


@pytest.mark.parametrize("network", ["student", "teacher"])
def test_a_finished_run_of_an_earlier_version_is_printed_again(distpro: Run, workplace: Path, network: str) -> None:
    arguments = ["train", "tiny.yaml", "distill.epochs=1", "--network", network, "--run-dir", "run", "-q"]
    first = distpro(*arguments)
    assert first.status == 0 and f"{network} top-1 " in first.out and " % after the last epoch, " in first.out
    path = workplace / "run" / "summary.json"
    summary = json.loads(path.read_text())
    del summary["metric"]  # earlier versions did not write it
    path.write_text(json.dumps(summary))
    again = distpro(*arguments, "--resume")
    assert again.status == 0 and again.out == first.out


def test_resuming_a_finished_search_writes_what_is_missing(distpro: Run, workplace: Path) -> None:
    arguments = ["search", "tiny.yaml", "search.epochs=1", "--run-dir", "run", "--json", "-q"]
    assert distpro(*arguments, "-o", "p.safetensors").status == 0
    content = (workplace / "p.safetensors").read_bytes()
    (workplace / "p.safetensors").unlink()
    (workplace / "run" / "summary.json").write_text("{")
    assert distpro(*arguments, "-o", "p.safetensors", "--resume").status == 0
    assert (workplace / "p.safetensors").read_bytes() == content
    assert distpro(*arguments, "-o", "q.safetensors", "--resume").json["process"] == "q.safetensors"
    assert (workplace / "q.safetensors").read_bytes() == content
    (workplace / "run" / "inputs.json").unlink()
    result = distpro(*arguments, "-o", "p.safetensors", "--resume")
    assert result.status == 2 and "inputs.json is missing" in result.err


def test_a_run_is_not_resumed_under_another_recipe(distpro: Run) -> None:
    assert distpro("train", "tiny.yaml", "distill.epochs=1", "--run-dir", "run", "-q").status == 0
    result = distpro("train", "tiny.yaml", "distill.epochs=5", "--run-dir", "run", "-q", "--resume")
    assert result.status == 2
    assert "distill.epochs=1, not 5" in result.err


def test_what_is_there_is_not_overwritten(distpro: Run, workplace: Path) -> None:
    (workplace / "p.safetensors").write_bytes(b"precious")
    result = distpro("search", "tiny.yaml", *OUTPUT, "-q")
    assert result.status == 2
    assert "p.safetensors" in result.err and "--force" in result.err
    assert (workplace / "p.safetensors").read_bytes() == b"precious"
    assert not (workplace / "run").exists()
    (workplace / "p.safetensors").unlink()
    assert distpro("search", "tiny.yaml", "search.epochs=1", *OUTPUT, "-q").status == 0
    (workplace / "p.safetensors").unlink()
    result = distpro("search", "tiny.yaml", "search.epochs=1", *OUTPUT, "-q")
    assert result.status == 2 and "--resume continues it" in result.err
    assert distpro("search", "tiny.yaml", "search.epochs=1", *OUTPUT, "-q", "--force").status == 0


def test_a_mistake_leaves_no_run_behind(distpro: Run, workplace: Path) -> None:
    wrong = distpro("train", "tiny.yaml", "distill.epochs=1", "--run-dir", "run", "-q", "data.train_images=10000")
    assert wrong.status == 2
    assert not (workplace / "run").exists()
    assert distpro("train", "tiny.yaml", "distill.epochs=1", "--run-dir", "run", "-q").status == 0


@pytest.mark.parametrize("target", ["/dev/null", "file/p.safetensors", "/proc/nowhere/p.safetensors"])
def test_an_output_that_cannot_be_written_is_found_before_the_search(
    distpro: Run, workplace: Path, target: str
) -> None:
    (workplace / "file").write_text("not a folder")
    result = distpro("search", "tiny.yaml", "--force", "-o", target, "-q")
    assert result.status == 2 and target in result.err and result.err.count("\n") == 1
    assert not (workplace / "runs").exists()


def test_runs_without_a_folder_of_their_own_are_numbered(distpro: Run) -> None:
    folders = [distpro("train", "tiny.yaml", "distill.epochs=1", "--json", "-q").json["run_dir"] for _ in range(2)]
    assert folders == ["runs/train-student-tiny", "runs/train-student-tiny-2"]


def test_a_folder_that_cannot_be_made_is_one_line(distpro: Run, workplace: Path) -> None:
    (workplace / "file").write_text("not a folder")
    result = distpro("train", "tiny.yaml", "--run-dir", "file/run", "-q")
    assert result.status == 2
    assert result.err.count("\n") == 1 and "file/run" in result.err


def test_a_damaged_checkpoint_is_one_line(distpro: Run, workplace: Path) -> None:
    assert distpro("train", "tiny.yaml", "distill.epochs=1", "--run-dir", "run", "-q").status == 0
    (workplace / "run" / "summary.json").unlink()
    (workplace / "run" / "checkpoint.pt").write_bytes(b"PK\x03\x04 not one")
    result = distpro("train", "tiny.yaml", "distill.epochs=1", "--run-dir", "run", "--resume", "-q")
    assert result.status == 2
    assert "checkpoint.pt: not a checkpoint" in result.err and "Traceback" not in result.err


def test_a_loss_that_is_not_finite_names_step_and_pathway(distpro: Run) -> None:
    overrides = ["distill.optimizer.lr=1e30", "search.epochs=3"]
    result = distpro("search", "tiny.yaml", *overrides, *OUTPUT, "-q")
    assert result.status == 2
    found = re.fullmatch(
        r"error: student wrn_10_1: step \d+: the (outer task loss|task loss|loss of pathway \d-\d) is (nan|inf); "
        r"(the last good checkpoint is run/checkpoint\.pt|there is no good checkpoint); try a smaller .*\n",
        result.err,
    )
    assert found, result.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["search", "nowhere.yaml"], "nowhere.yaml"),
        (["search", "tiny.yaml", "search.epoch=3"], "epochs"),
        (["search", "tiny.yaml", "student.name=wrn_10_l"], "wrn_10_1"),
        (["search", "tiny.yaml", "pathways.0.transform=conf2"], "conv2"),
        (["search", "tiny.yaml", "pathways.0.connections=[[9, 1]]"], "9"),
        (["search", "tiny.yaml", "student.levels=[block1.nothere]"], "block1"),
        (["search", "tiny.yaml", "data.name=folder", "data.root=/nowhere/at/all"], "/nowhere/at/all"),
        (["search", "tiny.yaml", "teacher.weights=none.safetensors"], "none.safetensors"),
        (["search", "tiny.yaml", "--device", "tpu9"], "--device"),
        (["transfer", "--process", "none.safetensors"], "none.safetensors"),
        (["transfer", "--process", "tiny.yaml"], "tiny.yaml"),
        (["train", "tiny.yaml", "--network", "pupil"], "student"),
        (["serch", "tiny.yaml"], "search"),
        (["search", "tiny.yaml", "task=detection"], "data.root"),
        (["search", "tiny.yaml", "distill.batch_size=1", "data.train_images=3"], "BatchNorm"),
        (["train", "tiny.yaml", "distill.optimizer.name=admw"], "adamw"),
        (["train", "tiny.yaml", "distill.optimizer.name=adahessian"], "second derivatives"),
        (["search", "tiny.yaml", "seed=99999999999999999999"], "seed"),
        (["train", "tiny.yaml", "data.image_size=1000000"], "memory"),
    ],
)
def test_wrong_input_is_status_2_and_a_clear_line(distpro: Run, arguments: list[str], expected: str) -> None:
    result = distpro(*arguments)
    assert result.status == 2, result.err
    assert expected in result.err
    assert "Traceback" not in result.err


def test_help_and_inspect_import_nothing_heavy(process: Path) -> None:
    for arguments in (
        ["--help"],
        ["inspect", "p.safetensors"],
        ["inspect", "p.safetensors", "--json"],
        ["search", "--help"],
    ):
        code = (
            "import sys\nfrom distpro_cli.cli import main\n"
            f"try:\n    main({arguments!r})\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
            "loaded = {'torch', 'timm', 'torchvision', 'matplotlib'} & set(sys.modules)\nassert not loaded, loaded"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_a_torchvision_that_does_not_fit_is_one_line(workplace: Path) -> None:
    (workplace / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    process = start_distpro("train", "tiny.yaml", "-q", cwd=workplace)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "pip install" in errors and "Traceback" not in errors and errors.count("\n") == 1


def test_force_forgets_a_teacher_half_trained_under_another_recipe(distpro: Run, workplace: Path) -> None:
    assert distpro("train", "tiny.yaml", "distill.epochs=1", "--run-dir", "run", "-q").status == 0
    (workplace / "run" / "teacher-checkpoint.pt").write_bytes((workplace / "run" / "checkpoint.pt").read_bytes())
    overrides = ["teacher.name=wrn_10_2", "search.epochs=1"]
    result = distpro("search", "tiny.yaml", *overrides, *OUTPUT, "-q", "--force")
    assert result.status == 0, result.err


def test_a_cache_that_cannot_be_written_is_found_before_the_teacher_is_trained(
    distpro: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workplace / "file").write_text("not a folder")
    monkeypatch.setenv("DISTPRO_CACHE", str(workplace / "file"))
    result = distpro("search", "tiny.yaml", *OUTPUT)
    assert result.status == 2
    assert result.err.count("\n") == 1 and "set DISTPRO_CACHE" in result.err


def test_the_teacher_trained_alone_reports_its_result(distpro: Run) -> None:
    result = distpro("train", "tiny.yaml", "--network", "teacher", "-q", "--run-dir", "run")
    assert result.status == 0, result.err
    assert re.search(r"teacher top-1 \d+\.\d\d % after the last epoch", result.out)
    assert Path("run/teacher.safetensors").exists() and not Path("run/student.safetensors").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_output_that_cannot_be_written_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "distpro_cli", "schema"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 2
    assert done.stderr == "error: output: No space left on device\n"


def test_what_is_wrong_with_a_pair_is_found_before_its_teacher_is_trained(distpro: Run, process: Path) -> None:
    untrained = ["teacher.seed=77", "teacher.train.epochs=1000"]
    result = distpro("search", "tiny.yaml", *untrained, "pathways.0.connections=[[9, 1]]", "-o", "other.safetensors")
    assert result.status == 2 and "teacher level 9" in result.err
    other = [*untrained, "pathways.0.connections=upper"]
    result = distpro("transfer", "tiny.yaml", *other, "-p", process)
    assert result.status == 2 and "only in the pair: 1-2" in result.err
    result = distpro("transfer", "tiny.yaml", *untrained, "-p", process, "--threshold", 0.5, "--keep", 0.5)
    assert result.status == 2 and "exclude each other" in result.err


def test_metrics_are_on_disk_while_the_run_is_going(workplace: Path) -> None:
    process = start_distpro("train", "tiny.yaml", "distill.epochs=500", "--run-dir", "run", "-q")
    wait_for(workplace / "run" / "metrics.jsonl", process)
    deadline = time.monotonic() + 10
    while len((workplace / "run" / "metrics.jsonl").read_text().splitlines()) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.communicate()


def test_a_run_folder_of_the_first_version_is_resumed(distpro: Run, workplace: Path) -> None:
    """Its checkpoint has no state of a hypergradient, its recipe no options of one, its summary no metric."""
    arguments = ["search", "tiny.yaml", "search.epochs=1", *OUTPUT, "-q"]
    assert distpro(*arguments).status == 0
    content = (workplace / "p.safetensors").read_bytes()
    run = workplace / "run"
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    del state["weights"]["hypergradient"]
    torch.save(state, run / "checkpoint.pt")
    recipe = read_yaml((run / "recipe.yaml").read_text()).value
    for key in NEW_IN_SEARCH:
        del recipe["search"][key]
    for group in recipe["pathways"]:
        del group["weight"], group["alpha_start"]
    (run / "recipe.yaml").write_text(write_yaml(recipe))
    summary = json.loads((run / "summary.json").read_text())
    del summary["metric"]
    (run / "summary.json").write_text(json.dumps(summary))
    again = distpro(*arguments, "--resume")
    assert again.status == 0 and "teacher top-1" in again.out
    (run / "summary.json").unlink()
    (workplace / "p.safetensors").unlink()
    assert distpro(*arguments, "--resume").status == 0
    assert (workplace / "p.safetensors").read_bytes() == content
