"""How much memory a step takes, estimated before anything runs: the package's own steps on tensors without values."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves
from typing_extensions import override

from distpro_cli.costs.complexity import tensors_of
from distpro_cli.costs.live_tensors import LiveTensors, without_values
from distpro_cli.errors import first_line
from distpro_cli.metric import Metric
from distpro_cli.networks.frozen import round_to_bfloat16, rounded_by_autocast
from distpro_cli.networks.levels import TappedNetwork
from distpro_cli.recipe.schema import Recipe, Training
from distpro_cli.tasks.task import Batch, Task, TaskData
from distpro_cli.training.device import autocast
from distpro_cli.training.hypergradients import make_hypergradient
from distpro_cli.training.rivals import RIVALS, CosineOuter, GradientRule
from distpro_cli.training.step import Distiller, Kept, Pair, Solo, Stepper
from distpro_cli.workflows.session import make_distiller, make_stepper

CPU = torch.device("cpu")
MOST_PARTS = 6  # micro-batches that are run; of more, the peak grows by as much with each as with the last of these
_DECIDING = ("batch_size", "micro_batch_size", "optimizer", "clip_grad", "ema_decay")  # the memory of plain training


@dataclass(frozen=True)
class StepMemory:
    """Most bytes that tensors hold at once in a step, all counted: weights, gradients, the optimiser's state, the
    running average where there is one, both networks, the batches, and what lives between forward and backward.

    Attributes:
        plain_bytes: Plain training of the student, as `distill` has it, with the teacher's forward before it.
        distil_bytes: A step of distillation with all pathways on.
        plain_search_bytes: As `plain_bytes`, with the batch and the optimiser of the search.
        search_bytes: A step of the search that moves the weights.
    """

    plain_bytes: int
    distil_bytes: int
    plain_search_bytes: int
    search_bytes: int

    @property
    def distil_over_plain_student(self) -> float:
        """Ratio of a step of distillation to plain training."""
        return self.distil_bytes / self.plain_bytes

    @property
    def search_over_plain_student(self) -> float:
        """Ratio of a step of the search to plain training."""
        return self.search_bytes / self.plain_search_bytes


def memory_report(recipe: Recipe, pair: Pair) -> dict[str, Any]:
    """Returns what `distpro inspect` shows of a pair's memory: bytes and ratios, or why there are none (`error`)."""
    log = logging.getLogger("torch._subclasses.fake_tensor")  # it tells of every failure with a traceback
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        found = step_memory(recipe, pair)
    except Exception as error:
        # An estimate: a network that needs values, or its own device, is no reason not to show the rest.
        return {"error": first_line(error)}
    finally:
        log.setLevel(level)
    return {
        "distil_bytes": found.distil_bytes,
        "distil_over_plain_student": found.distil_over_plain_student,
        "search_bytes": found.search_bytes,
        "search_over_plain_student": found.search_over_plain_student,
    }


def step_memory(recipe: Recipe, pair: Pair) -> StepMemory:
    """Runs one step of each kind on tensors without values; the pair stays as it is, and so does the random state.

    Kernels are the CPU's, in the recipe's precision. The task's loss is replaced by a sum of what the student returns.
    """
    search = recipe.search_training
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    student, teacher = without_values(pair.student, mode), without_values(pair.teacher, mode)
    parts = Pair(student.train(), teacher.eval().requires_grad_(False), without_values(pair.pathways, mode))
    with torch.random.fork_rng(devices=[]), mode:
        if recipe.precision == "bfloat16":
            round_to_bfloat16(rounded_by_autocast(teacher.model))  # as `hasten` does
        plain = _peak(recipe, parts, recipe.distill, _plain)
        alike = all(getattr(search, key) == getattr(recipe.distill, key) for key in _DECIDING)
        return StepMemory(
            plain_bytes=plain,
            distil_bytes=_peak(recipe, parts, recipe.distill, _distil),
            plain_search_bytes=plain if alike else _peak(recipe, parts, search, _plain),
            search_bytes=_peak(recipe, parts, search, _search),
        )


Prepared = tuple[Stepper, Callable[[Batch, Batch], object]]


def _plain(recipe: Recipe, pair: Pair, training: Training) -> Prepared:
    stepper = make_stepper(recipe, Solo(pair.student), training, CPU)
    return stepper, lambda inner, outer: plain_step(stepper, pair.teacher, inner)


