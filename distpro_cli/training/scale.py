"""The unit of every pathway's weight: how hard the task pulls at its level, over how hard the pathway does.

Shape legend: k pathways.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from distpro_cli.tasks.task import Batch
from distpro_cli.training.feature_gradients import FeatureGradients, norms
from distpro_cli.training.step import Distiller, unmoved_buffers

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

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed search needs."""
        return {"seen": self.seen, "task": self.task_k, "pathway": self.pathway_k}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self.seen, self.task_k, self.pathway_k = state["seen"], state["task"], state["pathway"]
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
