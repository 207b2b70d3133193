"""What search and distillation take in memory over plain training: ViT-B/16 → DeiT-Tiny at 224×224, transformer blocks.

    python benchmarks/memory.py --json

The networks and all settings are those of the recipe imagenet/vit_base-deit_tiny with random weights, on the digits;
each network has four levels, after its 3rd, 6th, 9th and 12th block. Another precision, smaller networks or parts of a
batch by overrides: `precision=float32`, `--batch-size 64 distill.micro_batch_size=16`.

| key | what |
| --- | --- |
| search_over_plain_student | peak of a search step that moves alpha over that of plain training, at most 1.35 |
| distil_over_plain_student | peak of a step of distillation, all pathways on, likewise, at most 1.25 |
| growth_per_pathway | what each pathway beyond the fourth adds to the peak of a search step, over the peak of the |
| | student trained without a teacher, at most 0.02 |
| time_search_over_plain_student | of the steps of a short search, alpha moved in every second, at most 1.35 |
| time_long_search_over_plain_student | likewise, moved in every eighth: what is default from 4,000 steps on |
| time_distil_over_plain_student | of a step of distillation |
| estimate_over_measured | what `distpro inspect` says before anything runs over what was measured, 0.85 to 1.15 |

Plain training is the student's by the same optimiser, with the teacher's forward for the same images before it.
Peaks count all tensors alive: weights and buffers of student, teacher and transform blocks, gradients, the optimiser's
state, the batch (of a search both), and what lives between forward and backward; on the CPU by torch's profiler, on
CUDA by its allocator. Times on the CPU are CPU seconds, which other work on the machine does not stretch. A running
average of the weights, which a search has not, is left out. The first four pathways join equal levels, so that all
levels are seen; the rest goes from deeper to shallower levels, then the other way.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from itertools import product

import torch
from step_cost import Bench, peak_bytes, report, time_interleaved

from distpro_cli.recipe.schema import LEAST_INTERVAL, MOST_INTERVAL
from distpro_cli.training.device import describe_device
from distpro_cli.training.hypergradients import make_hypergradient
from distpro_cli.training.step import Solo, Stepper
from distpro_cli.workflows.pairs import hasten
from distpro_cli.workflows.step_memory import plain_step, step_memory

RECIPE = (
    "data={name: digits, image_size: 224, workers: 0}",
    "teacher.weights=null",
    "teacher.train={}",
    "teacher.levels=[2, 5, 8, 11]",
    "student.levels=[2, 5, 8, 11]",
    "distill.ema_decay=null",
    "distill.micro_batch_size=null",
)
LEVELS = range(1, 5)
FEWEST = len(LEVELS)


class MemoryBench(Bench):
    """The pair with some pathways, its optimiser's state in place."""

    def __init__(self, device: str | None, batch_size: int, num_pathways: int, overrides: Sequence[str]) -> None:
        super().__init__(
            device,
            batch_size,
            *overrides,
            f"pathways.0.connections={connections(num_pathways)}",
            num_batches=2,
            recipe="imagenet/vit_base-deit_tiny",
            own=RECIPE,
        )
        hasten(self.session, self.pair)
        self.alone = self.session.stepper(Solo(self.pair.student), self.recipe.distill)
        spec = self.recipe.search
        self.hypergradient = make_hypergradient(spec.hypergradient, self.distiller, spec.hypergradient_options)

    def steps(self) -> dict[str, Callable[[], object]]:
        """Returns the steps that are compared."""
        return {
            "student": lambda: self.alone.step_alone(self.inner, 0),
            "plain": lambda: plain_step(self.alone, self.pair.teacher, self.inner),
            "distil": lambda: self.distiller.step(self.inner, self.weights_k, 0),
            "search": lambda: self.hypergradient.step(self.inner, self.outer, self.weights_k, 0),
        }

    def peak(self, name: str) -> int:
        """Returns the peak of the step of that name, in bytes."""
        stepper = self.alone if name in ("student", "plain") else self.distiller
        beside = [] if name == "student" else [self.pair.teacher]
        batches = [self.inner, self.outer] if name == "search" else [self.inner]
        return peak_bytes(self, stepper, self.steps()[name], batches, beside)


