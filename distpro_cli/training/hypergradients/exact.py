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
    outer_gradient,
    register_hypergradient,
)
from distpro_cli.training.optimiser import learning_rate
from distpro_cli.training.pull_back import Update, inner_product
from distpro_cli.training.step import StepLosses


@register_hypergradient("exact")
class ExactHypergradient(Hypergradient):
    """∇_w D_k by autograd for every pathway on its own, then through the optimiser; holds K gradients at once."""

    @override
    def step(self, inner: Batch, outer: Batch, weights_k: Tensor, step: int) -> tuple[StepLosses, StepLosses, Tensor]:
        distiller, pathways = self.distiller, self.distiller.pathways
        blocks = list(pathways.parameters())
        active = range(len(pathways.infos))
        teacher_features = distiller.teacher_features(inner, active)
        output, features = distiller.student_forward(inner, pathways.student_levels(active), step)
        parts, task = distiller.task_loss(output, inner.targets)
        with autocast(distiller.device, distiller.precision):
            distances = pathways(features, teacher_features, active, inner.filled)
        moved = [*distiller.student_parameters, *blocks]
        per_pathway = [torch.autograd.grad(distances[k], moved, retain_graph=True, allow_unused=True) for k in active]
        total = task + sum(weights_k[k] * distances[k] for k in active)
        total.backward()
        losses = distiller.named(parts, task, distances, output, inner)
        lr = learning_rate(distiller.optimizer)
        update = Update(distiller, blocks)
        distiller.update()
        outer_losses, v = outer_gradient(distiller, outer, step)
        pulled = update.pull_back(v)
        # Where nothing clips, the direction ends with the student's parameters.
        products = [inner_product(pulled.direction, g[: len(pulled.direction)]) for g in per_pathway]
        return losses, outer_losses, torch.stack(products) * (-lr * pulled.scale)
