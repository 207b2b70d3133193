"""Many ranks through the command line: the run of one process, stopped and resumed, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import distpro_cli.workflows.search  # noqa: F401  # once, before the forks
from distpro_cli.cli import main
from distpro_cli.process.file import load_process
from tests.conftest import Run
from tests.ranks import NO_RANKS, fork_ranks

VIT = "name: vit_tiny_patch16_224, options: {patch_size: 4, embed_dim: 12, depth: 2, num_heads: 2}"
RECIPE = f"""\
data: {{name: digits, image_size: 16, train_images: 100, test_images: 300, workers: 0, augment: {{crop: none}}}}
teacher: {{{VIT}, train: {{epochs: 1, batch_size: 20}}}}
student: {{{VIT}}}
pathways: [{{connections: lower, transform: linear, distance: mse}}]
search: {{epochs: 2, interval: 1, weight: 1, outer_batch_size: 8, hypergradient: stopping.py:Stopping}}
distill: {{epochs: 2, batch_size: 16, mixup: 0.2, optimizer: {{lr: 0.003}}}}
"""
pytestmark = pytest.mark.skipif(NO_RANKS, reason="ranks are forked, and speak by Gloo")

MADE = ("p.safetensors", "run/student.safetensors", "run/metrics.jsonl")
SEARCH = ("search", "vit.yaml", "-o", "p.safetensors", "--run-dir", "run")


def start_folder(path: Path) -> Path:
    path.mkdir()
    (path / "vit.yaml").write_text(RECIPE)
    shutil.copy(Path(__file__).parent.parent / "toys" / "stopping.py", path)
    return path


def on_ranks(folder: Path, *arguments: str, size: int = 2, **environment: str) -> tuple[list[int], str]:
    """Runs the command line on forked ranks; returns exit statuses, and what all of them said on stderr."""

    def work() -> None:
        os.chdir(folder)
        for stream in ("stdout", "stderr"):
            setattr(sys, stream, Path(f"{stream}-{os.environ['RANK']}").open("w", encoding="utf-8"))  # noqa: SIM115
        main(arguments)

    statuses = fork_ranks(size, work, {"DISTPRO_CACHE": str(folder.parent / "cache"), "STOPS_BY": "", **environment})
    assert not (folder / "stdout-1").read_text()
    return statuses, "".join(path.read_text() for path in sorted(folder.glob("stderr-*")))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search on two ranks that nothing stopped, with its teacher."""
    folder = start_folder(tmp_path_factory.mktemp("ranks") / "whole")
    statuses, errors = on_ranks(folder, *SEARCH)
    assert statuses == [0, 0], errors
    assert errors.count("search: 10 steps") == errors.count("teacher vit_tiny_patch16_224: 5 steps") == 1
    return folder