def plain_step(stepper: Stepper, teacher: TappedNetwork, batch: Batch) -> None:
    """Trains the student alone on a batch that the teacher has seen before it, in the same micro-batches."""
    outputs = []
    for part, _ in stepper.micro_batches(batch):
        with torch.no_grad(), autocast(stepper.device, stepper.precision):
            outputs.append(teacher(part.images_bchw)[0])
    stepper.step_alone(batch, 0)


def _distil(recipe: Recipe, pair: Pair, training: Training) -> Prepared:
    distiller = make_distiller(recipe, pair, training, CPU)
    return distiller, lambda inner, outer: distiller.step(inner, _ones(distiller), 0)


def _search(recipe: Recipe, pair: Pair, training: Training) -> Prepared:
    spec, distiller = recipe.search, make_distiller(recipe, pair, training, CPU)
    rule = RIVALS.get(spec.method)
    if rule is None or issubclass(rule, CosineOuter):
        name, options = (spec.hypergradient, spec.hypergradient_options) if rule is None else ("cheap", {})
        hypergradient = make_hypergradient(name, distiller, options)
        return distiller, lambda inner, outer: hypergradient.step(inner, outer, _ones(distiller), 0)
    if issubclass(rule, GradientRule):

        def look(inner: Batch, outer: Batch) -> None:
            distiller.backward(inner, _ones(distiller), 0, Kept(at_student={}))
            distiller.update()

        return distiller, look
    return distiller, lambda inner, outer: distiller.step(inner, _ones(distiller), 0)


def _ones(distiller: Distiller) -> Tensor:
    return torch.ones(len(distiller.trained.infos))


def _peak(recipe: Recipe, pair: Pair, training: Training, prepare: Callable[[Recipe, Pair, Training], Prepared]) -> int:
    """Returns the peak of a step; where it has many micro-batches, from steps that have few."""
    size, whole = training.micro_batch_size, training.batch_size
    if size is None or whole <= MOST_PARTS * size:
        return _peak_of(recipe, pair, training, prepare, whole)
    fewer, few = (_peak_of(recipe, pair, training, prepare, parts * size) for parts in (MOST_PARTS - 1, MOST_PARTS))
    return round(few + (few - fewer) * (whole / size - MOST_PARTS))


def _peak_of(
    recipe: Recipe,
    pair: Pair,
    training: Training,
    prepare: Callable[[Recipe, Pair, Training], Prepared],
    batch_size: int,
) -> int:
    stepper, step = prepare(recipe, pair, training.model_copy(update={"ema_decay": None}))
    stepper.task = _SumOfOutput(recipe, training)
    if isinstance(stepper, Distiller):
        stepper.judge = stepper.task
    judged = prepare is _search and recipe.search.method in ("hypergradient", "cosine-outer")
    outer_size = recipe.search.images_per_outer_batch(training.batch_size) if judged else 0
    inner, outer = (Batch(torch.zeros(count, 3, *recipe.data.height_width), ()) for count in (batch_size, outer_size))
    with LiveTensors():  # the optimiser's state exists from the first step on
        for parameter in stepper.trained_parameters:
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        stepper.update()
    tensors = [*standing_tensors([pair.teacher, *stepper.trained.modules().values()], stepper.optimizer)]
    if training.ema_decay is not None:  # tensors without values cannot be copied as timm copies them
        tensors += [torch.empty_like(tensor) for tensor in standing_tensors([pair.student.model])]
    tensors += [inner.images_bchw, outer.images_bchw]
    with LiveTensors(tensors) as live:
        step(inner, outer)
    peak: int = live.peak
    return peak


def standing_tensors(modules: Iterable[nn.Module], optimizer: torch.optim.Optimizer | None = None) -> Iterator[Tensor]:
    """Yields parameters and buffers of the modules, and the state of the optimiser."""
    for module in modules:
        yield from (*module.parameters(), *module.buffers())
    if optimizer is not None:
        yield from (leaf for leaf in tree_leaves(dict(optimizer.state)) if isinstance(leaf, Tensor))


class _SumOfOutput(Task):
    """Stands in for a task whose targets are not known before its data are read."""

    metric = Metric("sum", "sum")

    @override
    def data(self, spec: Any, seed: int, outer_share: float | None = None) -> TaskData:
        raise NotImplementedError

    @override
    def losses(self, output: Any, targets: Any) -> dict[str, Tensor]:
        made = [tensor for tensor in tensors_of(output) if tensor.requires_grad]
        return {"sum": torch.stack([leaf.float().sum() for leaf in made]).sum()}

    @override
    def evaluate(self, forward: Any, batches: Any) -> dict[str, float]:
        raise NotImplementedError
