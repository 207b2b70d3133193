"""What a step costs, as ratios inside one run: WRN-40-2 → WRN-16-2, default pathways, the digits at 32×32.

    python benchmarks/step_cost.py --json

Another pair, size or precision by overrides of the recipe, here that of ImageNet on a GPU:

    python benchmarks/step_cost.py --no-cosines --batch-size 256 precision=bfloat16 data.image_size=224 \
        teacher.name=resnet50 student.name=mobilenetv2_100

| key | ratio |
| --- | --- |
| search_over_plain | 1 + (search_step_over_plain - 1) / interval: a search, with the smallest default interval |
| search_step_over_plain | a step that moves alpha, with an outer batch of the default size, over a plain step |
| plain_over_floor | a plain step over teacher forward + student and pathways forward and backward, run by hand |
| central_over_ours | a search step by central difference over ours |
| cosine_float32, cosine_bfloat16 | cosine of our hypergradient to the exact one, which is always in full float32 |
| cosine_optimizer_adamw | cosine of our hypergradient to the finite difference, in float64, of a step by AdamW |
| cosine_optimizer_clipped | likewise, of a step by Nesterov SGD whose gradient is clipped; both at 16×16 |
| teacher_folded_over_plain | the teacher's forward with BatchNorm folded, as off the CPU and by `compile`, over plain |
| memory_search_over_plain | peak memory of a search step over that of a plain step, networks and optimiser included |
| memory_plain_over_student | peak memory of a plain step over that of a step of the student alone, likewise |
| busy_plain, busy_search | on CUDA: time that the step's kernels take over the time that the step takes |

Times are medians of interleaved repetitions. Peak memory is that of all tensors alive: both networks, transform blocks,
the optimiser's state and the batches, and above them the most that the step holds at once, which CUDA's allocator
says and, on the CPU, torch's profiler.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from distpro_cli import load_recipe
from distpro_cli.networks.build import build_network
from distpro_cli.networks.frozen import fold_batch_norm
from distpro_cli.networks.levels import TappedNetwork
from distpro_cli.pathways.connections import resolve_pathways
from distpro_cli.pathways.defaults import ends_with_logits, groups_for
from distpro_cli.pathways.module import Pathways
from distpro_cli.report.progress import Reporter
from distpro_cli.runs.context import RunContext
from distpro_cli.runs.signals import Interruption
from distpro_cli.tasks.task import Batch
from distpro_cli.training.device import autocast, choose_device, describe_device, full_float32
from distpro_cli.training.hypergradients import Hypergradient, make_hypergradient
from distpro_cli.training.step import Distiller, Pair, Solo, Stepper
from distpro_cli.workflows.pairs import hasten
from distpro_cli.workflows.session import Session
from distpro_cli.workflows.step_memory import standing_tensors

# In place of the quickstart's own sections.
RECIPE = (
    "data={name: digits, image_size: 32, workers: 0}",
    "teacher={name: wrn_40_2, train: {}}",
    "student={name: wrn_16_2}",
    "distill={optimizer: {lr: 0.05}}",
)
# A network at its very start, or one that learns random labels, has a hypergradient that is all noise: the
# cosines are taken after a short training on real images.
WARM_UP_STEPS = 20
COSINE_BATCH_SIZE = 64
COSINE_PAIRS = 2  # of an inner and an outer batch
NUM_BATCHES = WARM_UP_STEPS + 2 * COSINE_PAIRS
# A finite difference takes two steps in float64 per pathway: small batches and images.
OPTIMIZER_BATCH_SIZE = 16
ADAMW = ["distill.optimizer.name=adamw", "distill.optimizer.lr=0.002", "distill.optimizer.weight_decay=0.05"]
CLIPPED = ["distill.clip_grad=1"]
WEIGHT_CHANGE = 1e-3


class Bench:
    """A pair on a device, with steps that can be run and timed."""

    def __init__(
        self,
        device: str | None,
        batch_size: int,
        *overrides: str,
        num_batches: int = NUM_BATCHES,
        recipe: str = "quickstart",
        own: Sequence[str] = RECIPE,
    ) -> None:
        self.recipe = recipe = load_recipe(recipe, *own, f"distill.batch_size={batch_size}", *overrides)
        self.session = Session(self.recipe, RunContext(choose_device(device), Reporter(), Interruption()))
        self.device, task = self.session.device, self.session.task
        torch.manual_seed(0)
        student, teacher = (
            build_network(spec, recipe.data, task, logits=ends_with_logits(recipe, task))
            for spec in (recipe.student, recipe.teacher)
        )
        groups = groups_for(recipe, task, teacher.levels, student.levels)
        pathways = Pathways(resolve_pathways(groups, teacher.levels, student.levels))
        for module in (student.train(), teacher.eval().requires_grad_(False), pathways):
            self.session.place(module)
        self.pair = Pair(student, teacher, pathways)
        self.distiller = self.session.distiller(self.pair, self.recipe.distill)
        self.weights_k = torch.ones(len(self.pair.infos), device=self.device)
        self.batches = list(self.session.batches("train", batch_size, num_batches)(0))
        self.look_at(num_batches - 2)

    def look_at(self, first: int) -> None:
        """Makes the batch of this number the inner one, and the start of the next one the outer one."""
        self.inner, after = self.batches[first : first + 2]
        size = self.recipe.search.images_per_outer_batch(len(after.images_bchw))
        self.outer = Batch(after.images_bchw[:size], after.targets[:size])

    def warm_up(self) -> None:
        """Trains the student for a while."""
        for step in range(WARM_UP_STEPS):
            self.distiller.step(self.batches[step], self.weights_k, step)

    def synchronize(self) -> None:
        """Waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def floor_step(bench: Bench) -> None:
    """Runs what no distillation can do without, written out by hand; no optimiser, no bookkeeping."""
    student, teacher, pathways = bench.pair.student, bench.pair.teacher, bench.pair.pathways
    active = range(len(pathways.infos))
    with torch.no_grad():
        _, teacher_features = teacher(bench.inner.images_bchw, levels=pathways.teacher_levels(active), output=False)
    logits, features = student(bench.inner.images_bchw, levels=pathways.student_levels(active))
    total = torch.nn.functional.cross_entropy(logits, bench.inner.targets)
    for distance in pathways(features, teacher_features, active).values():
        total = total + distance
    total.backward()
    student.zero_grad(set_to_none=True)
    pathways.zero_grad(set_to_none=True)


