"""What a step costs, as ratios inside one run: WRN-40-2 → WRN-16-2, K = 10, the digits at 32×32.

    python benchmarks/step_cost.py --json

| key | ratio |
| --- | --- |
| search_over_plain | a search step over a plain distillation step |
| plain_over_floor | a plain step over teacher forward + student and pathways forward and backward, run by hand |
| central_over_ours | a search step by central difference over ours |
| cosine_float32, cosine_bfloat16 | cosine of our hypergradient to the exact one, which is always in float32 |
| memory_search_over_plain | peak memory of a search step over that of a plain step, networks and optimiser included |

Times are medians of interleaved repetitions. Peak memory is what CUDA's allocator says; on the CPU, the most that
live tensors held at once.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from distpro_cli.networks.build import build_network
from distpro_cli.pathways.connections import resolve_pathways
from distpro_cli.pathways.module import Pathways
from distpro_cli.recipe.schema import Data, Network, Optimizer, PathwayGroup
from distpro_cli.tasks.classification.data import ClassificationData
from distpro_cli.tasks.classification.task import task_loss
from distpro_cli.training.device import choose_device, describe_device
from distpro_cli.training.hypergradients import BILEVEL_STEPS, CheapHypergradient, ExactHypergradient
from distpro_cli.training.optimiser import make_optimizer
from distpro_cli.training.step import Pair, Stepper

# A network at its very start, or one that learns random labels, has a hypergradient that is all noise: the
# cosines are taken after a short training on real images.
WARM_UP_STEPS = 20
COSINE_BATCH_SIZE = 64
COSINE_PAIRS = 2  # of an inner and an outer batch
NUM_BATCHES = WARM_UP_STEPS + 2 * COSINE_PAIRS


class Bench:
    """A pair on a device, with steppers that can be run and timed."""

    def __init__(self, device: torch.device, batch_size: int, seed: int = 0) -> None:
        self.device = device
        self.batch_size = batch_size
        torch.manual_seed(seed)
        data = Data(name="digits", image_size=32)
        groups = [PathwayGroup()]
        student = build_network(Network(name="wrn_16_2"), data).to(device)
        teacher = build_network(Network(name="wrn_40_2"), data).to(device).eval().requires_grad_(False)
        pathways = Pathways(resolve_pathways(groups, teacher.levels, student.levels)).to(device)
        for module in (student, teacher, pathways):
            module.to(memory_format=torch.channels_last)
        self.pair = Pair(student.train(), teacher, pathways)
        self.weights_k = torch.ones(len(pathways.infos), device=device)
        digits = ClassificationData(data, seed)
        self.batches = [
            batch.to(device, torch.channels_last) for batch in digits.train_batches(batch_size, NUM_BATCHES)
        ]
        self.inner, self.outer = self.batches[-2:]

    def stepper(self, precision: str = "float32", lr: float = 0.05) -> Stepper:
        """Makes a stepper with a fresh optimiser."""
        optimizer = make_optimizer(self.pair.trained_modules(), Optimizer(lr=lr))
        return Stepper(self.pair, optimizer, task_loss, device=self.device, precision=precision)

    def synchronize(self) -> None:
        """Waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def floor_step(bench: Bench) -> None:
    """Runs what no distillation can do without, written out by hand; no optimiser, no bookkeeping."""
    student, teacher, pathways = bench.pair.student, bench.pair.teacher, bench.pair.pathways
    assert teacher is not None and pathways is not None
    levels = {info.teacher.number for info in pathways.infos}
    with torch.no_grad():
        _, teacher_features = teacher(bench.inner.images_bchw, levels=levels, logits=False)
    logits, features = student(bench.inner.images_bchw, levels={info.student.number for info in pathways.infos})
    total = torch.nn.functional.cross_entropy(logits, bench.inner.targets)
    for k, info in enumerate(pathways.infos):
        total = total + pathways.distance(k, features[info.student.number], teacher_features[info.teacher.number])
    total.backward()
    student.zero_grad(set_to_none=True)
    pathways.zero_grad(set_to_none=True)


