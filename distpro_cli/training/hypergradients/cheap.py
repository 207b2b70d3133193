"""The default hypergradient: one more student forward, whatever the number of pathways.

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
from distpro_cli.training.step import Distiller, Starts, StepLosses, unmoved_buffers


@register_hypergradient("cheap")
class CheapHypergradient(Hypergradient):
    """Cuts the graph where the pathways start, and runs the student once more at w_t + ξ v.

    A pathway starts at its student feature or, where pathways share a block (ReviewKD's fusion), at that block's
    output; call it F. `Distiller.backward` gives g_k = ∂D_k/∂F for all k at the price of the ordinary backward pass.
    One forward of the student, and of the shared blocks, at w_t + ξ v gives the directional derivative Ḟ, and
    ⟨v, ∇_w D_k⟩ = ⟨g_k, Ḟ⟩: neither the teacher nor a pathway's own block runs twice.

    Args:
        distiller: Runs the steps.
        shift_length: ‖ξ v‖: how far the parameters are moved along v, in their own Euclidean norm.
    """

    def __init__(self, distiller: Distiller, *, shift_length: float = 1e-3) -> None:
        super().__init__(distiller)
        self.shift_length = positive_number("shift_length", shift_length)

    @override
    def step(self, inner: Batch, outer: Batch, weights_k: Tensor, step: int) -> tuple[StepLosses, StepLosses, Tensor]:
        lr = learning_rate(self.distiller.optimizer)
        losses, outer_losses, pairs, shift = self.differentiate(inner, outer, weights_k, step)
        products = [torch.sum(gradient.to(change.dtype) * change) for gradient, change in pairs]
        return losses, outer_losses, torch.stack(products) * (-lr / shift)

    def differentiate(
        self, inner: Batch, outer: Batch, weights_k: Tensor, step: int
    ) -> tuple[StepLosses, StepLosses, list[tuple[Tensor, Tensor]], Tensor]:
        """Takes the step; returns both losses, g_k and ξḞ of every pathway where it starts, and ξ."""
        distiller, start_of = self.distiller, self.distiller.pathways.start_of
        gradients: dict[int, Tensor] = {}
        losses, starts = distiller.backward(inner, weights_k, step, gradients)
        # v is known only after the update; then both the student and the shared blocks go back to where they were.
        before = [p.detach().clone() for p in self._moved_parameters()]
        distiller.update()
        outer_losses, direction = outer_gradient(distiller, outer, step)
        changes, shift = self._changes(inner, starts, before, direction, step)
        pairs = [(gradients[k], changes[start]) for k, start in enumerate(start_of)]
        return losses, outer_losses, pairs, shift

    def _changes(
        self, inner: Batch, starts: Starts, before: list[Tensor], direction: list[Tensor], step: int
    ) -> tuple[Starts, Tensor]:
        """Returns F(w_t + ξ v) - F(w_t) of every start in float32, and ξ; all parameters end at step t + 1."""
        distiller = self.distiller
        student, moved = distiller.student_parameters, self._moved_parameters()
        shift = shift_along(direction, self.shift_length)
        after = [p.detach().clone() for p in moved]
        with torch.no_grad(), unmoved_buffers(distiller.student), unmoved_buffers(distiller.pathways.shared):
            torch._foreach_copy_(moved, before)
            if distiller.precision != "float32":
                # The difference of two bfloat16 forwards has no digits left, so both ends are run in float32.
                starts = self._starts(inner, step)
            torch._foreach_add_(student, torch._foreach_mul(direction, shift))
            shifted = self._starts(inner, step)
            torch._foreach_copy_(moved, after)
        return {start: shifted[start] - starts[start] for start in shifted}, shift

    def _starts(self, inner: Batch, step: int) -> Starts:
        pathways = self.distiller.pathways
        active = range(len(pathways.infos))
        self.distiller.seed_student(step)
        _, features = self.distiller.student(inner.images_bchw, levels=pathways.student_levels(active), output=False)
        return pathways.starts(features, active)

    def _moved_parameters(self) -> list[Tensor]:
        return [*self.distiller.student_parameters, *self.distiller.pathways.shared.parameters()]
