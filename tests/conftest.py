"""Fixtures: a tiny recipe on the digits, the command line in this process and in one of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # which share the cores, here and in what they start
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))

TINY_RECIPE = """\
data:
  {name: digits, image_size: 16, train_images: 160, test_images: 80, workers: 0, augment: {crop: pad, flip: 0.0}}
teacher: {name: wrn_10_1, train: {epochs: 1, batch_size: 32}}
student: {name: wrn_10_1}
pathways:
  - {connections: lower, transform: conv1, distance: hcl}
search:
  {epochs: 2, interval: 1, alpha_decay: 0, alpha_lr: 0.1, lr_in_hypergradient: true, weight: 1, scale: distance,
   outer_batch_size: 32}
distill: {epochs: 2, batch_size: 32, optimizer: {lr: 0.05}}
"""


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object on stdout."""
        value: dict[str, Any] = json.loads(self.out)
        return value


Run = Callable[..., Result]


@pytest.fixture
def workplace(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder that holds `tiny.yaml`; teachers are cached for the whole test session."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISTPRO_CACHE", str(tmp_path_factory.getbasetemp() / "distpro-cache"))
    (tmp_path / "tiny.yaml").write_text(TINY_RECIPE)
    return tmp_path


@pytest.fixture
def distpro(workplace: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs the real command line in this process."""
    from distpro_cli.cli import main

    def run(*arguments: object) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in arguments])
        captured = capfd.readouterr()
        return Result(int(stop.value.code or 0), captured.out, captured.err)

    return run


def search_tiny(factory: pytest.TempPathFactory, epochs: int) -> Path:
    """Returns a folder with `tiny.yaml`, its process `p.safetensors` and the `run` that found it."""
    from distpro_cli import load_recipe, search

    folder = factory.mktemp("searched")
    (folder / "tiny.yaml").write_text(TINY_RECIPE)
    recipe = load_recipe(folder / "tiny.yaml", f"search.epochs={epochs}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTPRO_CACHE", str(factory.getbasetemp() / "distpro-cache"))
        search(recipe, output=folder / "p.safetensors", run_dir=folder / "run")
    return folder


@pytest.fixture(scope="session")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `search_tiny` gives for one epoch, made once for all tests."""
    return search_tiny(tmp_path_factory, epochs=1)


@pytest.fixture
def process(workplace: Path, searched: Path) -> Path:
    """The process of `searched`, as `p.safetensors` in the current folder."""
    shutil.copy(searched / "p.safetensors", workplace)
    return Path("p.safetensors")


# Jobs in the background of a script ignore it, and so would what the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

_started: list[subprocess.Popen[str]] = []


def start_distpro(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """Starts the command line in a process of its own, which does not outlive the test."""
    process = subprocess.Popen(
        [sys.executable, "-m", "distpro_cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
        **options,
    )
    _started.append(process)
    return process


@pytest.fixture(autouse=True)
def _nothing_runs_on() -> Iterator[None]:
    """Ends what a test that failed has started and not waited for."""
    yield
    while _started:
        process = _started.pop()
        if process.poll() is None:
            process.kill()
            process.communicate()