def assert_same(folder: Path, whole: Path) -> None:
    for name in MADE:
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_search_on_ranks_is_that_of_one_process(
    whole: Path, tmp_path: Path, distpro: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = start_folder(tmp_path / "alone")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DISTPRO_CACHE", str(folder / "cache"))
    assert distpro(*SEARCH, "-q").status == 0
    alone, found = load_process(folder / "p.safetensors"), load_process(whole / "p.safetensors")
    np.testing.assert_allclose(found.alpha, alone.alpha, atol=0.02)
    np.testing.assert_allclose(found.weights, alone.weights, rtol=0.02)
    assert np.ptp(alone.alpha) > 0.3
    texts = [(path / "run/metrics.jsonl").read_text() for path in (folder, whole)]
    for one, other in zip(*([json.loads(line) for line in text.splitlines()] for text in texts), strict=True):
        assert one.keys() == other.keys()
        for key in {"task", "train_top1", "outer_task", "test_top1", "test_loss", "test_images"} & one.keys():
            assert other[key] == pytest.approx(one[key], rel=1e-3), key


def test_a_signal_to_one_rank_stops_all_and_the_run_resumes(whole: Path) -> None:
    folder = start_folder(whole.parent / "interrupted")
    statuses, errors = on_ranks(folder, *SEARCH, "-q", STOPS_BY=str(int(signal.SIGTERM)))
    assert statuses == [130, 130]
    assert errors.count("interrupted; resume with: torchrun --nproc-per-node 2 -m distpro_cli") == 1
    assert (folder / "run/checkpoint.pt").exists() and not (folder / "p.safetensors").exists()
    assert on_ranks(folder, *SEARCH, "-q", "--resume") == ([0, 0], "")
    assert_same(folder, whole)


def test_a_group_that_lost_a_rank_resumes_when_it_is_started_again(whole: Path) -> None:
    folder = start_folder(whole.parent / "killed")
    statuses, errors = on_ranks(folder, *SEARCH, "-q", STOPS_BY=str(int(signal.SIGKILL)))
    assert statuses == [2, -signal.SIGKILL]
    assert errors.startswith("error: another rank of this run has ended, or cannot be reached; torchrun says")
    statuses, errors = on_ranks(folder, *SEARCH, TORCHELASTIC_RESTART_COUNT="1")
    assert statuses == [0, 0] and "search: 10 steps, resuming at step 5" in errors
    assert_same(folder, whole)


def test_a_search_by_torchrun(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With STOPS_BY=9 in the environment rank 1 is killed once, and torchrun starts both again."""
    folder = start_folder(whole.parent / "torchrun")
    monkeypatch.setenv("DISTPRO_CACHE", str(whole.parent / "cache"))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    result = subprocess.run(
        [*torchrun, "-m", "distpro_cli", *SEARCH, "--json"], cwd=folder, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["process"] == "p.safetensors"
    assert ("resuming at step 5" in result.stderr) == ("STOPS_BY" in os.environ)
    assert_same(folder, whole)


def test_the_main_rank_decides_about_files(whole: Path) -> None:
    statuses, errors = on_ranks(whole, *SEARCH)
    assert statuses == [2, 2] and errors == "error: p.safetensors exists already; --force replaces it\n"
    statuses, errors = on_ranks(whole, *SEARCH[:2], "-o", "other.safetensors", *SEARCH[4:])
    assert statuses == [2, 2] and errors.startswith("error: run holds a run already (recipe.yaml): --resume")
    before = [(whole / name).stat().st_mtime_ns for name in MADE]
    assert on_ranks(whole, *SEARCH, "--resume") == ([0, 0], "")  # it is finished
    assert before == [(whole / name).stat().st_mtime_ns for name in MADE]


def test_an_error_of_one_rank_ends_all_with_its_message(whole: Path) -> None:
    folder = start_folder(whole.parent / "error")
    statuses, errors = on_ranks(folder, *SEARCH, "-q", STOPS_BY="error")
    assert statuses == [2, 2]
    assert errors == "error: rank 1 has had enough\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*SEARCH, "distill.batch_size=15"], "a batch of 15 images cannot be shared evenly by 2 ranks; set a batch_si"),
        ([*SEARCH, "search.outer_batch_size=7"], "a batch of 7 images cannot be shared evenly by 2 ranks"),
        ([*SEARCH, "data.train_images=9", "search.outer=train"], "a batch of 9 images cannot be shared evenly"),
        ([*SEARCH, "--device", "cuda:0"], "--device cuda:0: many ranks compute on cpu or cuda"),
        ([*SEARCH, "distill.nothing=1"], "unknown key"),
        (["compare", "vit.yaml"], "compare runs in one process; start it without torchrun"),
    ],
)
def test_what_is_refused_is_said_once(whole: Path, arguments: list[str], message: str) -> None:
    folder = whole.parent / "refused"
    if not folder.exists():
        start_folder(folder)
    statuses, errors = on_ranks(folder, *arguments)
    assert statuses == [2, 2]
    assert errors.count(message) == 1 and errors.count("error:") == 1
    assert not (folder / "run" / "recipe.yaml").exists()


def test_synchronised_batch_norm_is_refused_on_the_cpu(whole: Path) -> None:
    arguments = [*SEARCH, "sync_batch_norm=true", "--device", "cpu", "student={name: wrn_10_1}"]
    statuses, errors = on_ranks(whole.parent / "refused", *arguments, "pathways=[{connections: same}]")
    assert statuses == [2, 2]
    assert errors.count("sync_batch_norm: torch's SyncBatchNorm computes on CUDA only, this run on cpu") == 1
