"""One bi-level step: train the student on an inner batch, then compute how the outer loss depends on every weight.

d(outer loss)/d(weight_k) ≈ -lr · ⟨v, ∇_w D_k(w_t)⟩ with v = ∇_w L_outer(w_{t+1}), the task loss alone
(Deng et al. 2022, one-step unrolled). Three ways to find ⟨v, ∇_w D_k⟩ share one interface:

| name | how | cost |
| --- | --- | --- |
| cheap | gradient of D_k where the pathway starts times the start's change along v | one more student forward |
| exact | autograd through the student, pathway by pathway | K more backward passes |
| central-difference | second-order scheme of DARTS (Liu et al. 2019): whole steps at w ± εv | three more whole steps |

Shape legend: k pathways.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from distpro_cli.pathways.module import Pathways, Start
from distpro_cli.training.device import autocast
from distpro_cli.training.optimiser import learning_rate
from distpro_cli.training.step import Batch, StepLosses, Stepper, unmoved_buffers

SHIFT_LENGTH = 1e-3  # r: how far the parameters are moved along v, in the parameters' own Euclidean norm
DARTS_SHIFT_LENGTH = 1e-2  # DARTS's own choice for its central difference

Starts = dict[Start, Tensor]


class BilevelStep(Protocol):
    """Trains on `inner` as a plain step would, and returns its losses, the outer ones and the hypergradient [K]."""

    def __call__(
        self, inner: Batch, outer: Batch, weights_k: Tensor, step: int
    ) -> tuple[StepLosses, StepLosses, Tensor]: ...


class CheapHypergradient:
    """The default: cut the graph where the pathways start, and one more student forward at w_t + ξ v.

    A pathway starts at its student feature or, where pathways share a block (ReviewKD's fusion), at that block's
    output; call it F. Every pathway gets its own detached copy of F. Going back from each D_k to its copy gives
    g_k = ∂D_k/∂F for all k at the price of the ordinary backward pass. One forward of the student, and of the
    shared blocks, at w_t + ξ v gives the directional derivative Ḟ, and ⟨v, ∇_w D_k⟩ = ⟨g_k, Ḟ⟩: neither the
    teacher nor a pathway's own block runs twice.
    """

    def __init__(self, stepper: Stepper) -> None:
        self.stepper = stepper

    def __call__(
        self, inner: Batch, outer: Batch, weights_k: Tensor, step: int
    ) -> tuple[StepLosses, StepLosses, Tensor]:
        """See `BilevelStep`."""
        stepper, pathways = self.stepper, self._pathways
        losses, starts, gradients = self._train(inner, weights_k, step)
        # v is known only after the update; then both the student and the shared blocks go back to where they were.
        before = [p.detach().clone() for p in self._moved_parameters()]
        lr = learning_rate(stepper.optimizer)
        stepper.update()
        outer_losses, direction = outer_gradient(stepper, outer, step)
        changes, shift = self._changes(inner, starts, before, direction, step)
        products = [
            torch.sum(g.to(changes[start].dtype) * changes[start])
            for g, start in zip(gradients, pathways.start_of, strict=True)
        ]
        return losses, outer_losses, torch.stack(products) * (-lr / shift)

    def _train(self, inner: Batch, weights_k: Tensor, step: int) -> tuple[StepLosses, Starts, list[Tensor]]:
        """Fills the gradients of an inner step; returns losses, starts and g_k [same shape as its start]."""
        stepper, pathways = self.stepper, self._pathways
        active = range(len(pathways.infos))
        teacher_features = stepper.teach(inner.images_bchw, active)
        logits, features = stepper.study(inner, pathways.student_levels(active), step)
        with autocast(stepper.device, stepper.precision):
            starts = pathways.starts(features, active)
        task = stepper.task_loss(logits, inner.targets)
        distances: dict[int, Tensor] = {}
        gradients: list[Tensor] = []
        for k, info in enumerate(pathways.infos):
            copy = starts[pathways.start_of[k]].detach().requires_grad_()
            with autocast(stepper.device, stepper.precision):
                distance = pathways.distance(k, copy, teacher_features[info.teacher.number])
            distance.backward()
            transform_gradients = [p.grad for p in pathways.transforms[k].parameters() if p.grad is not None]
            if transform_gradients:
                torch._foreach_mul_(transform_gradients, weights_k[k])
            assert copy.grad is not None
            gradients.append(copy.grad)
            distances[k] = distance.detach()
        pulls = self._weighted_pulls(gradients, weights_k)
        reached = [start for start in pulls if starts[start].requires_grad]
        torch.autograd.backward(
            [task, *(starts[start] for start in reached)], [None, *(pulls[start] for start in reached)]
        )
        plain_starts = {start: tensor.detach() for start, tensor in starts.items()}
        return stepper.named(task, distances, logits, inner), plain_starts, gradients

    def _weighted_pulls(self, gradients: Sequence[Tensor], weights_k: Tensor) -> Starts:
        """Returns Σ_k weight_k · g_k of every start."""
        pulls: Starts = {}
        for k, start in enumerate(self._pathways.start_of):
            weighted = gradients[k] * weights_k[k].to(gradients[k].dtype)
            pulls[start] = pulls[start].add_(weighted) if start in pulls else weighted
        return pulls

    def _changes(
        self, inner: Batch, starts: Starts, before: list[Tensor], direction: list[Tensor], step: int
    ) -> tuple[Starts, Tensor]:
        """Returns F(w_t + ξ v) - F(w_t) of every start in float32, and ξ; all parameters end at step t + 1."""
        stepper = self.stepper
        student, moved = stepper.student_parameters, self._moved_parameters()
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(direction)))
        shift = SHIFT_LENGTH / norm.clamp_min(torch.finfo(norm.dtype).tiny ** 0.5)
        after = [p.detach().clone() for p in moved]
        with torch.no_grad(), unmoved_buffers(stepper.pair.student), unmoved_buffers(self._pathways.shared):
            torch._foreach_copy_(moved, before)
            if stepper.precision != "float32":
                # The difference of two bfloat16 forwards has no digits left, so both ends are run in float32.
                starts = self._starts(inner, step)
            torch._foreach_add_(student, torch._foreach_mul(direction, shift))
            shifted = self._starts(inner, step)
            torch._foreach_copy_(moved, after)
        return {start: shifted[start] - starts[start] for start in shifted}, shift

    def _starts(self, inner: Batch, step: int) -> Starts:
        pathways = self._pathways
        active = range(len(pathways.infos))
        self.stepper.seed_student(step)
        _, features = self.stepper.pair.student(inner.images_bchw, levels=pathways.student_levels(active), logits=False)
        return pathways.starts(features, active)

    def _moved_parameters(self) -> list[Tensor]:
        return [*self.stepper.student_parameters, *self._pathways.shared.parameters()]

    @property
    def _pathways(self) -> Pathways:
        assert self.stepper.pair.pathways is not None
        return self.stepper.pair.pathways


class ExactHypergradient:
    """Reference: ∇_w D_k by autograd for every pathway on its own; holds K gradients at once."""

    def __init__(self, stepper: Stepper) -> None:
        self.stepper = stepper

    def __call__(
        self, inner: Batch, outer: Batch, weights_k: Tensor, step: int
    ) -> tuple[StepLosses, StepLosses, Tensor]:
        """See `BilevelStep`."""
        stepper = self.stepper
        parameters = stepper.student_parameters
        pathways = stepper.pair.pathways
        assert pathways is not None
        active = range(len(pathways.infos))
        teacher_features = stepper.teach(inner.images_bchw, active)
        logits, features = stepper.study(inner, pathways.student_levels(active), step)
        task = stepper.task_loss(logits, inner.targets)
        with autocast(stepper.device, stepper.precision):
            distances = pathways(features, teacher_features, active)
        per_pathway = [
            torch.autograd.grad(distances[k], parameters, retain_graph=True, allow_unused=True) for k in active
        ]
        total = task + sum(weights_k[k] * distances[k] for k in active)
        total.backward()
        losses = stepper.named(task, distances, logits, inner)
        lr = learning_rate(stepper.optimizer)
        stepper.update()
        outer_losses, direction = outer_gradient(stepper, outer, step)
        return losses, outer_losses, torch.stack([inner_product(direction, g) for g in per_pathway]) * -lr


class CentralDifferenceHypergradient:
    """Reference: the second-order scheme of differentiable architecture search (Liu et al. 2019, eq. 7-8).

    An unrolled step w' = w - lr ∇L(w), the outer gradient v there, and the whole training loss with its backward
    pass at w + εv and w - εv; the derivative by a weight is its D_k, so the difference of the D_k is what is
    wanted. Then the inner step itself. Teacher and transform blocks run four times.
    """

    def __init__(self, stepper: Stepper) -> None:
        self.stepper = stepper

    def __call__(
        self, inner: Batch, outer: Batch, weights_k: Tensor, step: int
    ) -> tuple[StepLosses, StepLosses, Tensor]:
        """See `BilevelStep`."""
        stepper = self.stepper
        assert stepper.pair.pathways is not None
        parameters = stepper.student_parameters
        lr = learning_rate(stepper.optimizer)
        before = [p.detach().clone() for p in parameters]
        with unmoved_buffers(stepper.pair.student), unmoved_buffers(stepper.pair.pathways):
            self._distances(inner, weights_k, step)
            with torch.no_grad():
                for p in parameters:
                    if p.grad is not None:
                        p.sub_(p.grad, alpha=lr)
            stepper.optimizer.zero_grad(set_to_none=True)
            outer_losses, direction = outer_gradient(stepper, outer, step)
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(direction)))
            shift = DARTS_SHIFT_LENGTH / norm.clamp_min(torch.finfo(norm.dtype).tiny ** 0.5)
            ends = []
            for sign in (1, -1):
                with torch.no_grad():
                    moved = torch._foreach_add(before, torch._foreach_mul(direction, shift * sign))
                    torch._foreach_copy_(parameters, moved)
                ends.append(self._distances(inner, weights_k, step))
                stepper.optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                torch._foreach_copy_(parameters, before)
        losses = stepper.plain(inner, weights_k, step)
        return losses, outer_losses, (ends[0] - ends[1]) * (-lr / (2 * shift))

    def _distances(self, inner: Batch, weights_k: Tensor, step: int) -> Tensor:
        """Runs the training loss forward and backward; returns D_k, [K]."""
        losses, total = self.stepper.training_loss(inner, weights_k, step)
        total.backward()
        return torch.stack([losses.distances[k] for k in range(weights_k.numel())])


BILEVEL_STEPS: dict[str, type] = {
    "cheap": CheapHypergradient,
    "exact": ExactHypergradient,
    "central-difference": CentralDifferenceHypergradient,
}


def outer_gradient(stepper: Stepper, outer: Batch, step: int) -> tuple[StepLosses, list[Tensor]]:
    """Returns the task loss on the outer batch and v, its gradient by the student's parameters.

    The student's running statistics do not see the outer batch. Parameters the task does not reach get zeros.
    """
    # The buffers go back only after the backward pass, whose graph holds on to them.
    with unmoved_buffers(stepper.pair.student):
        logits, _ = stepper.study(outer, (), step)
        task = stepper.task_loss(logits, outer.targets)
        gradients = torch.autograd.grad(task, stepper.student_parameters, allow_unused=True)
    direction = [
        torch.zeros_like(p) if g is None else g for p, g in zip(stepper.student_parameters, gradients, strict=True)
    ]
    return stepper.named(task, {}, logits, outer), direction


def inner_product(left: Sequence[Tensor], right: Sequence[Tensor | None]) -> Tensor:
    """Returns ⟨left, right⟩ over all parameters, a scalar; None counts as zero."""
    products = [torch.sum(a * b) for a, b in zip(left, right, strict=True) if b is not None]
    return torch.stack(products).sum() if products else left[0].new_zeros(())
