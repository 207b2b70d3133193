"""The default hypergradient: one more student forward, whatever the number of pathways.

Shape legend: k pathways.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from distpro_cli.networks.compiled import as_written, is_compiled
from distpro_cli.registry import positive_number, yes_or_no
from distpro_cli.tasks.task import Batch
from distpro_cli.training.device import full_float32, rounds_float32
from distpro_cli.training.hypergradients.base import (
    Hypergradient,
    outer_gradient,
    register_hypergradient,
    shift_along,
)
from distpro_cli.training.optimiser import learning_rate
from distpro_cli.training.pull_back import PulledBack, Update, largest_norm
from distpro_cli.training.step import Distiller, Kept, Starts, StepLosses, joined
from distpro_cli.training.tensors import standing_at, unmoved_buffers


class Differentiated(NamedTuple):
    """What the step and the shifted forward gave.

    Attributes:
        losses: Of the inner batch.
        outer_losses: Of the outer batch.
        pairs: g_k and ξḞ of every pathway, where it starts.
        shift: ξ.
        pulled: The outer gradient, through the update.
        own_k: What clipping adds for the pathways' own blocks, [K].
    """

    losses: StepLosses
    outer_losses: StepLosses
    pairs: list[tuple[Tensor, Tensor]]
    shift: Tensor
    pulled: PulledBack
    own_k: Tensor


@register_hypergradient("cheap")
class CheapHypergradient(Hypergradient):
    """Cuts the graph where the pathways start, and runs the student once more at w_t + ξ u.

    A pathway starts at its student feature or, where pathways share a block (ReviewKD's fusion), at that block's
    output; call it F. `Distiller.backward` gives g_k = ∂D_k/∂F for all k at the price of the ordinary backward pass.
    One forward of the student, and of the shared blocks, at w_t + ξ u gives the directional derivative Ḟ, and
    ⟨u, ∇_w D_k⟩ = ⟨g_k, Ḟ⟩: neither the teacher nor a pathway's own block runs twice. u is v, the outer gradient,
    pulled back through the optimiser. Where the gradient is clipped, the shared blocks are moved as well, and of a
    pathway's own block, which sees its D_k alone, ⟨g_θ, ∇_θ D_k⟩ = weight_k ‖∇_θ D_k‖² is known from its gradient.

    Args:
        distiller: Runs the steps.
        shift_length: ‖ξ u‖: how far the parameters are moved along u, in their own Euclidean norm.
        keep_bfloat16: Whether g_k is rounded to bfloat16 while it waits for Ḟ, for half of the memory: K times the
            student's feature of the whole batch, however small its micro-batches are.
    """

    def __init__(self, distiller: Distiller, *, shift_length: float = 1e-3, keep_bfloat16: bool = False) -> None:
        super().__init__(distiller)
        self.shift_length = positive_number("shift_length", shift_length)
        self.keep_bfloat16 = yes_or_no("keep_bfloat16", keep_bfloat16)

    @override
    def step(self, inner: Batch, outer: Batch, weights_k: Tensor, step: int) -> tuple[StepLosses, StepLosses, Tensor]:
        lr = learning_rate(self.distiller.optimizer)
        found = self.differentiate(inner, outer, weights_k, step)
        products = [torch.sum(gradient.to(change.dtype) * change) for gradient, change in found.pairs]
        (product_k,) = self.distiller.world.mean([torch.stack(products)])
        unclipped = product_k * (-lr / found.shift)
        hypergradient_k = found.pulled.scale * (unclipped + lr * found.pulled.kappa * found.own_k)
        return found.losses, found.outer_losses, hypergradient_k

    def differentiate(self, inner: Batch, outer: Batch, weights_k: Tensor, step: int) -> Differentiated:
        """Takes the step, and runs the student once more a little along u."""
        distiller, start_of = self.distiller, self.distiller.pathways.start_of
        rounded = distiller.precision != "float32" or rounds_float32(distiller.device) or is_compiled(distiller.student)
        # The difference of two rounded forwards has no digits left, so then both ends are run in full float32. Compiled
        # ones round each in its own way, so then both are run as they are written.
        gradients: dict[int, Tensor] = {}
        starts: Starts | None = None if rounded else {}
        kept = Kept(gradients, torch.bfloat16 if self.keep_bfloat16 else None, starts=starts)
        losses = distiller.backward(inner, weights_k, step, kept)
        own_k = self._own_products(weights_k)
        # v is known only after the update; then both the student and the shared blocks go back to where they were.
        update = Update(distiller, list(distiller.pathways.shared.parameters()))
        distiller.update()
        outer_losses, v = outer_gradient(distiller, outer, step)
        pulled = update.pull_back(v)
        changes, shift = self._changes(inner, starts, update.before, pulled.direction, step)
        pairs = [(gradients[k], changes[start]) for k, start in enumerate(start_of)]
        return Differentiated(losses, outer_losses, pairs, shift, pulled, own_k)

    def _changes(
        self, inner: Batch, starts: Starts | None, before: list[Tensor], direction: list[Tensor], step: int
    ) -> tuple[Starts, Tensor]:
        """Returns F(w_t + ξ u) - F(w_t) of every start in float32, and ξ; all parameters end at step t + 1.

        `starts` is F(w_t); None: it is run again. `before` is w_t, and w_t + ξ u afterwards.
        """
        distiller = self.distiller
        moved = [*distiller.student_parameters, *distiller.pathways.shared.parameters()]
        shift = shift_along(direction, self.shift_length)
        with (
            torch.no_grad(),
            full_float32(),
            as_written(distiller.student),
            unmoved_buffers(distiller.student),
            unmoved_buffers(distiller.pathways.shared),
            standing_at(moved, before),
        ):
            if starts is None:
                starts = self._starts(inner, step)
            torch._foreach_add_(before[: len(direction)], torch._foreach_mul(direction, shift))
            shifted = self._starts(inner, step)
        # Taken out one by one, so that no third tensor of the whole batch stands beside every two.
        return {start: shifted.pop(start) - starts.pop(start) for start in [*shifted]}, shift

    def _starts(self, inner: Batch, step: int) -> Starts:
        pathways = self.distiller.pathways
        active = range(len(pathways.infos))
        levels = pathways.student_levels(active)
        found = []
        for place, (part, _) in enumerate(self.distiller.micro_batches(inner)):
            self.distiller.seed_student(step, place)
            _, features = self.distiller.student(part.images_bchw, levels=levels, output=False, sizes=part.sizes)
            found.append(pathways.starts(features, active))
        return joined(found)

    def _own_products(self, weights_k: Tensor) -> Tensor:
        """Returns ⟨g_θ, ∇_θ D_k⟩ by pathway, [K], where θ is its own block and g_θ = weight_k ∇_θ D_k lies there now.

        Zeros where nothing clips, which is all that they are for.
        """
        if largest_norm(self.distiller.optimizer, self.distiller.clip_grad) is None:
            return torch.zeros_like(weights_k)
        squares = [
            sum((p.grad.square().sum() for p in block.parameters() if p.grad is not None), weights_k.new_zeros(()))
            for block in self.distiller.pathways.transforms
        ]
        return torch.where(weights_k > 0, torch.stack(squares) / weights_k, 0.0)
