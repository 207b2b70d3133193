"""Runs under faults: a folder in use, signals at any moment, full disks, few descriptors: one line each, no hang."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from torch import Tensor

from distpro_cli.workflows.session import Session
from tests.commands.test_trust import OUTPUT, wait_for
from tests.conftest import Run, start_distpro

LONG = ["search", "tiny.yaml", "search.epochs=5000", *OUTPUT]
needs_unix = pytest.mark.skipif(sys.platform == "win32", reason="Unix alone has these limits and locks")


def read_aside(process: subprocess.Popen[str]) -> tuple[list[tuple[float, str]], threading.Thread]:
    """Collects the lines of stderr with the time of each, while they come; the thread ends with them."""
    lines: list[tuple[float, str]] = []

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append((time.monotonic(), line.rstrip("\n")))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return lines, thread


@needs_unix
def test_a_folder_in_use_is_refused_and_free_once_its_process_is_gone(distpro: Run, workplace: Path) -> None:
    process = start_distpro(*LONG, "data.workers=2", "-q")
    wait_for(workplace / "run" / "checkpoint.pt", process)
    for option in ("--resume", "--force"):
        result = distpro(*LONG, "data.workers=2", "-q", option)
        assert result.status == 2 and result.err.count("\n") == 1
        assert f"run is in use by a run that is going on (process {process.pid})" in result.err
    process.kill()
    process.communicate()
    left = workplace / "run" / ".distpro-0123456789ab.tmp"  # as a process killed while it writes leaves it
    left.write_bytes(b"half")
    again = start_distpro(*LONG, "data.workers=2", "-q", "--resume")
    deadline = time.monotonic() + 60
    while left.exists():
        assert again.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    again.kill()
    again.communicate()


@needs_unix
def test_two_comparisons_in_one_folder(distpro: Run, workplace: Path) -> None:
    arguments = ["compare", "tiny.yaml", "--methods", "student", "--seeds", "1", "--run-dir", "c", "-q"]
    process = start_distpro(*arguments, "distill.epochs=5000")
    wait_for(workplace / "c" / ".lock", process)
    result = distpro(*arguments, "distill.epochs=1")
    assert result.status == 2 and "c is in use by a run" in result.err
    process.kill()
    process.communicate()
    assert distpro(*arguments, "distill.epochs=1").status == 0


def test_a_signal_is_acknowledged_within_a_second(workplace: Path) -> None:
    process = start_distpro(*LONG, "-q")
    wait_for(workplace / "run" / "checkpoint.pt", process)
    lines, reader = read_aside(process)
    sent = time.monotonic()
    with process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130
        reader.join()
    assert lines[0][1].startswith("stopping; a checkpoint is written first")
    assert lines[0][0] - sent < 1
    assert lines[1][1].startswith("interrupted; resume with: distpro search tiny.yaml") and len(lines) == 2


def test_two_signals_in_a_row_say_how_to_resume(workplace: Path) -> None:
    process = start_distpro(*LONG, "-q")
    wait_for(workplace / "run" / "checkpoint.pt", process)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        process.send_signal(number)
        time.sleep(0.01)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors and "interrupted; resume with: distpro search tiny.yaml" in errors


@pytest.mark.parametrize("signals", [1, 2])
def test_a_signal_while_libraries_load_is_one_line(workplace: Path, signals: int) -> None:
    """The delays are those at which the command line, then the run, then torch are being imported."""
    for delay in (0.3, 1.5):
        process = start_distpro(*LONG, "-q", "--force")
        time.sleep(delay)
        for _ in range(signals):
            process.send_signal(signal.SIGINT)
            time.sleep(0.02)
        _, errors = process.communicate(timeout=60)
        started = "Traceback" not in errors if errors else process.returncode != -signal.SIGINT
        if not started and "distpro_cli/__main__.py" not in errors:
            continue  # Python itself was not up yet
        # A second signal may come after the line and before the end: a shell calls that 130 as well.
        assert process.returncode in (130, -signal.SIGINT), (delay, errors)
        lines = [line for line in errors.splitlines() if not line.startswith("stopping;")]
        assert len(lines) == 1 and lines[0].startswith("interrupted"), (delay, errors)


def test_a_signal_that_a_library_swallows_is_not_lost(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workplace / "sitecustomize.py").write_text(
        "import os, signal, sys, time\n"
        "class Swallows:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'pydantic':\n"
        "            try:\n"
        "                os.kill(os.getpid(), signal.SIGINT)\n"
        "                time.sleep(1)\n"
        "            except KeyboardInterrupt:\n"
        "                pass\n"
        "sys.meta_path.insert(0, Swallows())\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(workplace), os.environ.get("PYTHONPATH", "")]))
    process = start_distpro(*LONG, "-q", "--force")
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "interrupted\n")


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_an_evaluation_stops_at_a_signal_and_is_made_again(
    distpro: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    arguments = ["train", "tiny.yaml", "distill.epochs=2", "teacher.train.epochs=2", "--network", role, "-q"]
    whole = distpro(*arguments, "--run-dir", "whole")
    assert whole.status == 0, whole.err
    original = Session.evaluate
    seen = []

    def evaluate(self: Session, network: object) -> dict[str, float]:
        seen.append(network)
        self.context.interruption.pending = len(seen) == 1
        return original(self, network)  # type: ignore[arg-type]

    monkeypatch.setattr(Session, "evaluate", evaluate)
    stopped = distpro(*arguments, "--run-dir", "part")
    assert stopped.status == 130 and "--resume" in stopped.err and len(seen) == 1
    resumed = distpro(*arguments, "--run-dir", "part", "--resume")
    assert resumed.status == 0, resumed.err
    name = f"{role}.safetensors"
    assert (workplace / "part" / name).read_bytes() == (workplace / "whole" / name).read_bytes()


def run_limited(limit: int, value: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line under a limit of the operating system."""
    return subprocess.run(
        [sys.executable, "-m", "distpro_cli", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=lambda: resource.setrlimit(limit, (value, value)),
    )


@needs_unix
def test_a_full_disk_says_that_resuming_goes_on(distpro: Run, workplace: Path) -> None:
    arguments = ["train", "tiny.yaml", "distill.epochs=1", "--run-dir", "run", "-q"]
    full = run_limited(resource.RLIMIT_FSIZE, 40_000, *arguments)
    assert full.returncode == 2 and full.stderr.count("\n") == 1, full.stderr
    assert "File too large; make room, then resume with: distpro train tiny.yaml" in full.stderr
    assert not list((workplace / "run").glob("*.tmp"))
    assert distpro(*arguments, "--resume").status == 0


@needs_unix
@pytest.mark.parametrize(("files", "expected"), [(6, "too many open files"), (24, "only 24 files may be open")])
def test_few_descriptors_are_one_line(workplace: Path, files: int, expected: str) -> None:
    done = run_limited(resource.RLIMIT_NOFILE, files, "train", "tiny.yaml", "data.workers=2", "-q")
    assert done.returncode == 2 and expected in done.stderr and done.stderr.count("\n") == 1, done.stderr


@needs_unix
def test_little_address_space_is_one_line(workplace: Path) -> None:
    done = run_limited(resource.RLIMIT_AS, 500 * 2**20, "train", "tiny.yaml", "-q")
    assert done.returncode == 2 and done.stderr.startswith("error: "), done.stderr
    assert done.stderr.count("\n") == 1 and "memory" in done.stderr


@needs_unix
def test_closed_streams(workplace: Path) -> None:
    command = f"{sys.executable} -m distpro_cli"
    options: dict[str, object] = {"shell": True, "capture_output": True, "text": True, "timeout": 120}
    closed = subprocess.run(f"{command} schema >&-", check=False, **options)  # type: ignore[call-overload]
    assert (closed.returncode, closed.stderr) == (2, "error: stdout is closed; send it to a file, or to /dev/null\n")
    for redirection in ("2>&- <&-",):
        train = f"{command} train tiny.yaml distill.epochs=1 --run-dir run --force {redirection}"
        done = subprocess.run(train, check=False, **options)  # type: ignore[call-overload]
        assert done.returncode == 0 and "student top-1" in done.stdout, done
    assert subprocess.run(f"{command} nothing 2>&-", check=False, **options).returncode == 2  # type: ignore[call-overload]


def test_a_reader_of_progress_that_leaves_does_not_end_the_run(workplace: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "distpro_cli", "train", "tiny.yaml", "distill.epochs=1"],
        stdout=subprocess.PIPE, stderr=write, text=True, timeout=120, check=False,
    )  # fmt: skip
    os.close(write)
    assert done.returncode == 0 and "student top-1" in done.stdout


@pytest.mark.parametrize("key", ["search.alpha_lr", "search.weight", "distill.optimizer.lr", "search.alpha_start"])
def test_a_number_beyond_float32_is_refused(distpro: Run, key: str) -> None:
    result = distpro("search", "tiny.yaml", f"{key}=1e308", "-q")
    assert result.status == 2 and result.err.count("\n") == 1 and f"{key}: found 1e+308" in result.err
    result = distpro("search", "tiny.yaml", f"{key}=1e30", "search.epochs=1", "-q", "--force")
    assert "Traceback" not in result.err and result.err.count("\n") <= 1


def test_a_step_beyond_float32_is_one_line(distpro: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def overflow(*_: object, **__: object) -> Tensor:
        raise RuntimeError("value cannot be converted to type float without overflow")

    monkeypatch.setattr(torch.optim.SGD, "step", overflow)
    result = distpro("train", "tiny.yaml", "distill.optimizer.name=momentum", "-q")
    assert result.status == 2 and result.err.count("\n") == 1
    assert "step 0: a number is too large for float32" in result.err
