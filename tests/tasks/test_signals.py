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
import signal, sys
signal.signal(signal.{name}, lambda *_: stopped.append(1))
from distpro_cli.recipe.schema import Augmentation, Data
from distpro_cli.tasks.images.data import ImageData
import multiprocessing
stopped = []
spec = Data(name="digits", image_size=32, workers=2, augment=Augmentation(crop="pad"))
batches = ImageData(spec, 0).train_batches(32, 10**6)
next(batches)
print(*[child.pid for child in multiprocessing.active_children()], flush=True)
after = 0
for batch in batches:
    after += bool(stopped)
    if after == 100:
        break
batches.close()
print(len(multiprocessing.active_children()), flush=True)
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1][:3]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_to_the_group_leaves_the_data_flowing(name: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", SCRIPT.format(name=name)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2
    os.killpg(process.pid, getattr(signal, name))
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out.strip(), errors) == (0, "0", "")
    assert not any(alive(pid) for pid in pids)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_workers_do_not_outlive_a_killed_parent() -> None:
    process = subprocess.Popen([sys.executable, "-c", SCRIPT.format(name="SIGINT")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 30
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not any(alive(pid) for pid in pids)
