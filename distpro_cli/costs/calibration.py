"""Measures how long operations take on a device, and reads the constants of a `Machine` off it.

Real operations of several sizes run forward and backward. What each does is counted as for the parts of a step, in
float32 whatever the precision that is measured: so in bfloat16 the constants take in that fewer bytes are moved.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import astuple, dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distpro_cli.costs.machines import Calibration
from distpro_cli.costs.operation_costs import OperationCosts
from distpro_cli.errors import DistproError
from distpro_cli.process.machine import Work

REPETITIONS = 5
ATTEMPTS = 3  # before timings that make no sense are given up
NUM_IMAGES = {"cuda": 128, "mps": 32, "cpu": 8}
# Calls of a repetition keep what they made, as a network does, until they have moved so many bytes, more than caches
# hold, or taken so long.
BYTES = {"cuda": 2**31, "mps": 2**28, "cpu": 2**26}
MOST_SECONDS = 0.01


@dataclass(frozen=True)
class Case:
    """An operation to time.

    Attributes:
        make: Makes its module.
        shape: Of what goes in, without the batch: channels, height, width, or channels alone.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]


class Sum(nn.Module):
    """Adds a map of ones, as a residual is added to its branch."""

    def __init__(self) -> None:
        super().__init__()
        self.other: Tensor | None = None

    def forward(self, map_bchw: Tensor) -> Tensor:
        """Returns the sum, of the same shape."""
        if self.other is None:
            self.other = torch.ones_like(map_bchw, requires_grad=False)
        return map_bchw + self.other


