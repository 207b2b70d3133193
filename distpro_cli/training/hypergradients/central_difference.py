"""Reference hypergradient of differentiable architecture search.

Shape legend: k pathways.
"""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from distpro_cli.registry import positive_number
from distpro_cli.tasks.task import Batch
from distpro_cli.training.hypergradients.base import (
    Hypergradient,
    outer_gradient,
    register_hypergradient,
    shift_along,
)
from distpro_cli.training.optimiser import learning_rate
from distpro_cli.training.step import Distiller, StepLosses
from distpro_cli.training.tensors import unmoved_buffers


@register_hypergradient("central-difference")
class CentralDifferenceHypergradient(Hypergradient):
    """The second-order scheme of differentiable architecture search (Liu et al. 2019, eq. 7-8).

    An unrolled step w' = w - lr ∇L(w), the outer gradient v there, and the whole training loss with its backward
    pass at w + εv and w - εv; the derivative by a weight is its D_k, so the difference of the D_k is what is
    wanted. Then the inner step itself. Teacher and transform blocks run four times.

    Args:
        distiller: Runs the steps.
        shift_length: ‖εv‖; DARTS's own choice is the default.
    """

    def __init__(self, distiller: Distiller, *, shift_length: float = 1e-2) -> None:
        super().__init__(distiller)
        self.shift_length = positive_number("shift_length", shift_length)

    @override
    def step(self, inner: Batch, outer: Batch, weights_k: Tensor, step: int) -> tuple[StepLosses, StepLosses, Tensor]:
        distiller, parameters = self.distiller, self.distiller.student_parameters
        lr = learning_rate(distiller.optimizer)
        before = [p.detach().clone() for p in parameters]
        with unmoved_buffers(distiller.student), unmoved_buffers(distiller.pathways):
            self._distances(inner, weights_k, step)
            with torch.no_grad():
                for p in parameters:
                    if p.grad is not None:
                        p.sub_(p.grad, alpha=lr)
            distiller.optimizer.zero_grad(set_to_none=True)
            outer_losses, direction = outer_gradient(distiller, outer, step)
            shift = shift_along(direction, self.shift_length)
            ends = []
            for sign in (1, -1):
                with torch.no_grad():
                    moved = torch._foreach_add(before, torch._foreach_mul(direction, shift * sign))
                    torch._foreach_copy_(parameters, moved)
                ends.append(self._distances(inner, weights_k, step))
                distiller.optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                torch._foreach_copy_(parameters, before)
        losses = distiller.step(inner, weights_k, step)
        return losses, outer_losses, (ends[0] - ends[1]) * (-lr / (2 * shift))

    def _distances(self, inner: Batch, weights_k: Tensor, step: int) -> Tensor:
        """Runs the training loss forward and backward; returns D_k, [K]."""
        losses = self.distiller.backward(inner, weights_k, step)
        return torch.stack([losses.distances[k] for k in range(weights_k.numel())])
