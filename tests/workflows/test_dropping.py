"""What is off is not computed: transforms, distances, shared blocks, the teacher; counted step by step."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distpro_cli.networks.build import build_network
from distpro_cli.networks.levels import TappedNetwork
from distpro_cli.pathways.connections import resolve_pathways
from distpro_cli.pathways.module import Pathways
from distpro_cli.process.process import Process
from distpro_cli.recipe.schema import Optimizer, PathwayGroup
from distpro_cli.tasks.task import Batch, find_task
from distpro_cli.training.optimiser import make_optimizer
from distpro_cli.training.step import Distiller, Pair
from distpro_cli.training.weights import ScheduledWeights
from tests.helpers import CPU, classification, digits_recipe

RECIPE = digits_recipe("data.image_size=16")
GROUPS = [
    PathwayGroup(connections="lower", transform="conv1"),
    PathwayGroup(connections="same", transform="review", transform_options={"mid": 8}, distance="mse"),
]
NUM_ROWS = 12
NUM_STEPS = NUM_ROWS - 1  # step s meets row s exactly
TEACHER_STAGES = ("teacher 1", "teacher 2", "teacher 3")


class Counted:
    """A pair whose every block says when it runs."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        task = classification()
        teacher = build_network(RECIPE.teacher, RECIPE.data, task).eval().requires_grad_(False)
        student = build_network(RECIPE.student, RECIPE.data, task).train()
        self.pathways = Pathways(resolve_pathways(GROUPS, teacher.levels, student.levels))
        self.infos = self.pathways.infos
        pair = Pair(student, teacher, self.pathways)
        optimizer = make_optimizer(pair.modules(), Optimizer(lr=0.1, weight_decay=0.1))
        self.distiller = Distiller(pair, optimizer, task, device=CPU)
        self.calls: Counter[str] = Counter()
        for k, transform in enumerate(self.pathways.transforms):
            self.count(transform, f"transform {k}")
            self.pathways.distances[k] = self.counted(self.pathways.distances[k], f"distance {k}")
        (chain,) = self.pathways.shared
        for level, fusion in chain.fusions.items():
            self.count(fusion, f"fusion {level}")
        self.count(teacher, "teacher")
        modules = dict(teacher.model.named_modules())
        for level in teacher.levels[:3]:
            self.count(modules[level.name], f"teacher {level.number}")
        seen = student.forward

        def watched(*args: Any, **kwargs: Any) -> Any:
            self.student_levels = set(kwargs["levels"])
            return seen(*args, **kwargs)

        student.forward = watched  # type: ignore[method-assign]

    def count(self, module: nn.Module, name: str) -> None:
        module.register_forward_pre_hook(lambda *_: self.calls.update([name]))

    def counted(self, distance: Callable[..., Tensor], name: str) -> Any:
        def run(*args: Tensor) -> Tensor:
            self.calls[name] += 1
            return distance(*args)

        return run

    def blocks(self) -> list[nn.Module]:
        """The pathways' own blocks, then those that they share."""
        return [*self.pathways.transforms, *self.pathways.shared]

    def expected(self, on: set[int]) -> Counter[str]:
        """What one step may run, from the definition alone."""
        names = [f"{what} {k}" for k in on for what in ("transform", "distance")]
        chained = [self.infos[k].student.number for k in on if self.infos[k].transform == "review"]
        names += [f"fusion {level}" for level in (1, 2, 3, 4) if chained and level >= min(chained)]
        if on:
            deepest = max(self.infos[k].teacher.number for k in on)
            names += ["teacher", *(f"teacher {level}" for level in (1, 2, 3) if level <= deepest)]
        return Counter(names)

    def expected_levels(self, on: set[int]) -> set[int]:
        own = {self.infos[k].student.number for k in on}
        chained = [self.infos[k].student.number for k in on if self.infos[k].transform == "review"]
        return own | {level for level in (1, 2, 3, 4) if chained and level >= min(chained)}


def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(torch.rand(4, 3, 16, 16, generator=generator), torch.arange(4))


