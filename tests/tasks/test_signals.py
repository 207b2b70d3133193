"""Workers and signals: the main process alone decides when data ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import multiprocessing, signal
stopped = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: stopped.append(number))
from distpro_cli.recipe.schema import Augmentation, Data
from distpro_cli.tasks.images.data import ImageData
spec = Data(name="digits", image_size=32, workers=2, augment=Augmentation(crop="pad"))
batches = ImageData(spec, 0).train_batches(32, 10**6)
next(batches)
print(*[child.pid for child in multiprocessing.active_children()], flush=True)
while True:
    while not stopped:
        next(batches)
    for _ in range(100):
        next(batches)
    print(stopped.pop(), flush=True)
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1][:3]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_signals_leave_the_data_flowing_and_workers_do_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    errors = tmp_path / "errors"
    with (
        errors.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", SCRIPT],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        ) as process,
    ):
        try:
            assert process.stdout is not None
            pids = [int(pid) for pid in process.stdout.readline().split()]
            assert len(pids) == 2
            for number in (signal.SIGINT, signal.SIGTERM):
                os.killpg(process.pid, number)
                assert process.stdout.readline() == f"{number:d}\n"
            assert all(alive(pid) for pid in pids) and errors.read_text() == ""
            process.kill()
            deadline = time.monotonic() + 30
            while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
                time.sleep(0.2)
            assert not any(alive(pid) for pid in pids)
        finally:
            process.kill()


HELD = """
import signal
from distpro_cli.recipe.schema import Data
from distpro_cli.tasks.images.data import ImageData
held = ImageData(Data(name="digits", image_size=32, workers=2), 0).train_batches(32, 10**6)
next(held)
assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL  # a worker's death interrupts nothing
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGCHLD")
def test_an_iterator_that_is_still_held_does_not_keep_the_process_from_ending() -> None:
    command = [sys.executable, "-W", "error", "-c", HELD]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_worker_whose_parent_is_gone_ends() -> None:
    code = "import os; from distpro_cli.tasks.images.workers import _start_worker; _start_worker({}); os._exit(7)"
    for parent, status in (("os.getppid()", 7), ("1 + os.getppid()", 1)):
        assert subprocess.run([sys.executable, "-c", code.format(parent)], timeout=60).returncode == status
