"""What dropping saves, measured and predicted: ResNet-50 → MobileNetV2, K = 15 (5 levels, `lower`).

    python benchmarks/dropping.py --json

Real steps run at moments spread over a run, each with the weights that a schedule has there, full and dropped in
turns; times are medians over repetitions, as shares of the full process's. Predictions are those of
`distpro inspect`, by the built-in constants and by those that `distpro doctor --calibrate` measures, here in the same
run before and after the steps. Two processes, both with every weight on before dropping:

- late-sparse: all pathways fade while 5-4 and 5-5 stay, the low teacher levels first, as searches find them;
- even: every pathway is on equally long, equally many at any time.

| key | what |
| --- | --- |
| time_at_keep_50, time_at_keep_26 | late-sparse process, 50 % and 26 % of the entries kept, over full |
| even_time_at_keep_50, even_time_at_keep_26 | the same of the even process |
| predicted_… | what the process file predicts for each, by the built-in constants |
| worst_prediction_error | largest relative error of these, 0.1 being 10 % |
| measured_predicted_… | the same by constants measured before the steps |
| worst_measured_prediction_error | largest relative error of these |
| worst_later_prediction_error | the same by constants measured after the steps |
| constants | those measured before the steps, and how well they tell the times they were read off |
| teacher_forward_… | mean share of the teacher's forward that was run, by its own predicted cost |

The paper's ratios (ImageNet-1K, 81 and 60 of 102 GPU hours at 80 % kept) are 0.79 and 0.59.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from distpro_cli import load_recipe
from distpro_cli.costs.calibration import calibrate
from distpro_cli.costs.machines import Calibration
from distpro_cli.costs.step_costs import step_parts
from distpro_cli.networks.build import build_network
from distpro_cli.pathways.connections import resolve_pathways
from distpro_cli.pathways.module import Pathways
from distpro_cli.process.cost import relative_cost, weighed
from distpro_cli.process.pathway import PathwayInfo
from distpro_cli.process.process import Process
from distpro_cli.process.schedule import Schedule
from distpro_cli.tasks.task import Batch, find_task
from distpro_cli.training.device import choose_device, describe_device, set_determinism
from distpro_cli.training.optimiser import make_optimizer
from distpro_cli.training.step import Distiller, Pair

# So small a rate that random labels do not blow the weights up.
RECIPE = (  # in place of the quickstart's own sections
    "data={name: folder, root: none, num_classes: 1000}",
    "teacher={name: resnet50, train: {}}",
    "student={name: mobilenetv2_100}",
    "distill={optimizer: {lr: 1e-5}}",
)
NUM_ROWS = 1001
NUM_CLASSES = 1000
KEEPS = (0.5, 0.26)
STAY = ("5-4", "5-5")


class Bench:
    """The pair on a device, with random weights and images: what is on decides the time, not what it learns."""

    def __init__(self, device: torch.device, image_size: int, batch_size: int, mid: int | None) -> None:
        torch.manual_seed(0)
        self.device = device
        options = {} if mid is None else {"mid": mid}
        overrides = [f"data.image_size={image_size}", f"pathways=[{{transform_options: {json.dumps(options)}}}]"]
        recipe = load_recipe("quickstart", *RECIPE, *overrides)
        task = find_task(recipe.task)(recipe, recipe.distill)
        teacher = build_network(recipe.teacher, recipe.data, task).eval().requires_grad_(False)
        student = build_network(recipe.student, recipe.data, task).train()
        pathways = Pathways(resolve_pathways(recipe.pathways, teacher.levels, student.levels))
        self.infos = pathways.infos
        self.parts = step_parts(teacher, student, pathways, image_size, batch_size)
        for module in (teacher, student, pathways):
            module.to(device, memory_format=torch.channels_last)
        pair = Pair(student, teacher, pathways)
        optimizer = make_optimizer(pair.modules(), recipe.distill.optimizer)
        self.distiller = Distiller(pair, optimizer, task, device=device)
        images = torch.rand(batch_size, 3, image_size, image_size).to(device, memory_format=torch.channels_last)
        self.batch = Batch(images, torch.randint(0, NUM_CLASSES, (batch_size,)).to(device))

    def seconds(self, weights: Sequence[float]) -> float:
        """Returns how long a step with these weights took."""
        self._synchronize()
        started = time.perf_counter()
        self.distiller.step(self.batch, weights, 0)
        self._synchronize()
        return time.perf_counter() - started

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def late_sparse(bench: Bench) -> Process:
    """Alpha that falls from 1, the sooner the lower the teacher's level; that of two deep pathways stays."""
    u = np.linspace(0, 1, NUM_ROWS)[:, None]
    rates = np.array([0.0 if info.id in STAY else 1.5 - 0.2 * info.teacher.number for info in bench.infos])
    return to_process(bench, 1 - u * rates[None])


