"""A hypergradient of a user's own, with an option and state: the cheap one, averaged over moves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from distpro_cli.tasks.task import Batch
from distpro_cli.training.hypergradients import register_hypergradient
from distpro_cli.training.hypergradients.cheap import CheapHypergradient
from distpro_cli.training.step import Distiller, StepLosses


@register_hypergradient("averaged")
class Averaged(CheapHypergradient):
    """h ← momentum · h + (1 − momentum) · new; counts the steps it sees."""

    def __init__(self, distiller: Distiller, *, momentum: float = 0.9) -> None:
        super().__init__(distiller)
        self.momentum = momentum
        self.average: Tensor | None = None
        self.moves = self.seen = 0

    def step(self, inner: Batch, outer: Batch, weights_k: Tensor, step: int) -> tuple[StepLosses, StepLosses, Tensor]:
        losses, outer_losses, new_k = super().step(inner, outer, weights_k, step)
        self.average = new_k if self.average is None else self.momentum * self.average + (1 - self.momentum) * new_k
        self.moves += 1
        return losses, outer_losses, self.average

    def observe(self, inner: Batch, step: int) -> None:
        self.seen += 1

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average, "moves": self.moves, "seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.average, self.moves, self.seen = state["average"], state["moves"], state["seen"]