def connections(num_pathways: int) -> list[list[int]]:
    """Returns so many pairs of a teacher's and a student's level: equal ones, then deeper to shallower, then the rest.

    Raises:
        ValueError: more than there are, or too few to see all levels.
    """
    pairs = sorted(product(LEVELS, LEVELS), key=lambda pair: (pair[0] != pair[1], pair[0] < pair[1], pair))
    if not FEWEST <= num_pathways <= len(pairs):
        raise ValueError(f"--pathways {num_pathways}: {FEWEST} to {len(pairs)} can be measured")
    return [list(pair) for pair in pairs[:num_pathways]]


def measure(
    device: str | None, batch_size: int, num_pathways: int, repetitions: int, overrides: Sequence[str] = ()
) -> dict[str, object]:
    """Returns all ratios, with the bytes and seconds they come from; no times without repetitions."""
    bench = MemoryBench(device, batch_size, num_pathways, overrides)
    make_state(bench.alone)
    make_state(bench.distiller)
    times = time_ratios(bench, repetitions) if repetitions else {}
    peaks = {name: bench.peak(name) for name in bench.steps()}
    estimate = step_memory(bench.recipe, bench.pair)
    few = few_pathways_peak(device, batch_size, overrides)
    search, distil = (peaks[name] / peaks["plain"] for name in ("search", "distil"))
    return {
        "search_over_plain_student": search,
        "distil_over_plain_student": distil,
        "growth_per_pathway": (peaks["search"] - few) / (num_pathways - FEWEST) / peaks["student"],
        **times,
        "estimate_over_measured": {
            "search_over_plain_student": estimate.search_over_plain_student / search,
            "distil_over_plain_student": estimate.distil_over_plain_student / distil,
            "search_bytes": estimate.search_bytes / peaks["search"],
            "distil_bytes": estimate.distil_bytes / peaks["distil"],
        },
        "pathways": num_pathways,
        "batch_size": batch_size,
        "micro_batch_size": bench.recipe.distill.micro_batch_size,
        "precision": bench.recipe.precision,
        **{f"{name}_peak_bytes": value for name, value in peaks.items()},
        "device": describe_device(bench.device),
    }


def time_ratios(bench: MemoryBench, repetitions: int) -> dict[str, float]:
    """Returns the ratios of times, with the seconds they come from."""
    clock = time.process_time if bench.device.type == "cpu" else time.perf_counter
    seconds = time_interleaved(bench, bench.steps(), repetitions, clock)
    between, move = (seconds[name] / seconds["plain"] for name in ("distil", "search"))
    return {
        "time_search_over_plain_student": between + (move - between) / LEAST_INTERVAL,
        "time_long_search_over_plain_student": between + (move - between) / MOST_INTERVAL,
        "time_distil_over_plain_student": between,
        **{f"{name}_seconds": value for name, value in seconds.items()},
    }


def few_pathways_peak(device: str | None, batch_size: int, overrides: Sequence[str]) -> int:
    """Returns the peak of a search step with one pathway per level."""
    bench = MemoryBench(device, batch_size, FEWEST, overrides)
    make_state(bench.distiller)
    return bench.peak("search")


def make_state(stepper: Stepper) -> None:
    """Makes the optimiser's state by an update without gradient."""
    for parameter in stepper.trained_parameters:
        parameter.grad = torch.zeros_like(parameter)
    stepper.update()


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--device", help="default: the best there is")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--pathways", type=int, default=10, metavar="K")
    parser.add_argument("--repetitions", type=int, default=1, help="of each step, for the times; 0: memory alone")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the recipe")
    arguments = parser.parse_args()
    result = measure(
        arguments.device, arguments.batch_size, arguments.pathways, arguments.repetitions, arguments.overrides
    )
    report(result, as_json=arguments.json)


if __name__ == "__main__":
    main()
