"""What every hypergradient is: a bi-level step with options and state.

d(outer loss)/d(weight_k) = -lr · ⟨u, ∇_w D_k(w_t)⟩, where u is v = ∇_w L_outer(w_{t+1}), of the task loss alone,
pulled back through the optimiser (`pull_back`); with plain SGD u = v (Deng et al. 2022, one-step unrolled).

A new one is a subclass of `Hypergradient` under `@register_hypergradient("name")`, in a file of this package or of
the user's, which a recipe names as `search.hypergradient: path/to/file.py:Class`.

Shape legend: k pathways.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor

from distpro_cli.registry import Registry, check_options
from distpro_cli.tasks.task import Batch
from distpro_cli.training.step import Distiller, StepLosses, weighted_losses
from distpro_cli.training.tensors import unmoved_buffers


class Hypergradient(ABC):
    """Trains the student as a plain step would, and says how the outer loss depends on every weight.

    Options are keyword-only arguments of the constructor; a recipe sets them by `search.hypergradient_options`.

    Args:
        distiller: Runs the steps.
    """

    def __init__(self, distiller: Distiller) -> None:
        self.distiller = distiller

    @abstractmethod
    def step(self, inner: Batch, outer: Batch, weights_k: Tensor, step: int) -> tuple[StepLosses, StepLosses, Tensor]:
        """Trains on `inner`, on the device; called for the steps that move alpha.

        Args:
            inner: What the student is trained on.
            outer: What judges.
            weights_k: In force, [K].
            step: Number of the step.

        Returns:
            The losses of both batches, and d(outer loss)/d(weight), [K]; the same on all ranks that share the batches,
            whose means of what depends on their own images `distiller.world` gives.
        """

    def observe(self, inner: Batch, step: int) -> None:
        """Sees the batch of a step between two moves of alpha, right before the student is trained on it."""

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed search needs: tensors and plain values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave."""


HYPERGRADIENTS: Registry[type[Hypergradient]] = Registry("hypergradient", package="distpro_cli.training.hypergradients")
register_hypergradient = HYPERGRADIENTS.register


def make_hypergradient(name: str, distiller: Distiller, options: Mapping[str, Any] | None = None) -> Hypergradient:
    """Builds the hypergradient called `name`, or `Class` from `file.py:Class`.

    Raises:
        DistproError: unknown name or option, or an option's value out of range.
    """
    kind = HYPERGRADIENTS.find_subclass(name, Hypergradient)  # type: ignore[type-abstract]
    check_options("hypergradient", name, kind, options or {})
    return kind(distiller, **(options or {}))


def outer_gradient(distiller: Distiller, outer: Batch, step: int) -> tuple[StepLosses, list[Tensor]]:
    """Returns the task loss on the outer batch and v, its gradient by the student's parameters, both over all ranks.

    The student's running statistics do not see the outer batch. Parameters the task does not reach get zeros.
    """
    found = []
    direction: list[Tensor | None] = [None] * len(distiller.student_parameters)
    # The buffers go back only after the backward pass, whose graph holds on to them.
    with unmoved_buffers(distiller.student):
        for place, (part, share) in enumerate(distiller.micro_batches(outer)):
            output, _ = distiller.student_forward(part, (), step, place)
            parts = distiller.judge.losses(output, part.targets)
            task = reduce(add, parts.values())
            loss = task if share == 1.0 else task * share
            gradients = torch.autograd.grad(loss, distiller.student_parameters, allow_unused=True)
            direction = [
                before if g is None else g if before is None else before + g
                for before, g in zip(direction, gradients, strict=True)
            ]
            found.append((distiller.named(parts, task, {}, output, part), share))
    v = [torch.zeros_like(p) if g is None else g for p, g in zip(distiller.student_parameters, direction, strict=True)]
    losses, world = weighted_losses(found), distiller.world
    if world.size == 1:
        return losses, v
    values = world.mean([*v, *(value.to(v[0]) for value in losses.tensors())])
    return losses.holding(values[len(v) :]), values[: len(v)]


def shift_along(direction: list[Tensor], length: float) -> Tensor:
    """Returns ξ with ‖ξ · direction‖ = length over all parameters, a scalar; finite where the direction is zero."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(direction)))
    shift: Tensor = length / norm.clamp_min(torch.finfo(norm.dtype).tiny ** 0.5)
    return shift
