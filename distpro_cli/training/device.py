"""Where a run computes, and in which precision."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import torch

from distpro_cli.errors import DistproError, first_line
from distpro_cli.world import current_world

_MANY_FILES = 4096
_FILES, _FILES_OF_A_WORKER = 16, 16


def choose_device(name: str | None) -> torch.device:
    """Returns the device called `name`, or the best available (CUDA, Apple's MPS, CPU) when it is None.

    Each of many ranks gets a GPU of its own: the one of its number among the ranks of its machine.

    Raises:
        DistproError: the name is unknown, or this machine has no such device.
    """
    if current_world().size > 1:
        name = device_of_rank(name, current_world().local_rank)
    if name is None or name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if torch.backends.mps.is_available():
            return torch.device("mps")
        return torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise DistproError(f"--device {name}: not available here ({reason}); use cpu, cuda, cuda:N or mps") from None
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # events, autocast and random states belong to the current one
    if device.type not in ("cpu", "cuda", "mps"):
        raise DistproError(f"--device {name}: nothing can be computed there; use cpu, cuda, cuda:N or mps")
    return device


def device_of_rank(name: str | None, local_rank: int) -> str:
    """Returns the device of one of many ranks, where the user has named `name`."""
    if name not in (None, "auto", "cpu", "cuda"):
        raise DistproError(f"--device {name}: many ranks compute on cpu or cuda, on which each takes a GPU of its own")
    if name == "cpu" or (name != "cuda" and not torch.cuda.is_available()):
        return "cpu"
    if local_rank >= (count := torch.cuda.device_count()):
        raise DistproError(
            f"rank {local_rank} of this machine has no GPU, there are {count}; start as many ranks "
            f"(torchrun --nproc-per-node {max(count, 1)}), or compute on the CPU (--device cpu)"
        )
    return f"cuda:{local_rank}"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Returns the mixed-precision context of a recipe's `precision`: autocast to bfloat16, or nothing."""
    if precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def rounds_float32(device: torch.device) -> bool:
    """Says whether matrix products or convolutions of float32 are rounded to TF32 there; CUDA's convolutions are."""
    return device.type == "cuda" and any(getattr(*setting) in (True, "tf32") for setting in _tf32_settings())


@contextmanager
def full_float32() -> Iterator[None]:
    """Computes matrix products and convolutions of float32 in full precision inside, without TF32."""
    settings = _tf32_settings()
    before = [getattr(*setting) for setting in settings]
    try:
        for owner, name in settings:
            setattr(owner, name, False if name == "allow_tf32" else "ieee")
        yield
    finally:
        for (owner, name), value in zip(settings, before, strict=True):
            setattr(owner, name, value)


def _tf32_settings() -> list[tuple[Any, str]]:
    """Returns the owners and names of torch's switches; since torch 2.9 the older ones warn."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    if hasattr(cudnn, "conv"):
        return [(owner, "fp32_precision") for owner in (matmul, cudnn.conv, cudnn.rnn)]
    return [(matmul, "allow_tf32"), (cudnn, "allow_tf32")]


def set_determinism(wanted: bool | None, device: torch.device) -> None:
    """Asks for kernels that give the same bits every time, or leaves the choice to torch.

    Args:
        wanted: A recipe's `deterministic`; None: on the CPU alone, where an operation without such a kernel warns.
        device: Where the run computes.
    """
    on = device.type == "cpu" if wanted is None else wanted
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        _memory().fill_uninitialized_memory = False  # nothing here reads what it has not written
    # The same switch as use_deterministic_algorithms, which imports the compiler: a second at every start.
    torch.set_deterministic_debug_mode(("warn" if wanted is None else "error") if on else "default")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = on


def _memory() -> Any:
    return torch.utils.deterministic


@contextmanager
def determinism_kept() -> Iterator[None]:
    """Puts torch's settings of determinism back to what they were."""
    cudnn, filling = torch.backends.cudnn, _memory()
    before = torch.get_deterministic_debug_mode(), cudnn.benchmark, cudnn.deterministic
    filled = filling.fill_uninitialized_memory
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before[0])
        cudnn.benchmark, cudnn.deterministic = before[1:]
        filling.fill_uninitialized_memory = filled


@contextmanager
def explaining_kernels() -> Iterator[None]:
    """Says what to do about an operation that has no deterministic kernel, and about networks that do not compile."""
    try:
        yield
    except RuntimeError as error:
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise DistproError(f"compile: torch cannot do it here ({first_line(error)}); set compile=false") from error
        name, found, _ = str(error).partition(" does not have a deterministic implementation")
        if not found:
            raise
        raise DistproError(f"deterministic: {name} has no kernel that is; set deterministic=false") from error


def check_open_files(workers: int) -> None:
    """Raises this process's own limit on open files where it is low and may be raised.

    Raises:
        DistproError: it stays too low for so many processes that load data, whose helpers would fail one by one.
    """
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft != unlimited and soft < _MANY_FILES:
        wanted = _MANY_FILES if hard == unlimited else min(hard, _MANY_FILES)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    needed = _FILES + _FILES_OF_A_WORKER * workers
    if soft != unlimited and soft < needed:
        raise DistproError(
            f"only {soft} files may be open at once here, and {workers} processes that load data need {needed}; "
            f"raise the limit (ulimit -n {max(1024, needed)}), or set data.workers=0"
        )


def describe_device(device: torch.device) -> str:
    """Returns the device in words, such as `cpu, 2 threads` or `cuda, NVIDIA H100`."""
    if device.type == "cuda":
        return f"{device}, {torch.cuda.get_device_name(device)}"
    if device.type == "cpu":
        return f"cpu, {torch.get_num_threads()} threads"
    return str(device)


class DeviceClock:
    """Adds up the time a device computes: on CUDA between events around the work, else CPU seconds of this process.

    CPU seconds count every thread, so that two busy threads count two seconds per second; processes that load data
    are not among them.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._seconds = 0.0
        self._started = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __enter__(self) -> None:
        if self.device.type == "cuda":
            self._events.append((torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)))
            self._events[-1][0].record()
        else:
            self._started = time.process_time()

    def __exit__(self, *error: object) -> None:
        if self.device.type == "cuda":
            self._events[-1][1].record()
        else:
            self._seconds += time.process_time() - self._started

    def take(self) -> float:
        """Returns the seconds since the last call; on CUDA it waits for the work to end."""
        for start, end in self._events:
            end.synchronize()
            self._seconds += start.elapsed_time(end) / 1000
        self._events.clear()
        taken, self._seconds = self._seconds, 0.0
        return taken
