"""Reference hypergradient by autograd.

Shape legend: k pathways.
"""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from distpro_cli.tasks.task import Batch
from distpro_cli.training.device import autocast
from distpro_cli.training.hypergradients.base import (
    Hypergradient,
    inner_product,
    outer_gradient,
    register_hypergradient,
)
from distpro_cli.training.optimiser import learning_rate
from distpro_cli.training.step import StepLosses


@register_hypergradient("exact")
class ExactHypergradient(Hypergradient):
    """∇_w D_k by autograd for every pathway on its own; holds K gradients at once."""

    @override
    def step(self, inner: Batch, outer: Batch, weights_k: Tensor, step: int) -> tuple[StepLosses, StepLosses, Tensor]:
        distiller, pathways = self.distiller, self.distiller.pathways
        parameters = distiller.student_parameters
        active = range(len(pathways.infos))
        teacher_features = distiller.teacher_features(inner.images_bchw, active)
        output, features = distiller.student_forward(inner, pathways.student_levels(active), step)
        parts, task = distiller.task_loss(output, inner.targets)
        with autocast(distiller.device, distiller.precision):
            distances = pathways(features, teacher_features, active)
        per_pathway = [
            torch.autograd.grad(distances[k], parameters, retain_graph=True, allow_unused=True) for k in active
        ]
        total = task + sum(weights_k[k] * distances[k] for k in active)
        total.backward()
        losses = distiller.named(parts, task, distances, output, inner)
        lr = learning_rate(distiller.optimizer)
        distiller.update()
        outer_losses, direction = outer_gradient(distiller, outer, step)
        return losses, outer_losses, torch.stack([inner_product(direction, g) for g in per_pathway]) * -lr