def time_interleaved(bench: Bench, steps: dict[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Returns the median seconds of every step; they take turns, so a slow spell of the machine hits all."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repetition in range(repetitions + 1):
        for name, step in steps.items():
            bench.synchronize()
            started = time.perf_counter()
            step()
            bench.synchronize()
            if repetition:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_bytes(bench: Bench, step: Callable[[], object]) -> int:
    """Returns the most memory that `step` holds at once, networks and optimiser included."""
    step()  # the optimiser's state exists from the first step on
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.device)
        step()
        bench.synchronize()
        return torch.cuda.max_memory_allocated(bench.device)
    standing = sum(t.numel() * t.element_size() for m in bench.pair.trained_modules() for t in m.parameters()) * 2
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        held += change
        peak = max(peak, held)
    return standing + peak


def cosines(device: torch.device) -> dict[str, float]:
    """Returns the worst cosine, over batches, of our hypergradient to the exact one in float32, by precision."""
    bench = Bench(device, COSINE_BATCH_SIZE)
    trained = bench.stepper()
    for step in range(WARM_UP_STEPS):
        trained.plain(bench.batches[step], bench.weights_k, step)
    found: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for first in range(WARM_UP_STEPS, WARM_UP_STEPS + 2 * COSINE_PAIRS, 2):
        bench.inner, bench.outer = bench.batches[first : first + 2]
        exact = hypergradient(ExactHypergradient, bench, trained, "float32")
        for precision, values in found.items():
            ours = hypergradient(CheapHypergradient, bench, trained, precision)
            values.append(torch.nn.functional.cosine_similarity(ours, exact, dim=0).item())
    return {precision: min(values) for precision, values in found.items()}


def hypergradient(kind: type, bench: Bench, trained: Stepper, precision: str) -> Tensor:
    """Returns the hypergradient [K] of a step from where `trained` stands, which stays there."""
    stepper = copy.deepcopy(trained)
    stepper.precision = precision
    result: Tensor = kind(stepper)(bench.inner, bench.outer, bench.weights_k, WARM_UP_STEPS)[2]
    return result


def measure(device: torch.device, batch_size: int, repetitions: int) -> dict[str, float | int | str]:
    """Returns all ratios, with the seconds they come from."""
    bench = Bench(device, batch_size)
    stepper = bench.stepper()
    searches = {name: kind(stepper) for name, kind in BILEVEL_STEPS.items() if name != "exact"}
    steps: dict[str, Callable[[], object]] = {
        "floor": lambda: floor_step(bench),
        "plain": lambda: stepper.plain(bench.inner, bench.weights_k, 0),
        "search": lambda: searches["cheap"](bench.inner, bench.outer, bench.weights_k, 0),
        "central": lambda: searches["central-difference"](bench.inner, bench.outer, bench.weights_k, 0),
    }
    seconds = time_interleaved(bench, steps, repetitions)
    memory = {name: peak_bytes(bench, steps[name]) for name in ("plain", "search")}
    cosine = cosines(device)
    return {
        "search_over_plain": seconds["search"] / seconds["plain"],
        "plain_over_floor": seconds["plain"] / seconds["floor"],
        "central_over_ours": seconds["central"] / seconds["search"],
        "cosine_float32": cosine["float32"],
        "cosine_bfloat16": cosine["bfloat16"],
        "memory_search_over_plain": memory["search"] / memory["plain"],
        "pathways": len(bench.weights_k),
        "batch_size": batch_size,
        "plain_seconds": seconds["plain"],
        "plain_peak_bytes": memory["plain"],
        "device": describe_device(device),
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--device", help="default: the best there is")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    result = measure(choose_device(arguments.device), arguments.batch_size, arguments.repetitions)
    if arguments.json:
        json.dump(result, sys.stdout, indent=2)
        print()
        return
    for name, value in result.items():
        print(f"{name:26} {value:.4g}" if isinstance(value, float) else f"{name:26} {value}")


if __name__ == "__main__":
    main()
