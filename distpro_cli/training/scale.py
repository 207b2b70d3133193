"""The unit of every pathway's weight: its own loss, or the pull of the task at its level over its own.

Shape legend: k pathways.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from distpro_cli.tasks.task import Batch
from distpro_cli.training.device import autocast
from distpro_cli.training.feature_gradients import FeatureGradients, norms
from distpro_cli.training.step import Distiller, Kept, StepLosses, shared
from distpro_cli.training.tensors import unmoved_buffers

LEAST_STEPS, MOST_STEPS = 10, 200
SHARE_OF_STEPS = 0.02
KEPT = 0.9  # of the running loss, per step
LEAST_LOSS = 1e-4  # of the first loss: what lies below counts as much


class Scale(ABC):
    """A factor of every pathway's weight that follows from what a run sees.

    Args:
        distiller: Runs the steps.
        total_steps: Of the run.

    Attributes:
        scale_k: The scale in force, [K] > 0; ones before the first step.
        state: What it follows from, [K] each; empty before the first step.
    """

    def __init__(self, distiller: Distiller, total_steps: int) -> None:
        self.distiller = distiller
        self.total_steps = total_steps
        self.scale_k = torch.ones(len(distiller.trained.infos), device=distiller.device)
        self.state: dict[str, Tensor] = {}

    @abstractmethod
    def look(self, batch: Batch, step: int) -> None:
        """Sees the batch of a step, right before the student is trained on it."""

    def see(self, losses: StepLosses) -> None:
        """Sees what that step computed."""

    @abstractmethod
    def of_state(self) -> Tensor:
        """Returns the scale that follows from the state."""

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed run needs."""
        return dict(self.state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self.state = {name: value.to(self.scale_k.device) for name, value in state.items()}
        if self.state:
            self.scale_k = self.of_state()


class LossScale(Scale):
    """scale_k = 1 / D_k, so that a weight of 1 adds 1 to the loss, however large or small the distance is.

    D_k is a running average at 0.9 per step, from the first step's on; before that step, a forward pass on its batch
    gives it. Below 10⁻⁴ of that first value it counts as much, so that what is learnt to the last bit does not take
    off. Σ_k weight_k D_k / D_k has the gradient of Σ_k weight_k log D_k: what is left of a distance counts
    relatively, so a pathway does not fade as it is learnt. Learnt variances weigh losses likewise (Kendall et al. 2018:
    L / (2 σ²) + log σ is least at σ² = L), from a slower optimiser.
    """

    @override
    def look(self, batch: Batch, step: int) -> None:
        if not self.state:
            first_k = distances(self.distiller, batch, step)
            self.state = {"loss": first_k, "first": first_k}
            self.scale_k = self.of_state()

    @override
    def see(self, losses: StepLosses) -> None:
        self.state["loss"] = running(self.state["loss"], losses)
        self.scale_k = self.of_state()

    @override
    def of_state(self) -> Tensor:
        return inverse_loss(self.state["loss"], self.state["first"])


class GradientScale(Scale):
    """scale_k = Σ_t ‖g_0‖ / Σ_t ‖g_k‖ over the first steps t, so that a weight of 1 pulls as hard as the task.

    g_0 = ∂L_task/∂F and g_k = ∂D_k/∂F at the student's feature F of the pathway's level, over the whole batch. They are
    looked at before a step, by a backward pass of its own on the step's batch that leaves no trace. The scale in force
    is that of all steps seen, from the first on; after `num_steps(total_steps)` steps it stays.

    Where the task does not pull, ‖g_0‖ is the mean over the pathways where it does, or 1 if there are none. A pathway
    that does not pull has the scale 1.
    """

    @override
    def look(self, batch: Batch, step: int) -> None:
        if step >= num_steps(self.total_steps):
            return
        task_k, pathway_k = measure(self.distiller, batch, step)
        found = {"task": task_k, "pathway": pathway_k, "seen": torch.ones_like(task_k)}
        self.state = {name: self.state[name] + value if self.state else value for name, value in found.items()}
        self.scale_k = self.of_state()

    @override
    def of_state(self) -> Tensor:
        task_k, pathway_k, seen_k = self.state["task"], self.state["pathway"], self.state["seen"]
        pulled_k = task_k > 0
        elsewhere_k = torch.where(pulled_k.any(), task_k.sum() / pulled_k.sum(), seen_k)
        return usable(torch.where(pulled_k, task_k, elsewhere_k) / pathway_k)


SCALES: dict[str, type[Scale]] = {"loss": LossScale, "gradient": GradientScale}


def running(loss_k: Tensor, losses: StepLosses) -> Tensor:
    """Returns the running loss of every pathway after one more step, [K]; that of a pathway that was off stays."""
    seen = [losses.distances.get(k, loss_k[k]) for k in range(len(loss_k))]
    return KEPT * loss_k + (1 - KEPT) * torch.stack(seen).to(loss_k)


def inverse_loss(loss_k: Tensor, first_k: Tensor) -> Tensor:
    """Returns 1 over a running loss, which counts as no less than 10⁻⁴ of the first one."""
    return usable(1 / torch.maximum(loss_k, LEAST_LOSS * first_k))


def usable(scale_k: Tensor) -> Tensor:
    """Returns the scale with 1 where it is no positive number."""
    return torch.where((scale_k > 0) & scale_k.isfinite(), scale_k, 1.0)


def num_steps(total_steps: int) -> int:
    """Returns over how many first steps norms are summed: 2 %, at least 10 and at most 200."""
    return min(MOST_STEPS, max(LEAST_STEPS, round(SHARE_OF_STEPS * total_steps)))


def distances(distiller: Distiller, batch: Batch, step: int) -> Tensor:
    """Returns D_k of every pathway on a batch of all ranks, float32 [K]; nothing else changes."""
    pathways = distiller.pathways
    active = range(len(pathways.infos))
    parts_k = []
    with torch.no_grad(), unmoved_buffers(distiller.student), unmoved_buffers(pathways):
        for place, (part, share) in enumerate(distiller.micro_batches(batch)):
            teacher_features = distiller.teacher_features(part, active)
            _, features = distiller.student_forward(part, pathways.student_levels(active), step, place)
            with autocast(distiller.device, distiller.precision):
                found = pathways(features, teacher_features, active, part.filled)
            parts_k.append(shared(torch.stack([found[k].float() for k in active]), share))
    (distance_k,) = distiller.world.mean([reduce(add, parts_k)])
    return distance_k


def measure(distiller: Distiller, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
    """Returns ‖g_0‖ and ‖g_k‖ of every pathway on a batch of all ranks, float32 [K] each; nothing else changes.

    The student draws in the step what it drew here, since every step seeds it.
    """
    num_pathways = len(distiller.trained.infos)
    found: dict[int, FeatureGradients] = {}
    with unmoved_buffers(distiller.student), unmoved_buffers(distiller.pathways):
        distiller.backward(batch, torch.zeros(num_pathways, device=distiller.device), step, Kept(at_student=found))
    distiller.optimizer.zero_grad(set_to_none=True)
    return norms([found[k] for k in range(num_pathways)], distiller.world)
