"""The unit of every pathway's weight: how hard the task pulls at its level, over how hard the pathway does.

Shape legend: k pathways.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from distpro_cli.tasks.task import Batch
from distpro_cli.training.feature_gradients import FeatureGradients, norms
from distpro_cli.training.step import Distiller, StepLosses, unmoved_buffers

LEAST_STEPS, MOST_STEPS = 10, 200
SHARE_OF_STEPS = 0.02


class GradientScale:
    """scale_k = Σ_t ‖g_0‖ / Σ_t ‖g_k‖ over the first steps t, so that a weight of 1 pulls as hard as the task.

    g_0 = ∂L_task/∂F and g_k = ∂D_k/∂F at the student's feature F of the pathway's level, over the whole batch. They are
    looked at before a step, by a backward pass of its own on the step's batch that leaves no trace. The scale in force
    is that of all steps seen, from the first on; after `num_steps(total_steps)` steps it stays.

    Where the task does not pull, ‖g_0‖ is the mean over the pathways where it does, or 1 if there are none. A pathway
    that does not pull has the scale 1.

    Args:
        distiller: Runs the steps.
        total_steps: Of the search.

    Attributes:
        scale_k: The scale in force, [K] > 0; ones before the first step.
    """

    def __init__(self, distiller: Distiller, total_steps: int) -> None:
        self.distiller = distiller
        self.last_step = num_steps(total_steps)
        self.seen = 0
        self.task_k = torch.zeros(len(distiller.trained.infos), device=distiller.device)  # Σ ‖g_0‖
        self.pathway_k = torch.zeros_like(self.task_k)  # Σ ‖g_k‖
        self.scale_k = torch.ones_like(self.task_k)

    def look(self, batch: Batch, step: int) -> None:
        """Sees the batch of a step, right before the student is trained on it."""
        if step >= self.last_step:
            return
        task_k, pathway_k = measure(self.distiller, batch, step)
        self.task_k, self.pathway_k, self.seen = self.task_k + task_k, self.pathway_k + pathway_k, self.seen + 1
        self.scale_k = ratio(self.task_k, self.pathway_k, self.seen)

    def see(self, losses: StepLosses) -> None:
        """Sees what the step computed."""

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed search needs."""
        return {"seen": self.seen, "task": self.task_k, "pathway": self.pathway_k}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self.seen = state["seen"]
        self.task_k, self.pathway_k = (state[name].to(self.task_k) for name in ("task", "pathway"))
        self.scale_k = ratio(self.task_k, self.pathway_k, self.seen)


class RunningGradientScale(GradientScale):
    """As `GradientScale`, all run long: averages of the norms at 0.8, looked at every 4 steps."""

    @override
    def look(self, batch: Batch, step: int) -> None:
        if step % 4:
            return
        task_k, pathway_k = measure(self.distiller, batch, step)
        kept = 0.8 if self.seen else 0.0
        self.task_k = kept * self.task_k + (1 - kept) * task_k
        self.pathway_k = kept * self.pathway_k + (1 - kept) * pathway_k
        self.seen = 1
        self.scale_k = ratio(self.task_k, self.pathway_k, self.seen)


class LossScale(GradientScale):
    """scale_k = 1 / D_k, a running average at 0.9, so that a weight of 1 gives each pathway the same part of the loss.

    Σ_k weight_k D_k / sg(D_k) has the gradient of Σ_k weight_k log D_k.
    """

    @override
    def look(self, batch: Batch, step: int) -> None:
        if self.seen == 0:
            with unmoved_buffers(self.distiller.student), unmoved_buffers(self.distiller.pathways):
                losses, _ = self.distiller.backward(batch, torch.zeros_like(self.task_k), step)
            self.distiller.optimizer.zero_grad(set_to_none=True)
            self.see(losses)

    @override
    def see(self, losses: StepLosses) -> None:
        distance_k = torch.stack([losses.distances[k].to(self.pathway_k) for k in range(len(self.pathway_k))])
        kept = 0.9 if self.seen else 0.0
        self.pathway_k = kept * self.pathway_k + (1 - kept) * distance_k
        self.task_k, self.seen = torch.ones_like(self.pathway_k), 1
        self.scale_k = ratio(self.task_k, self.pathway_k, self.seen)


def ratio(task_k: Tensor, pathway_k: Tensor, seen: int) -> Tensor:
    """Returns the scale that sums of norms over `seen` steps give, [K] > 0."""
    pulled_k = task_k > 0
    elsewhere = torch.where(pulled_k.any(), task_k.sum() / pulled_k.sum(), float(seen))
    scale_k = torch.where(pulled_k, task_k, elsewhere) / pathway_k
    return torch.where((scale_k > 0) & scale_k.isfinite(), scale_k, 1.0)


def num_steps(total_steps: int) -> int:
    """Returns over how many first steps norms are summed: 2 %, at least 10 and at most 200."""
    return min(MOST_STEPS, max(LEAST_STEPS, round(SHARE_OF_STEPS * total_steps)))


def measure(distiller: Distiller, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
    """Returns ‖g_0‖ and ‖g_k‖ of every pathway on a batch, float32 [K] each; nothing else changes.

    The student draws in the step what it drew here, since every step seeds it.
    """
    num_pathways = len(distiller.trained.infos)
    found: dict[int, FeatureGradients] = {}
    with unmoved_buffers(distiller.student), unmoved_buffers(distiller.pathways):
        distiller.backward(batch, torch.zeros(num_pathways, device=distiller.device), step, at_student=found)
    distiller.optimizer.zero_grad(set_to_none=True)
    return norms([found[k] for k in range(num_pathways)])


SCALES = {"gradient": GradientScale, "running-gradient": RunningGradientScale, "loss": LossScale}