def even(bench: Bench) -> Process:
    """Alpha that goes up and down once in a run, every pathway at another time, neighbours far from each other."""
    count = len(bench.infos)
    u = np.linspace(0, 1, NUM_ROWS)[:, None]
    phase = (np.arange(count) * 4 % count) / count
    return to_process(bench, np.abs(2 * ((u + phase[None]) % 1) - 1))


def to_process(bench: Bench, alpha: np.ndarray) -> Process:
    """Returns a process of weight 1 everywhere."""
    progress = np.linspace(0, 1, NUM_ROWS)
    infos: tuple[PathwayInfo, ...] = bench.infos
    return Process(progress, np.ones_like(alpha), alpha, infos, "none", "", {}, 0, {}, bench.parts)


def measure(bench: Bench, num_moments: int, repetitions: int) -> dict[str, Any]:
    """Returns all ratios."""
    before = calibrated(bench)
    processes = {"": late_sparse(bench), "even_": even(bench)}
    schedules: dict[str, Schedule] = {"full": processes[""].schedule()}
    predicted: dict[str, float] = {}
    for prefix, process in processes.items():
        for keep in KEEPS:
            name = f"{prefix}time_at_keep_{100 * keep:.0f}"
            schedules[name] = process.schedule(keep=keep)
            predicted[name] = relative_cost(bench.parts, schedules[name])
    seconds: dict[str, list[list[float]]] = {name: [[] for _ in range(num_moments)] for name in schedules}
    teacher = dict.fromkeys(schedules, 0.0)
    bench.seconds([1.0] * len(bench.infos))
    for repetition in range(repetitions):
        for moment in range(num_moments):
            for name, schedule in schedules.items():
                weights = [float(weight) for weight in schedule.at((moment + 0.5) / num_moments)]
                seconds[name][moment].append(bench.seconds(weights))
                teacher[name] += teacher_share(bench, weights) if repetition == 0 else 0.0
    # Every moment of the full process is the same step, so all of its repetitions stand for one another.
    full = statistics.median(value for values in seconds["full"] for value in values)
    result: dict[str, Any] = {}
    for name, value in predicted.items():
        result[name] = statistics.mean(statistics.median(values) for values in seconds[name]) / full
        result[f"predicted_{name}"] = value
        result[f"teacher_forward_{name}"] = teacher[name] / num_moments
    result["worst_prediction_error"] = worst_error(result, predicted)
    by_measured = predictions(bench, schedules, before)
    result |= {f"measured_predicted_{name}": value for name, value in by_measured.items()}
    result["worst_measured_prediction_error"] = worst_error(result, by_measured)
    result["worst_later_prediction_error"] = worst_error(result, predictions(bench, schedules, calibrated(bench)))
    return result | {"full_step_seconds": full, "constants": asdict(before)}


def calibrated(bench: Bench) -> Calibration:
    """Measures the machine as `distpro doctor --calibrate` does, in the precision of the steps."""
    return calibrate(bench.device, "float32", describe_device(bench.device))


def predictions(bench: Bench, schedules: Mapping[str, Schedule], measured: Calibration) -> dict[str, float]:
    """Returns what measured constants predict for every schedule but the full one."""
    parts = weighed(bench.parts, measured.machine("float32"))
    return {name: relative_cost(parts, schedule) for name, schedule in schedules.items() if name != "full"}


def worst_error(result: Mapping[str, Any], predicted: Mapping[str, float]) -> float:
    """Returns the largest relative error of predictions of the measured ratios."""
    return max(abs(value / result[name] - 1) for name, value in predicted.items())


def teacher_share(bench: Bench, weights: Sequence[float]) -> float:
    """Returns the share of the teacher's forward that the pathways with a weight need."""
    on = {k for k, weight in enumerate(weights) if weight != 0}
    pieces = [part for part in bench.parts if part.name.startswith("teacher ")]
    run = sum(part.cost for part in pieces if on & set(part.pathways or ()))
    return run / sum(part.cost for part in pieces)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--device", help="default: the best there is")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument(
        "--mid", type=int, default=256, help="inner channels of conv2, 0: its default (256: ReviewKD's)"
    )
    parser.add_argument("--moments", type=int, default=10, help="at which each schedule is run")
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    set_determinism(True, device)
    bench = Bench(device, arguments.image_size, arguments.batch_size, arguments.mid or None)
    result = measure(bench, arguments.moments, arguments.repetitions)
    result |= {
        "pathways": len(bench.infos),
        "mid": arguments.mid or "default",
        "image_size": arguments.image_size,
        "batch_size": arguments.batch_size,
        "device": describe_device(device),
    }
    if arguments.json:
        json.dump(result, sys.stdout, indent=2)
        print()
        return
    for name, value in result.items():
        print(f"{name:40} {value:.4g}" if isinstance(value, float) else f"{name:40} {value}")


if __name__ == "__main__":
    main()