def random_process(counted: Counted) -> Process:
    """Alpha that wanders, with rows where all of it is low and rows where only shallow levels are high."""
    generator = np.random.default_rng(3)
    alpha = generator.uniform(0, 1, (NUM_ROWS, len(counted.infos)))
    alpha[3] *= 0.01
    deep = [k for k, info in enumerate(counted.infos) if info.teacher.number > 2]
    alpha[5:7, deep] *= 0.01
    alpha[8, 1:] *= 0.01
    alpha[8, 0] = 0.999
    progress = np.arange(NUM_ROWS) / NUM_STEPS
    return Process(progress, np.exp(alpha), alpha, counted.infos, "none", "", {}, 0)


def wanted(process: Process, step: int, *, threshold: float | None, keep: float | None) -> set[int]:
    if threshold is not None:
        scaled = (process.alpha - process.alpha.min()) / np.ptp(process.alpha)
        return set(np.flatnonzero(scaled[step] >= threshold))
    assert keep is not None
    cutoff = np.sort(process.alpha, axis=None)[::-1][round(keep * process.alpha.size) - 1]
    return set(np.flatnonzero(process.alpha[step] >= cutoff))


@pytest.mark.parametrize("dropping", [{"threshold": 0.5, "keep": None}, {"threshold": None, "keep": 0.3}])
def test_calls_of_every_step(dropping: dict[str, float | None]) -> None:
    counted = Counted()
    process = random_process(counted)
    source = ScheduledWeights(counted.distiller, process.schedule(**dropping), NUM_STEPS)
    teacher_calls = []
    for step in range(NUM_STEPS):
        on = wanted(process, step, **dropping)
        counted.calls.clear()
        losses, _ = source.step(batch(), step)
        assert counted.calls == counted.expected(on)
        assert counted.student_levels == counted.expected_levels(on)
        assert set(losses.distances) == on
        teacher_calls.append([counted.calls[name] for name in ("teacher", *TEACHER_STAGES)])
    assert [0, 0, 0, 0] in teacher_calls and [1, 1, 0, 0] in teacher_calls and [1, 1, 1, 1] in teacher_calls


def test_blocks_that_are_off_stay_as_they_are() -> None:
    counted = Counted()
    distiller, num_pathways = counted.distiller, len(counted.infos)
    for step in range(2):  # momentum and weight decay have something to work with
        distiller.step(batch(), [1.0] * num_pathways, step)
    weights = [0.0] * num_pathways
    weights[1] = 1.0
    before = [{key: tensor.clone() for key, tensor in block.state_dict().items()} for block in counted.blocks()]
    distiller.step(batch(), weights, 2)
    for k, (block, old) in enumerate(zip(counted.blocks(), before, strict=True)):
        moved = [key for key, tensor in block.state_dict().items() if not torch.equal(tensor, old[key])]
        assert bool(moved) == (k == 1)


class LooseStudent(nn.Module):
    """Every level is scaled by a number behind its tap, so that no backward pass needs it."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head((self.two(self.one(images) * 0.5) * 0.5).mean((2, 3)))


def test_a_student_level_that_nobody_needs_is_let_go() -> None:
    plain = {"mean": [0.5] * 3, "std": [0.5] * 3, "image_size": 16}
    student = TappedNetwork(LooseStudent(), levels=["one", "two"], **plain)
    teacher = TappedNetwork(LooseStudent(), levels=["one", "two"], **plain).eval().requires_grad_(False)
    group = PathwayGroup(connections="same", transform="identity", distance="mse")
    pathways = Pathways(resolve_pathways([group], teacher.levels, student.levels))
    made: dict[str, weakref.ref[Tensor]] = {}
    for name in ("one", "two"):
        module = getattr(student.model, name)
        module.register_forward_hook(lambda _, __, output, name=name: made.update({name: weakref.ref(output)}))
    alive: list[set[str]] = []

    class Watching(find_task("classification")):  # type: ignore[misc]
        def losses(self, output: Tensor, targets: Tensor) -> dict[str, Tensor]:
            alive.append({name for name, tensor in made.items() if tensor() is not None})
            found: dict[str, Tensor] = super().losses(output, targets)
            return found

    pair = Pair(student, teacher, pathways)
    optimizer = make_optimizer(pair.modules(), Optimizer(lr=0.1))
    distiller = Distiller(pair, optimizer, Watching(RECIPE, RECIPE.distill), device=CPU)
    for step, weights in enumerate(([1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0])):
        distiller.step(batch(), weights, step)
        assert all(tensor() is None for tensor in made.values())
    assert alive == [{"one", "two"}, {"one"}, {"two"}, set()]
