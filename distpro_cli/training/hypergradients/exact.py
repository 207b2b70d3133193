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
from distpro_cli.training.step import StepLosses, shared, weighted_losses

Gradients = tuple[Tensor | None, ...]  # by parameter


@register_hypergradient("exact")
class ExactHypergradient(Hypergradient):
    """∇_w D_k by autograd for every pathway on its own, then through the optimiser; holds K gradients at once."""

    @override
    def step(self, inner: Batch, outer: Batch, weights_k: Tensor, step: int) -> tuple[StepLosses, StepLosses, Tensor]:
        distiller = self.distiller
        found: list[tuple[StepLosses, float]] = []
        per_pathway: list[Gradients] = []
        for place, (part, share) in enumerate(distiller.micro_batches(inner)):
            losses, gradients = self._backward_part(part, weights_k, (step, place, share))
            found.append((losses, share))
            per_pathway = [_sum(*pair) for pair in zip(per_pathway, gradients, strict=True)] if place else gradients
        losses = distiller.over_ranks(weighted_losses(found))
        lr = learning_rate(distiller.optimizer)
        update = Update(distiller, list(distiller.pathways.parameters()))
        distiller.update()
        outer_losses, v = outer_gradient(distiller, outer, step)
        pulled = update.pull_back(v)
        # Where nothing clips, the direction ends with the student's parameters.
        products = [inner_product(pulled.direction, g[: len(pulled.direction)]) for g in per_pathway]
        (product_k,) = distiller.world.mean([torch.stack(products)])
        return losses, outer_losses, product_k * (-lr * pulled.scale)

    def _backward_part(
        self, batch: Batch, weights_k: Tensor, which: tuple[int, int, float]
    ) -> tuple[StepLosses, list[Gradients]]:
        """Adds the gradient of a micro-batch's share of the loss; returns its losses and its share of every ∇ D_k.

        `which` is the step, the place of the micro-batch and its share of the batch.
        """
        step, place, share = which
        distiller, pathways = self.distiller, self.distiller.pathways
        active = range(len(pathways.infos))
        teacher_features = distiller.teacher_features(batch, active)
        output, features = distiller.student_forward(batch, pathways.student_levels(active), step, place)
        parts, task = distiller.task_loss(output, batch.targets)
        with autocast(distiller.device, distiller.precision):
            distances = pathways(features, teacher_features, active, batch.filled)
        moved = [*distiller.student_parameters, *pathways.parameters()]
        shares = {k: shared(distance, share) for k, distance in distances.items()}
        per_pathway: list[Gradients]
        per_pathway = [torch.autograd.grad(shares[k], moved, retain_graph=True, allow_unused=True) for k in active]
        total = shared(task, share) + sum(weights_k[k] * shares[k] for k in active)
        total.backward()
        return distiller.named(parts, task, distances, output, batch), per_pathway


def _sum(left: Gradients, right: Gradients) -> Gradients:
    pairs = zip(left, right, strict=True)
    return tuple(b if a is None else a if b is None else a + b for a, b in pairs)
