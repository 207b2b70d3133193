"""Where the weights of a step come from: nowhere, a process, or a search. The loop knows this interface alone."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor
from typing_extensions import override

from distpro_cli.process.schedule import Schedule
from distpro_cli.tasks.task import Batch, map_tensors
from distpro_cli.training.alpha import AlphaOptimizer, Record
from distpro_cli.training.hypergradients import Hypergradient
from distpro_cli.training.optimiser import learning_rate
from distpro_cli.training.scale import Scale
from distpro_cli.training.step import Distiller, StepLosses, Stepper

Batches = Callable[[int], Iterator[Batch]]  # makes the batches of a step and all that follow, on the device


class Weights(ABC):
    """A source of weights over time: does one step with the weights that belong to it.

    Attributes:
        stepper: Runs the steps.
    """

    def __init__(self, stepper: Stepper) -> None:
        self.stepper = stepper

    @abstractmethod
    def step(self, batch: Batch, step: int) -> tuple[StepLosses, StepLosses | None]:
        """Trains on one batch; returns its losses and, in a search, those of the outer batch."""

    def current(self) -> Sequence[float]:
        """Returns the weights in force, [K]; empty without pathways."""
        return ()

    def by_pathway(self) -> dict[str, float]:
        """Returns the weights in force by pathway id, for progress and metrics."""
        return {info.id: weight for info, weight in zip(self.stepper.trained.infos, self.current(), strict=True)}

    def scale(self) -> Sequence[float]:
        """Returns the unit of every weight, [K] > 0; empty where weights are factors of the distances."""
        return ()

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed run needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""


class NoWeights(Weights):
    """No distillation: a network is trained alone."""

    @override
    def step(self, batch: Batch, step: int) -> tuple[StepLosses, StepLosses | None]:
        return self.stepper.step_alone(batch, step), None


class ScheduledWeights(Weights):
    """Weights read from a process at training progress step / total_steps.

    Args:
        distiller: Runs the steps.
        schedule: Of a process whose columns are the pair's pathways.
        total_steps: Of the run.
        unit: Of the schedule's weights, measured in this run; None: they are factors of the distances.
    """

    def __init__(self, distiller: Distiller, schedule: Schedule, total_steps: int, unit: Scale | None = None) -> None:
        super().__init__(distiller)
        self.distiller = distiller
        self.schedule = schedule
        self.total_steps = total_steps
        self.unit = unit
        self._current: Sequence[float | Tensor] = [0.0] * len(distiller.trained.infos)
        self._scale_k: Tensor | None = None  # of the current weights

    @override
    def step(self, batch: Batch, step: int) -> tuple[StepLosses, StepLosses | None]:
        self._current = self.schedule.at(step / self.total_steps).tolist()
        if self.unit is None:
            return self.distiller.step(batch, self._current, step), None
        self.unit.look(batch, step)
        # What is dropped stays the number 0, which is not computed.
        self._scale_k = self.unit.scale_k
        self._current = [w and w * scale for w, scale in zip(self._current, self._scale_k, strict=True)]
        losses = self.distiller.step(batch, self._current, step)
        self.unit.see(losses)
        return losses, None

    @override
    def current(self) -> Sequence[float]:
        return [float(weight) for weight in self._current]

    @override
    def scale(self) -> Sequence[float]:
        scale: list[float] = [] if self._scale_k is None else self._scale_k.tolist()
        return scale

    @override
    def state_dict(self) -> dict[str, Any]:
        return {} if self.unit is None else {"scale": self.unit.state_dict()}

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.unit is not None:
            self.unit.load_state_dict(state["scale"])


class MovedWeights(Weights):
    """Weights that what the student learns moves, every `interval` steps, and whose way is recorded.

    Args:
        distiller: Runs the steps.
        record: Of the weights.
        interval: Steps from one move to the next.
        outer_batches: By number of the move.
    """

    def __init__(self, distiller: Distiller, record: Record, interval: int, outer_batches: Batches) -> None:
        super().__init__(distiller)
        self.distiller = distiller
        self.record = record
        self.interval = interval
        self.outer_batches = outer_batches
        self._outer: Iterator[Batch] | None = None

    @abstractmethod
    def weights(self) -> Tensor:
        """Returns the weights in force, [K] ≥ 0, without gradient."""

    def scores(self) -> Tensor:
        """Returns the raw scores behind the weights, [K]; by default the weights themselves."""
        return self.weights()

    def scale_in_force(self) -> Tensor | None:
        """Returns the unit of the weights in force, [K] > 0; None: they are factors of the distances."""
        return None

    @abstractmethod
    def move(self, batch: Batch, weights_k: Tensor, step: int) -> tuple[StepLosses, StepLosses | None]:
        """Trains on one batch with the weights in force, then moves them; returns as `step` does."""

    def between(self, batch: Batch, weights_k: Tensor, step: int) -> StepLosses:
        """Trains on one batch between two moves."""
        return self.distiller.step(batch, weights_k, step)

    def next_outer(self, step: int) -> Batch:
        """Returns the outer batch of a step that moves the weights."""
        if self._outer is None:
            self._outer = self.outer_batches(math.ceil(step / self.interval))
        return next(self._outer)

    @override
    def step(self, batch: Batch, step: int) -> tuple[StepLosses, StepLosses | None]:
        weights_k = self.weights()
        self.record.write(step, self.scores(), weights_k, self.scale_in_force())
        outer_losses = None
        if step % self.interval == 0:
            losses, outer_losses = self.move(batch, weights_k, step)
        else:
            losses = self.between(batch, weights_k, step)
        if step + 1 == self.record.total_steps:
            self.record.write(step + 1, self.scores(), self.weights(), self.scale_in_force())
        return losses, outer_losses

    @override
    def current(self) -> Sequence[float]:
        weights: list[float] = self.weights().tolist()
        return weights

    @override
    def scale(self) -> Sequence[float]:
        scale_k = self.scale_in_force()
        scale: list[float] = [] if scale_k is None else scale_k.tolist()
        return scale

    @override
    def state_dict(self) -> dict[str, Any]:
        return self.record.state_dict()

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.record.load_state_dict(state)


class SearchedWeights(MovedWeights):
    """Weights that a search moves: alpha is updated by its hypergradient.

    Args:
        distiller: Runs the steps between two moves.
        hypergradient: Runs the steps that move alpha.
        alpha: What is moved.
        record: Of it.
        outer_batches: By number of the move.
        unit: Of the weights; None: they are factors of the distances.
    """

    def __init__(
        self,
        distiller: Distiller,
        hypergradient: Hypergradient,
        alpha: AlphaOptimizer,
        record: Record,
        outer_batches: Batches,
        unit: Scale | None = None,
    ) -> None:
        super().__init__(distiller, record, alpha.spec.steps_per_update(record.total_steps), outer_batches)
        self.hypergradient = hypergradient
        self.alpha = alpha
        self.unit = unit

    @override
    def step(self, batch: Batch, step: int) -> tuple[StepLosses, StepLosses | None]:
        if self.unit is None:
            return super().step(batch, step)
        self.unit.look(batch, step)
        self.alpha.scale_k = self.unit.scale_k
        losses, outer_losses = super().step(batch, step)
        self.unit.see(losses)
        return losses, outer_losses

    @override
    def weights(self) -> Tensor:
        return self.alpha.weights()

    @override
    def scores(self) -> Tensor:
        return self.alpha.alpha_k

    @override
    def scale_in_force(self) -> Tensor | None:
        return None if self.unit is None else self.alpha.scale_k

    @override
    def move(self, batch: Batch, weights_k: Tensor, step: int) -> tuple[StepLosses, StepLosses | None]:
        outer = self.next_outer(step)
        losses, outer_losses, hypergradient_k = self.hypergradient.step(batch, outer, weights_k, step)
        lr = learning_rate(self.stepper.optimizer)
        if lr and not self.alpha.spec.lr_in_hypergradient:
            hypergradient_k = hypergradient_k / lr
        self.alpha.update(hypergradient_k)
        return losses, outer_losses

    @override
    def between(self, batch: Batch, weights_k: Tensor, step: int) -> StepLosses:
        self.hypergradient.observe(batch, step)
        return super().between(batch, weights_k, step)

    @override
    def state_dict(self) -> dict[str, Any]:
        own = {**self.alpha.state_dict(), "hypergradient": self.hypergradient.state_dict()}
        if self.unit is not None:
            own["scale"] = self.unit.state_dict()
        return {**own, **super().state_dict()}

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.alpha.load_state_dict(state)
        own = state.get("hypergradient", {})  # 0.1.0 wrote none
        self.hypergradient.load_state_dict(map_tensors(own, lambda tensor: tensor.to(self.stepper.device)))
        if self.unit is not None:
            self.unit.load_state_dict(state["scale"])
            self.alpha.scale_k = self.unit.scale_k