def time_interleaved(
    bench: Bench,
    steps: dict[str, Callable[[], object]],
    repetitions: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Returns the median seconds of every step; they take turns, so a slow spell of the machine hits all."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repetition in range(repetitions + 1):
        for name, step in steps.items():
            bench.synchronize()
            started = clock()
            step()
            bench.synchronize()
            if repetition:
                seconds[name].append(clock() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_bytes(
    bench: Bench,
    stepper: Stepper,
    step: Callable[[], object],
    batches: Sequence[Batch],
    beside: Sequence[nn.Module] = (),
) -> int:
    """Returns the most memory that tensors hold at once in a step, in bytes.

    Args:
        bench: Where it runs.
        stepper: What it trains and its optimiser count; the optimiser's state exists already.
        step: Is run once.
        batches: What it is given; their images count.
        beside: What else stands in memory: the teacher.
    """
    tensors = list(standing_tensors([*stepper.trained.modules().values(), *beside], stepper.optimizer))
    tensors += [batch.images_bchw for batch in batches]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values()) + _rise(bench, step)


def _rise(bench: Bench, step: Callable[[], object]) -> int:
    """Returns by how many bytes the memory held rises while `step` runs."""
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.device)
        before = torch.cuda.memory_allocated(bench.device)
        step()
        bench.synchronize()
        return torch.cuda.max_memory_allocated(bench.device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        held += change
        peak = max(peak, held)
    return peak


def kernel_seconds(step: Callable[[], object]) -> float:
    """Returns how long CUDA's kernels and copies of a step take, one after the other."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    return sum(event.self_device_time_total for event in profiler.key_averages()) / 1e6


def cosines(device: str | None, overrides: Sequence[str]) -> dict[str, float]:
    """Returns the worst cosine, over batches, of our hypergradient to the exact one in float32, by precision."""
    bench = Bench(device, COSINE_BATCH_SIZE, *overrides)
    bench.warm_up()
    found: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for first in range(WARM_UP_STEPS, WARM_UP_STEPS + 2 * COSINE_PAIRS, 2):
        bench.look_at(first)
        with full_float32():
            exact = hypergradient("exact", bench, "float32")
        for precision, values in found.items():
            ours = hypergradient("cheap", bench, precision)
            values.append(torch.nn.functional.cosine_similarity(ours, exact, dim=0).item())
    return {precision: min(values) for precision, values in found.items()}


def hypergradient(name: str, bench: Bench, precision: str) -> Tensor:
    """Returns the hypergradient [K] of a step from where the bench's student stands, which stays there."""
    distiller: Distiller = copy.deepcopy(bench.distiller)
    distiller.precision = precision
    kind = make_hypergradient(name, distiller)
    return kind.step(bench.inner, bench.outer, bench.weights_k, WARM_UP_STEPS)[2]


def optimizer_cosine(device: str | None, overrides: list[str]) -> float:
    """Returns the cosine of our hypergradient to the finite difference through the optimiser's real step."""
    bench = Bench(device, OPTIMIZER_BATCH_SIZE, "data.image_size=16", *overrides)
    bench.warm_up()
    ours = hypergradient("cheap", bench, "float32").double()
    return torch.nn.functional.cosine_similarity(ours, finite_difference(bench), dim=0).item()


def finite_difference(bench: Bench) -> Tensor:
    """Returns how the outer loss after a step changes with every weight, [K], in float64."""
    start = copy.deepcopy(bench.distiller)
    for module in (start.student, start.teacher, start.pathways):
        module.double()
    for state in start.optimizer.state.values():
        state |= {name: value.double() for name, value in state.items() if name != "step"}
    inner, outer = (replace(batch, images_bchw=batch.images_bchw.double()) for batch in (bench.inner, bench.outer))

    def outer_loss(change_k: Tensor) -> Tensor:
        distiller = copy.deepcopy(start)
        distiller.step(inner, bench.weights_k + change_k, WARM_UP_STEPS)
        with torch.no_grad():
            output, _ = distiller.student_forward(outer, (), WARM_UP_STEPS)
        return torch.nn.functional.cross_entropy(output, outer.targets)

    changes = WEIGHT_CHANGE * torch.eye(len(bench.weights_k), dtype=torch.float64, device=bench.device)
    return torch.stack([outer_loss(change_k) - outer_loss(-change_k) for change_k in changes]) / (2 * WEIGHT_CHANGE)


def time_folded(bench: Bench, repetitions: int) -> float:
    """Returns the time of the teacher's forward to its deepest level with BatchNorm folded, over without."""
    teacher = bench.pair.teacher
    folded = copy.deepcopy(teacher)
    fold_batch_norm(folded, bench.recipe.data.image_size)

    def forward(network: TappedNetwork) -> Callable[[], object]:
        return lambda: network(bench.inner.images_bchw, levels=[len(network.levels)], output=False)

    with torch.no_grad(), autocast(bench.device, bench.recipe.precision):
        seconds = time_interleaved(bench, {"folded": forward(folded), "plain": forward(teacher)}, repetitions)
    return seconds["folded"] / seconds["plain"]


def measure(
    device: str | None, batch_size: int, repetitions: int, overrides: Sequence[str], with_cosines: bool
) -> dict[str, float | int | str]:
    """Returns all ratios, with the seconds they come from."""
    bench = Bench(device, batch_size, *overrides, num_batches=NUM_BATCHES if with_cosines else 2)
    distiller = bench.distiller
    folded = time_folded(bench, repetitions)
    hasten(bench.session, bench.pair)
    alone = bench.session.stepper(Solo(bench.pair.student), bench.recipe.distill)
    searches: dict[str, Hypergradient] = {
        name: make_hypergradient(name, distiller) for name in ("cheap", "central-difference")
    }
    steps: dict[str, Callable[[], object]] = {
        "floor": lambda: floor_step(bench),
        "student": lambda: alone.step_alone(bench.inner, 0),
        "plain": lambda: distiller.step(bench.inner, bench.weights_k, 0),
        "search": lambda: searches["cheap"].step(bench.inner, bench.outer, bench.weights_k, 0),
        "central": lambda: searches["central-difference"].step(bench.inner, bench.outer, bench.weights_k, 0),
    }
    seconds = time_interleaved(bench, steps, repetitions)
    memory = {
        name: peak_bytes(bench, stepper, steps[name], batches, [bench.pair.teacher])
        for name, stepper, batches in (
            ("student", alone, [bench.inner]),
            ("plain", distiller, [bench.inner]),
            ("search", distiller, [bench.inner, bench.outer]),
        )
    }
    search_step = seconds["search"] / seconds["plain"]
    result: dict[str, float | int | str] = {
        "search_over_plain": 1 + (search_step - 1) / bench.recipe.search.steps_per_update(total_steps=0),
        "search_step_over_plain": search_step,
        "plain_over_floor": seconds["plain"] / seconds["floor"],
        "central_over_ours": seconds["central"] / seconds["search"],
        "teacher_folded_over_plain": folded,
        "memory_search_over_plain": memory["search"] / memory["plain"],
        "memory_plain_over_student": memory["plain"] / memory["student"],
        "pathways": len(bench.weights_k),
        "batch_size": batch_size,
        "plain_seconds": seconds["plain"],
        "plain_peak_bytes": memory["plain"],
        "device": describe_device(bench.device),
    }
    if bench.device.type == "cuda":
        result |= {f"busy_{name}": kernel_seconds(steps[name]) / seconds[name] for name in ("plain", "search")}
    if with_cosines:
        result |= {f"cosine_{precision}": value for precision, value in cosines(device, overrides).items()}
        result["cosine_optimizer_adamw"] = optimizer_cosine(device, [*overrides, *ADAMW])
        result["cosine_optimizer_clipped"] = optimizer_cosine(device, [*overrides, *CLIPPED])
    return result


def report(result: Mapping[str, object], *, as_json: bool) -> None:
    """Prints figures, one a line or as one JSON object."""
    if as_json:
        json.dump(result, sys.stdout, indent=2)
        print()
        return
    for name, value in result.items():
        print(f"{name:26} {value:.4g}" if isinstance(value, float) else f"{name:26} {value}")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--device", help="default: the best there is")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--no-cosines", action="store_true", help="times and memory alone")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the recipe")
    arguments = parser.parse_args()
    with_cosines = not arguments.no_cosines
    result = measure(arguments.device, arguments.batch_size, arguments.repetitions, arguments.overrides, with_cosines)
    report(result, as_json=arguments.json)


if __name__ == "__main__":
    main()
