"""What the ranks of a run tell each other in a step: all-reduces and their bytes, counted; and how long a step takes.

    torchrun --nproc-per-node 2 benchmarks/ranks.py --json
    torchrun --nproc-per-node 8 benchmarks/ranks.py --batch-size 2048 precision=bfloat16 data.image_size=224 \\
        teacher.name=resnet50 student.name=mobilenetv2_100 --json

The pair of step_cost.py, or another by overrides; without torchrun it is one process, which tells nothing.

| key | what |
| --- | --- |
| bytes_plain, bytes_search | that a rank gives into the all-reduces of a plain step, and of one that moves alpha |
| reductions_plain, reductions_search | how many all-reduces these are |
| bytes_plain_expected, bytes_search_expected | by docs/scale.md: 4 (W + N + S + L), and 4 (W + L' + K) more |
| seconds_plain, seconds_search | median of a step; where ranks share cores this says nothing |
| student, blocks, statistics, pathways | W and N, parameters, S, running means and variances, and K |
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from step_cost import Bench, report, time_interleaved
from torch import Tensor, distributed

from distpro_cli.training.device import describe_device
from distpro_cli.training.hypergradients import make_hypergradient
from distpro_cli.world import World, joined


class Counted:
    """Counts the all-reduces of this process, and their bytes."""

    def __init__(self) -> None:
        self._all_reduce: Callable[..., Any] = distributed.all_reduce
        self.sizes: list[int] = []

    def __enter__(self) -> Counted:
        distributed.all_reduce = self._counting
        return self

    def __exit__(self, *error: object) -> None:
        distributed.all_reduce = self._all_reduce

    def _counting(self, tensor: Tensor) -> None:
        self.sizes.append(tensor.nbytes)
        self._all_reduce(tensor)


def measure(world: World, batch_size: int, repetitions: int, overrides: list[str]) -> dict[str, Any]:
    """Counts and times both steps of a pair whose batches the ranks share."""
    bench = Bench(None, batch_size, *overrides, num_batches=2)
    distiller, hypergradient = bench.distiller, make_hypergradient("cheap", bench.distiller)
    steps: dict[str, Callable[[], Any]] = {
        "plain": lambda: distiller.step(bench.inner, bench.weights_k, 0),
        "search": lambda: hypergradient.step(bench.inner, bench.outer, bench.weights_k, 0),
    }
    student = sum(p.numel() for p in distiller.student_parameters)
    blocks = sum(p.numel() for p in distiller.pathways.parameters())
    statistics = sum(tensor.numel() for tensor in distiller.running_statistics())
    result: dict[str, Any] = {
        "ranks": world.size,
        "device": describe_device(bench.device),
        "images_per_rank": len(bench.inner.images_bchw),
        "student": student,
        "blocks": blocks,
        "statistics": statistics,
        "pathways": bench.weights_k.numel(),
    }
    expected = 0
    for name, step in steps.items():
        with Counted() as counted:
            found = step()
        losses, outer = found[:2] if isinstance(found, tuple) else (found, None)
        expected = 4 * (student + blocks + statistics + len(losses.tensors()))
        if outer is not None:
            expected += 4 * (student + len(outer.tensors()) + bench.weights_k.numel())
        result |= {f"bytes_{name}": sum(counted.sizes), f"reductions_{name}": len(counted.sizes)}
        result[f"bytes_{name}_expected"] = expected if world.size > 1 else 0
    seconds = time_interleaved(bench, steps, repetitions)
    return {**result, **{f"seconds_{name}": value for name, value in seconds.items()}}


def main() -> None:
    """Prints the figures, on the main rank."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--batch-size", type=int, default=128, help="of all ranks")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    with joined() as world:
        report(measure(world, options.batch_size, options.repetitions, options.overrides), as_json=options.json)


if __name__ == "__main__":
    main()