def _convolution(channels: int, out: int, kernel: int, size: int, groups: int = 1) -> Case:
    def make() -> nn.Module:
        return nn.Conv2d(channels, out, kernel, padding=kernel // 2, groups=groups, bias=False)

    return Case(make, (channels, size, size))


CASES = (
    _convolution(16, 16, 3, 32),
    _convolution(64, 64, 3, 16),
    _convolution(64, 64, 3, 32),
    _convolution(256, 256, 3, 8),
    _convolution(256, 256, 3, 4),
    _convolution(64, 256, 1, 32),
    _convolution(256, 64, 1, 16),
    _convolution(512, 512, 1, 8),
    _convolution(64, 64, 3, 32, groups=64),
    _convolution(256, 256, 3, 16, groups=256),
    Case(lambda: nn.BatchNorm2d(64), (64, 64, 64)),
    Case(lambda: nn.BatchNorm2d(256), (256, 8, 8)),
    Case(lambda: nn.BatchNorm2d(16), (16, 8, 8)),
    Case(nn.ReLU, (64, 64, 64)),
    Case(Sum, (64, 64, 64)),
    Case(Sum, (256, 16, 16)),
    Case(Sum, (16, 4, 4)),
    Case(lambda: nn.Linear(512, 1000), (512,)),
    Case(lambda: nn.Linear(2048, 512), (2048,)),
)


class Ready:
    """A case made on a device, where its passes can run.

    Args:
        case: The operation.
        device: On the meta device nothing is computed.
        precision: `float32`, or `bfloat16` by autocast.
        num_images: In a batch.
    """

    def __init__(self, case: Case, device: torch.device, precision: str, num_images: int) -> None:
        self._device = device
        self._dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        self._module = case.make().train().to(device)
        self._given = torch.ones(num_images, *case.shape, device=device, dtype=self._dtype)
        if len(case.shape) > 1:
            self._module.to(memory_format=torch.channels_last)
            self._given = self._given.contiguous(memory_format=torch.channels_last)
        self._given.requires_grad_()
        self._ones = torch.ones_like(self.forward(), requires_grad=False)

    def forward(self) -> Tensor:
        """Returns what the operation makes, with its graph."""
        half = self._dtype == torch.bfloat16
        with torch.autocast(self._device.type, dtype=self._dtype) if half else nullcontext():
            made: Tensor = self._module(self._given)
        return made

    def backward(self, made: Tensor) -> None:
        """Goes back through what `forward` made, once, to the input and the parameters."""
        torch.autograd.grad(made, [self._given, *self._module.parameters()], self._ones)

    def work(self) -> list[Work]:
        """Returns the work of both passes."""
        with OperationCosts() as forward:
            made = self.forward()
        with OperationCosts() as backward:
            self.backward(made)
        return [forward.work, backward.work]

    def calls(self, moved_bytes: float) -> int:
        """Returns how often a repetition calls both passes, the forward one of which moves so many bytes."""
        self.seconds(1)
        first = sum(self.seconds(1))
        most = BYTES[self._device.type] / moved_bytes, MOST_SECONDS / max(first, 1e-9)
        return max(1, round(min(most)))

    def seconds(self, calls: int) -> tuple[float, float]:
        """Returns how long either pass takes, the mean of so many calls."""
        start = self._now()
        made = [self.forward() for _ in range(calls)]
        between = self._now()
        for one in made:
            self.backward(one)
        return (between - start) / calls, (self._now() - between) / calls

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        elif self._device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()


def calibrate(device: torch.device, precision: str, name: str) -> Calibration:
    """Measures a device; a few seconds on a CPU core.

    Args:
        device: Which.
        precision: `float32`, or `bfloat16` by autocast.
        name: Of the device, in words.

    Raises:
        DistproError: the timings make no sense, again and again.
    """
    for _ in range(ATTEMPTS):
        works, seconds = measured(device, precision)
        coefficients, errors = fit(works, seconds)
        of_byte, of_flop, of_backward_flop, of_operation = coefficients.tolist()
        if of_byte > 0 and of_flop > 0:
            return Calibration(
                name,
                flops_per_byte=of_byte / of_flop,
                backward_factor=of_backward_flop / of_flop,
                operation_bytes=of_operation / of_byte,
                worst_error=float(errors.max()),
                median_error=float(np.median(errors)),
            )
    free = "moving bytes" if of_byte <= 0 else "arithmetic"
    raise DistproError(
        f"{name}, {precision}: the timings make no sense ({free} took no time); try again when it is idle"
    )


def measured(device: torch.device, precision: str) -> tuple[list[Work], list[float]]:
    """Returns the work of every pass of every case, and how many seconds it took: its fastest repetition.

    What else the machine does meanwhile only slows, and cases take turns, so that the repetitions of each lie apart.
    """
    num_images = NUM_IMAGES[device.type]
    works = [Ready(case, torch.device("meta"), "float32", num_images).work() for case in CASES]
    ready = [Ready(case, device, precision, num_images) for case in CASES]
    calls = [one.calls(forward.moved_bytes) for one, (forward, _) in zip(ready, works, strict=True)]
    rounds = [
        [took for one, count in zip(ready, calls, strict=True) for took in one.seconds(count)]
        for _ in range(REPETITIONS)
    ]
    seconds = [min(times) for times in zip(*rounds, strict=True)]
    pairs = list(zip((work for both in works for work in both), seconds, strict=True))
    pairs = [(work, took) for work, took in pairs if work.operations]  # a sum's way back only hands its gradient on
    return [work for work, _ in pairs], [took for _, took in pairs]


def fit(works: Sequence[Work], seconds: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Explains seconds as a sum of what bytes, flops, backward flops and operations take.

    Args:
        works: N of them.
        seconds: What each took, above 0; [N].

    Returns:
        Seconds of one of each, ≥ 0, with the least sum of squared relative errors, [4]; and the relative errors, [N].
    """
    # Of non-negative least squares over four columns, the solution is that of one of their 15 subsets.
    share_n4 = np.array([astuple(work) for work in works]) / np.array(seconds)[:, None]
    norms = np.linalg.norm(share_n4, axis=0)
    norms[norms == 0] = 1
    best, least = np.zeros(4), float(len(works))
    for subset in (list(columns) for count in range(1, 5) for columns in combinations(range(4), count)):
        found = np.linalg.lstsq(share_n4[:, subset] / norms[subset], np.ones(len(works)), rcond=None)[0]
        coefficients = np.zeros(4)
        coefficients[subset] = found / norms[subset]
        squares = float(((share_n4 @ coefficients - 1) ** 2).sum())
        if (found >= 0).all() and squares < least:
            best, least = coefficients, squares
    return best, np.abs(share_n4 @ best - 1)
