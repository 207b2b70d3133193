"""One bi-level step: train the student on an inner batch, then say how the outer loss depends on every weight.

d(outer loss)/d(weight_k) ≈ -lr · ⟨v, ∇_w D_k(w_t)⟩ with v = ∇_w L_outer(w_{t+1}), the task loss alone
(Deng et al. 2022, one-step unrolled). Three ways to find ⟨v, ∇_w D_k⟩ stand behind one interface:

| name | how | cost |
| --- | --- | --- |
| cheap | gradient of D_k at the student's level times the level's change along v | one more student forward |
| exact | autograd through the student, pathway by pathway | K more backward passes |
| central-difference | second-order scheme of DARTS (Liu et al. 2019): whole steps at w ± εv | three more whole steps |

Shape legend: k pathways.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from distpro_cli.engine.device import autocast
from distpro_cli.engine.optim import learning_rate
from distpro_cli.engine.step import Batch, Features, StepLosses, Stepper, unmoved_buffers

SHIFT_LENGTH = 1e-3  # r: how far the parameters are moved along v, in the parameters' own Euclidean norm
DARTS_SHIFT_LENGTH = 1e-2  # DARTS's own choice for its central difference


class BilevelStep(Protocol):
    """Trains on `inner` as a plain step would, and returns its losses, the outer ones and the hypergradient [K]."""

    def __call__(
        self, inner: Batch, outer: Batch, weights_k: Tensor, step: int
    ) -> tuple[StepLosses, StepLosses, Tensor]: ...


class CheapHypergradient:
    """The default: cut the graph at the student's levels, and one more student forward at w_t + ξ v.

    Every pathway gets its own detached copy of its student feature F. Going back from Σ D_k to these copies gives
    g_k = ∂D_k/∂F for all k at the price of the ordinary backward pass. One forward of the student at w_t + ξ v
    gives the features' directional derivative Ḟ, and ⟨v, ∇_w D_k⟩ = ⟨g_k, Ḟ⟩: neither the teacher nor a transform
    block runs twice.
    """

    def __init__(self, stepper: Stepper) -> None:
        self.stepper = stepper

    def __call__(
        self, inner: Batch, outer: Batch, weights_k: Tensor, step: int
    ) -> tuple[StepLosses, StepLosses, Tensor]:
        """See `BilevelStep`."""
        stepper = self.stepper
        parameters = stepper.student_parameters
        losses, features, gradients = self._train(inner, weights_k, step)
        before = [p.detach().clone() for p in parameters]
        lr = learning_rate(stepper.optimizer)
        stepper.update()
        outer_losses, direction = outer_gradient(stepper, outer, step)
        changes, shift = self._feature_changes(inner, features, before, direction, step)
        products = [
            torch.sum(g.to(changes[level].dtype) * changes[level])
            for g, level in zip(gradients, self._levels(), strict=True)
        ]
        return losses, outer_losses, torch.stack(products) * (-lr / shift)

    def _train(self, inner: Batch, weights_k: Tensor, step: int) -> tuple[StepLosses, Features, list[Tensor]]:
        """Fills the gradients of an inner step; returns losses, features and g_k [same shape as its feature]."""
        stepper = self.stepper
        pathways = stepper.pair.pathways
        assert pathways is not None
        active = range(len(pathways.infos))
        teacher_features = stepper.teach(inner.images_bchw, active)
        logits, features = stepper.study(inner, stepper.student_levels(active), step)
        task = stepper.task_loss(logits, inner.targets)
        distances: dict[int, Tensor] = {}
        gradients: list[Tensor] = []
        for k, info in enumerate(pathways.infos):
            copy = features[info.student.number].detach().requires_grad_()
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
        reached = [level for level in pulls if features[level].requires_grad]
        torch.autograd.backward(
            [task, *(features[level] for level in reached)], [None, *(pulls[level] for level in reached)]
        )
        plain_features = {level: feature.detach() for level, feature in features.items()}
        return stepper.named(task, distances, logits, inner), plain_features, gradients

    def _weighted_pulls(self, gradients: Sequence[Tensor], weights_k: Tensor) -> Features:
        """Returns Σ_k weight_k · g_k of every student level."""
        pulls: Features = {}
        for k, level in enumerate(self._levels()):
            weighted = gradients[k] * weights_k[k].to(gradients[k].dtype)
            pulls[level] = pulls[level].add_(weighted) if level in pulls else weighted
        return pulls

    def _feature_changes(
        self, inner: Batch, features: Features, before: list[Tensor], direction: list[Tensor], step: int
    ) -> tuple[Features, Tensor]:
        """Returns F(w_t + ξ v) - F(w_t) of every student level in float32, and ξ; the student ends at w_{t+1}."""
        stepper = self.stepper
        parameters = stepper.student_parameters
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(direction)))
        shift = SHIFT_LENGTH / norm.clamp_min(torch.finfo(norm.dtype).tiny ** 0.5)
        after = [p.detach().clone() for p in parameters]
        with torch.no_grad(), unmoved_buffers(stepper.pair.student):
            if stepper.precision != "float32":
                # The difference of two bfloat16 forwards has no digits left, so both ends are run in float32.
                torch._foreach_copy_(parameters, before)
                features = self._features(inner, features, step)
            torch._foreach_copy_(parameters, torch._foreach_add(before, torch._foreach_mul(direction, shift)))
            shifted = self._features(inner, features, step)
            torch._foreach_copy_(parameters, after)
        return {level: shifted[level] - features[level] for level in shifted}, shift

    def _features(self, inner: Batch, levels: Features, step: int) -> Features:
        self.stepper.seed_student(step)
        features: Features
        _, features = self.stepper.pair.student(inner.images_bchw, levels=set(levels), logits=False)
        return features

    def _levels(self) -> list[int]:
        assert self.stepper.pair.pathways is not None
        return [info.student.number for info in self.stepper.pair.pathways.infos]


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
        logits, features = stepper.study(inner, stepper.student_levels(active), step)
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
