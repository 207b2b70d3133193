"""One training step of a student: task loss plus weighted pathway losses, and the parts a search builds on.

Shape legend: b images, c channels, h height, w width, k pathways.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from distpro_cli.networks.levels import TappedNetwork
from distpro_cli.pathways.module import Pathways
from distpro_cli.randomness import derived_seed
from distpro_cli.tasks.task import Batch as Batch
from distpro_cli.training.device import autocast

Features = dict[int, Tensor]
TaskLoss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class StepLosses:
    """What a step computed, by name; tensors without gradient, still on the device.

    Attributes:
        task: Task loss, scalar.
        distances: D_k of the pathways that were on, by column.
        correct_percent: Top-1 accuracy on the batch, 0..100; for mixed targets against the larger part.
    """

    task: Tensor
    distances: dict[int, Tensor] = field(default_factory=dict)
    correct_percent: Tensor | None = None


@dataclass(frozen=True)
class Pair:
    """Who takes part in a run: the student always, the teacher and the pathways when it distils."""

    student: TappedNetwork
    teacher: TappedNetwork | None = None
    pathways: Pathways | None = None

    def trained_modules(self) -> list[nn.Module]:
        """Returns what the optimiser moves: the student and the transform blocks."""
        return [self.student] if self.pathways is None else [self.student, self.pathways]


class Stepper:
    """Runs single steps of a pair: forward, losses, backward, update."""

    def __init__(
        self,
        pair: Pair,
        optimizer: torch.optim.Optimizer,
        task_loss: TaskLoss,
        *,
        device: torch.device,
        precision: str = "float32",
        clip_grad: float | None = None,
        seed: int = 0,
    ) -> None:
        self.pair = pair
        self.optimizer = optimizer
        self.task_loss = task_loss
        self.device = device
        self.precision = precision
        self.clip_grad = clip_grad
        self.seed = seed
        self.student_parameters: list[Tensor] = [p for p in pair.student.parameters() if p.requires_grad]

    def plain(self, batch: Batch, weights: Sequence[float] | Tensor, step: int) -> StepLosses:
        """Trains on one batch by L_task + Σ_k weight_k · D_k over the pathways whose weight is not zero.

        Args:
            batch: On the device.
            weights: [K] ≥ 0; a sequence of floats, in which zeros are neither computed nor fetched from the
                teacher, or a tensor, of which all pathways are computed.
            step: Number of the step, which seeds its randomness.
        """
        losses, total = self.training_loss(batch, weights, step)
        total.backward()
        self.update()
        return losses

    def training_loss(self, batch: Batch, weights: Sequence[float] | Tensor, step: int) -> tuple[StepLosses, Tensor]:
        """Returns the named losses and the total with its graph; see `plain`."""
        active = active_pathways(weights)
        teacher_features = self.teach(batch.images_bchw, active)
        logits, features = self.study(batch, self._pathways.student_levels(active) if active else (), step)
        task = self.task_loss(logits, batch.targets)
        distances: dict[int, Tensor] = {}
        if active:
            with autocast(self.device, self.precision):
                distances = self._pathways(features, teacher_features, active)
        total = task
        for k, distance in distances.items():
            total = total + weights[k] * distance
        return self.named(task, distances, logits, batch), total

    def teach(self, images_bchw: Tensor, active: Sequence[int]) -> Features:
        """Returns the teacher's features at the levels that the `active` pathways need, without graph."""
        if self.pair.teacher is None or not active:
            return {}
        with torch.no_grad(), autocast(self.device, self.precision):
            features: Features
            _, features = self.pair.teacher(images_bchw, levels=self._pathways.teacher_levels(active), logits=False)
        return features

    def study(self, batch: Batch, levels: Collection[int], step: int) -> tuple[Tensor, Features]:
        """Returns the student's logits and features of a batch, with their graph."""
        self.seed_student(step)
        with autocast(self.device, self.precision):
            logits, features = self.pair.student(batch.images_bchw, levels=levels)
        assert logits is not None
        return logits, features

    def seed_student(self, step: int) -> None:
        """Makes what the student draws in this step (dropout, stochastic depth) a function of the step alone."""
        torch.manual_seed(derived_seed(self.seed, "student", step))

    def update(self) -> None:
        """Clips if asked, steps the optimiser and drops the gradients."""
        if self.clip_grad is not None:
            nn.utils.clip_grad_norm_(self.student_parameters, self.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def named(self, task: Tensor, distances: dict[int, Tensor], logits: Tensor, batch: Batch) -> StepLosses:
        """Wraps the parts of a step's loss, detached from their graph."""
        classes = batch.targets.argmax(1) if batch.targets.ndim > 1 else batch.targets
        with torch.no_grad():
            correct_percent = (logits.argmax(1) == classes).float().mean() * 100
        parts = {k: distance.detach() for k, distance in distances.items()}
        return StepLosses(task.detach(), parts, correct_percent)

    @property
    def _pathways(self) -> Pathways:
        assert self.pair.pathways is not None
        return self.pair.pathways


def active_pathways(weights: Sequence[float] | Tensor) -> list[int]:
    """Returns the columns to compute: all of a tensor (looking would stall the device), else those not zero."""
    if isinstance(weights, Tensor):
        return list(range(weights.numel()))
    return [k for k, weight in enumerate(weights) if weight != 0]


@contextmanager
def unmoved_buffers(module: nn.Module) -> Iterator[None]:
    """Leaves every buffer of `module` (BatchNorm's running statistics) as it was, whatever runs inside."""
    buffers = list(module.buffers())
    before = [buffer.detach().clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, saved in zip(buffers, before, strict=True):
                buffer.copy_(saved)
