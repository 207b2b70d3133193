"""One training step: of a network alone, or of a student that a teacher's pathways pull at.

Shape legend: b images, c channels, h height, w width, k pathways.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from distpro_cli.networks.levels import Normalized, TappedNetwork
from distpro_cli.pathways.module import Pathways, Start
from distpro_cli.process.pathway import PathwayInfo
from distpro_cli.randomness import derived_seed
from distpro_cli.tasks.task import Batch, Filled, Task
from distpro_cli.training.device import autocast
from distpro_cli.training.feature_gradients import FeatureGradients, feature_gradients, joined_gradients
from distpro_cli.world import current_world

Features = dict[int, Tensor]
Starts = dict[Start, Tensor]


@dataclass
class Kept:
    """What a step keeps of this rank's images, by pathway or start, for who gives a dict for it.

    Attributes:
        gradients: g_k = ∂D_k/∂start.
        gradient_dtype: In which they are kept; None: as they come.
        at_student: The task's gradient and g_k at the student's level of each pathway; the task then goes back to the
            levels once more, without the gradients of parameters.
        starts: What the pathways start from, without graph.
    """

    gradients: dict[int, Tensor] | None = None
    gradient_dtype: torch.dtype | None = None
    at_student: dict[int, FeatureGradients] | None = None
    starts: Starts | None = None

    def of_part(self) -> Kept:
        """Returns the same with nothing in it, for a micro-batch."""
        return Kept(
            None if self.gradients is None else {},
            self.gradient_dtype,
            None if self.at_student is None else {},
            None if self.starts is None else {},
        )

    def take(self, parts: Sequence[Kept]) -> None:
        """Takes what the micro-batches kept, out of theirs, so that each tensor is held once."""
        if self.gradients is not None:
            self.gradients |= joined([part.gradients or {} for part in parts])
        if self.at_student is not None:
            self.at_student |= joined_gradients([part.at_student or {} for part in parts])
        if self.starts is not None:
            self.starts |= joined([part.starts or {} for part in parts])


@dataclass(frozen=True)
class StepLosses:
    """What a step computed, by name; tensors without gradient, still on the device.

    Attributes:
        parts: Parts of the task loss, scalars.
        task: Their sum.
        distances: D_k of the pathways that were on, by column.
        scores: The task's scores on the batch.
    """

    parts: Mapping[str, Tensor]
    task: Tensor
    distances: Mapping[int, Tensor] = field(default_factory=dict)
    scores: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def distance_k(self) -> Tensor:
        """D_k of every pathway, [K], of a step in which all were on."""
        return torch.stack([self.distances[k] for k in range(len(self.distances))])

    def tensors(self) -> list[Tensor]:
        """Returns all of them, in a fixed order."""
        return [*self.parts.values(), self.task, *self.distances.values(), *self.scores.values()]

    def read(self) -> StepLosses:
        """Returns the same losses in main memory, by one copy."""
        return self.holding(torch.stack([value.float() for value in self.tensors()]).cpu())

    def holding(self, tensors: Iterable[Tensor]) -> StepLosses:
        """Returns the same losses with other values, in the order of `tensors`."""
        given = iter(tensors)
        parts = dict(zip(self.parts, given))  # noqa: B905  # the rest is for the others
        task = next(given)
        return StepLosses(parts, task, dict(zip(self.distances, given)), dict(zip(self.scores, given)))  # noqa: B905


@dataclass(frozen=True)
class Solo:
    """A network that is trained alone: a student without distillation, or a teacher. It has no pathways."""

    student: TappedNetwork
    infos: tuple[PathwayInfo, ...] = ()

    def modules(self) -> dict[str, nn.Module]:
        """Returns what is trained, by its name in checkpoints."""
        return {"student": self.student.model}


@dataclass(frozen=True)
class Pair:
    """A student, its teacher (frozen, in eval mode) and the pathways between them."""

    student: TappedNetwork
    teacher: TappedNetwork
    pathways: Pathways

    @property
    def infos(self) -> tuple[PathwayInfo, ...]:
        """The pathways, in the order of the columns."""
        return self.pathways.infos

    def modules(self) -> dict[str, nn.Module]:
        """Returns what is trained, the student and the transform blocks, by its name in checkpoints."""
        return {"student": self.student.model, "transforms": self.pathways}


class Stepper:
    """Trains a network alone: forward, losses, backward, update.

    Args:
        trained: What is trained, on the device.
        optimizer: Over all that is trained.
        task: Gives the losses.
        device: Where it computes.
        precision: `float32`, or `bfloat16` for autocast.
        clip_grad: Largest norm of the gradient of all that is trained; None: any.
        seed: Of what the student draws in a step.
        micro_batch_size: Images that go forward and backward at a time; None: a batch whole.
        ema_decay: Of the running average of the student, per step; None: there is none.

    Attributes:
        average: The student with running averages of weights and buffers, in eval mode, where there is one.
        world: The ranks that train it together, each on its part of every batch.
    """

    def __init__(
        self,
        trained: Solo | Pair,
        optimizer: torch.optim.Optimizer,
        task: Task,
        *,
        device: torch.device,
        precision: str = "float32",
        clip_grad: float | None = None,
        seed: int = 0,
        micro_batch_size: int | None = None,
        ema_decay: float | None = None,
    ) -> None:
        self.trained = trained
        self.student = trained.student
        self.optimizer = optimizer
        self.task = task
        self.device = device
        self.precision = precision
        self.clip_grad = clip_grad
        self.seed = seed
        self.micro_batch_size = micro_batch_size
        self._ema = None if ema_decay is None else ModelEmaV3(trained.student, decay=ema_decay)
        self.average: TappedNetwork | None = None if self._ema is None else self._ema.module
        self.student_parameters: list[Tensor] = [p for p in self.student.parameters() if p.requires_grad]
        self.trained_parameters: list[Tensor] = [p for m in trained.modules().values() for p in m.parameters()]
        self.world = current_world()

    def step_alone(self, batch: Batch, step: int) -> StepLosses:
        """Trains on one batch, on the device, by the task loss; `step` seeds the step's randomness."""
        found = []
        for place, (part, share) in enumerate(self.micro_batches(batch)):
            output, _ = self.student_forward(part, (), step, place)
            parts, task = self.task_loss(output, part.targets)
            shared(task, share).backward()
            found.append((self.named(parts, task, {}, output, part), share))
        losses = self.over_ranks(weighted_losses(found))
        self.update()
        return losses

    def over_ranks(self, losses: StepLosses) -> StepLosses:
        """Makes gradients and BatchNorm's running statistics, and the losses returned, those of all ranks' images.

        One all-reduce: the losses ride along, so that every rank sees the same ones, and stops at the same NaN.
        """
        if self.world.size == 1:
            return losses
        own = [value.to(self.device, torch.promote_types(value.dtype, torch.float32)) for value in losses.tensors()]
        changed = [*(p.grad for p in self.trained_parameters if p.grad is not None), *self.running_statistics()]
        means = self.world.mean([*changed, *own])
        torch._foreach_copy_(changed, means[: len(changed)])
        return losses.holding(means[len(changed) :])

    def running_statistics(self) -> list[Tensor]:
        """Returns the running means and variances of what is trained."""
        norms = (m for part in self.trained.modules().values() for m in part.modules() if isinstance(m, _NormBase))
        return [b for norm in norms for b in (norm.running_mean, norm.running_var) if b is not None]

    def micro_batches(self, batch: Batch) -> list[tuple[Batch, float]]:
        """Returns the parts in which a batch goes forward and backward, each with its share of the images."""
        count, size = len(batch.images_bchw), self.micro_batch_size
        if size is None or count <= size:
            return [(batch, 1.0)]
        return [(part, len(part.images_bchw) / count) for part in batch.split(size)]

    def student_forward(
        self,
        batch: Batch,
        levels: Collection[int],
        step: int,
        place: int = 0,
        normalized: Normalized | None = None,
    ) -> tuple[Any, Features]:
        """Returns the student's output and its features of a (micro-)batch, with their graph."""
        self.seed_student(step, place)
        with autocast(self.device, self.precision):
            output, features = self.student(batch.images_bchw, levels=levels, sizes=batch.sizes, normalized=normalized)
        return output, features

    def seed_student(self, step: int, place: int = 0) -> None:
        """Makes what the student draws (dropout, stochastic depth) a function of step, micro-batch and rank alone."""
        where = [place] if place else []
        rank = ("rank", self.world.rank) if self.world.rank else ()
        torch.manual_seed(derived_seed(self.seed, "student", step, *where, *rank))

    def task_loss(self, output: Any, targets: Any) -> tuple[dict[str, Tensor], Tensor]:
        """Returns the parts of the task loss and their sum, with their graph."""
        parts = self.task.losses(output, targets)
        return parts, reduce(add, parts.values())

    def update(self) -> None:
        """Clips if asked, steps the optimiser, drops the gradients, and moves the running average."""
        if self.clip_grad is not None:
            nn.utils.clip_grad_norm_(self.trained_parameters, self.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self._ema is not None:
            self._ema.update(self.student)

    def named(
        self, parts: Mapping[str, Tensor], task: Tensor, distances: Mapping[int, Tensor], output: Any, batch: Batch
    ) -> StepLosses:
        """Wraps the parts of a step's loss, detached from their graph."""
        with torch.no_grad():
            scores = self.task.scores(output, batch.targets)
        detached = {name: part.detach() for name, part in parts.items()}
        return StepLosses(detached, task.detach(), {k: d.detach() for k, d in distances.items()}, scores)


class Distiller(Stepper):
    """Trains the student of a pair by L_task + Σ_k weight_k · D_k; a search builds on its parts.

    Args:
        pair: On the device.
        optimizer: Over the student and the transform blocks.
        task: Gives the losses.
        judge: Gives the outer loss of a search; None: the task.
        options: As in `Stepper`.
    """

    def __init__(
        self, pair: Pair, optimizer: torch.optim.Optimizer, task: Task, *, judge: Task | None = None, **options: Any
    ) -> None:
        super().__init__(pair, optimizer, task, **options)
        self.teacher = pair.teacher
        self.pathways = pair.pathways
        self.judge = task if judge is None else judge

    def step(self, batch: Batch, weights: Sequence[float | Tensor] | Tensor, step: int) -> StepLosses:
        """Trains on one batch.

        Args:
            batch: On the device.
            weights: [K] ≥ 0; a tensor, of which all pathways are computed, or a sequence of floats and scalar
                tensors, in which floats that are zero are neither computed nor fetched from the teacher.
            step: Number of the step, which seeds its randomness.
        """
        losses = self.backward(batch, weights, step)
        self.update()
        return losses

    def backward(
        self,
        batch: Batch,
        weights: Sequence[float | Tensor] | Tensor,
        step: int,
        kept: Kept | None = None,
    ) -> StepLosses:
        """Fills the gradients of one step, over all ranks; every step of a distillation and a search goes through here.

        The graph is cut where the pathways start. Every pathway goes back on its own, to its own copy of what it
        starts from, so that the graph of one pathway is held at a time, and a feature of the teacher's until the last
        pathway that reads it; then the weighted sum of what arrived goes back through the shared blocks and the
        student once.

        Args:
            batch: On the device.
            weights: As in `step`.
            step: Number of the step.
            kept: Is given what it asks for.
        """
        kept = Kept() if kept is None else kept
        found: list[tuple[StepLosses, float]] = []
        of_parts: list[Kept] = []
        for place, (part, share) in enumerate(self.micro_batches(batch)):
            of_parts.append(kept.of_part())
            found.append((self._backward_part(part, weights, (step, place, share), of_parts[-1]), share))
        kept.take(of_parts)
        return self.over_ranks(weighted_losses(found))

    def _backward_part(
        self,
        batch: Batch,
        weights: Sequence[float | Tensor] | Tensor,
        which: tuple[int, int, float],
        kept: Kept,
    ) -> StepLosses:
        """Does what `backward` does with one micro-batch; `which` is the step, its place and its share of the batch.

        The losses returned are the micro-batch's own means; all gradients are its share of the batch's.
        """
        step, place, share = which
        active = active_pathways(weights)
        normalized: Normalized = {}
        teacher_features = self.teacher_features(batch, active, normalized)
        levels = self.pathways.student_levels(active)
        output, features = self.student_forward(batch, levels, step, place, normalized)
        del normalized
        with autocast(self.device, self.precision):
            starts = self.pathways.starts(features, active)
        parts, task = self.task_loss(output, batch.targets)
        gradients = {} if kept.gradients is None and kept.at_student is not None else kept.gradients
        distances: dict[int, Tensor] = {}
        pulls: Starts = {}
        last = {self.pathways.infos[k].teacher.number: k for k in active}
        for k in active:
            of_pathway = (starts, teacher_features, batch.filled)
            distances[k], gradient = self._pathway_backward(k, of_pathway, weights[k], share)
            if last[level := self.pathways.infos[k].teacher.number] == k:
                del teacher_features[level]
            weight = weights[k]
            pull = gradient * (weight.to(gradient.dtype) if isinstance(weight, Tensor) else weight)
            start = self.pathways.start_of[k]
            pulls[start] = pulls[start].add_(pull) if start in pulls else pull
            if gradients is not None:
                gradients[k] = gradient if kept.gradient_dtype is None else gradient.to(kept.gradient_dtype)
        if kept.at_student is not None:
            assert gradients is not None
            kept.at_student |= feature_gradients(self.pathways, shared(task, share), features, starts, gradients)
        reached = [start for start in pulls if starts[start].requires_grad]
        torch.autograd.backward(
            [shared(task, share), *(starts[start] for start in reached)], [None, *(pulls[start] for start in reached)]
        )
        if kept.starts is not None:
            kept.starts |= {start: tensor.detach() for start, tensor in starts.items()}
        return self.named(parts, task, distances, output, batch)

    def _pathway_backward(
        self, k: int, given: tuple[Starts, Features, Filled | None], weight: float | Tensor, share: float
    ) -> tuple[Tensor, Tensor]:
        """Goes back through pathway k; returns D_k and share · g_k, and adds weight · share · ∂D_k to its block's.

        `given` is what pathways start from, the teacher's features, and the batch's `filled`.
        """
        starts, teacher_features, filled = given
        parameters = list(self.pathways.transforms[k].parameters())
        earlier = [p.grad for p in parameters]
        for p in parameters:
            p.grad = None
        copy = starts[self.pathways.start_of[k]].detach().requires_grad_()
        with autocast(self.device, self.precision):
            target = teacher_features[self.pathways.infos[k].teacher.number]
            distance = self.pathways.distance(k, copy, target, filled)
        shared(distance, share).backward()
        block_gradients = [p.grad for p in parameters if p.grad is not None]
        if block_gradients:
            torch._foreach_mul_(block_gradients, weight)
        for p, before in zip(parameters, earlier, strict=True):
            if before is not None:
                p.grad = before if p.grad is None else before.add_(p.grad)
        gradient = copy.grad if copy.grad is not None else torch.zeros_like(copy)
        return distance.detach(), gradient

    def teacher_features(self, batch: Batch, active: Sequence[int], normalized: Normalized | None = None) -> Features:
        """Returns the teacher's features at the levels that the `active` pathways need, without graph."""
        if not active:
            return {}
        with torch.no_grad(), autocast(self.device, self.precision):
            features: Features
            levels = self.pathways.teacher_levels(active)
            _, features = self.teacher(
                batch.images_bchw, levels=levels, output=False, sizes=batch.sizes, normalized=normalized
            )
        return features


def shared(loss: Tensor, share: float) -> Tensor:
    """Returns a micro-batch's share of a loss; that of a whole batch is the very same tensor."""
    return loss if share == 1.0 else loss * share


def joined(parts: Sequence[dict[Any, Tensor]]) -> dict[Any, Tensor]:
    """Returns tensors of micro-batches by key as those of the batch, [B, ...]; takes them out, so that each is held
    once."""
    return parts[0] if len(parts) == 1 else {key: torch.cat([part.pop(key) for part in parts]) for key in [*parts[0]]}


def weighted_losses(found: Sequence[tuple[StepLosses, float]]) -> StepLosses:
    """Returns the losses of a batch from those of its micro-batches and their shares."""
    if len(found) == 1:
        return found[0][0]

    def mean(tables: Sequence[Mapping[Any, Tensor]]) -> dict[Any, Tensor]:
        of_parts = list(zip(tables, found, strict=True))
        return {key: torch.stack([table[key] * share for table, (_, share) in of_parts]).sum(0) for key in tables[0]}

    losses = [part for part, _ in found]
    (task,) = mean([{"": part.task} for part in losses]).values()
    return StepLosses(
        mean([part.parts for part in losses]),
        task,
        mean([part.distances for part in losses]),
        mean([part.scores for part in losses]),
    )


def active_pathways(weights: Sequence[float | Tensor] | Tensor) -> list[int]:
    """Returns the columns to compute: all tensors (looking would stall the device), and numbers that are not zero."""
    if isinstance(weights, Tensor):
        return list(range(weights.numel()))
    return [k for k, weight in enumerate(weights) if isinstance(weight, Tensor) or weight != 0]
