"""The training loop of every run: search, transfer and plain training differ only in their source of weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from timm.scheduler.scheduler import Scheduler
from torch import Tensor

from distpro_cli.errors import DistproError, NonFiniteLossError
from distpro_cli.process.schedule import Schedule
from distpro_cli.report.progress import Reporter
from distpro_cli.runs.checkpoint import load_checkpoint, save_checkpoint
from distpro_cli.runs.metrics import MetricsFile
from distpro_cli.runs.signals import Interrupted, Interruption
from distpro_cli.training.alpha import AlphaOptimizer
from distpro_cli.training.device import DeviceClock
from distpro_cli.training.hypergradients import BilevelStep
from distpro_cli.training.optimiser import learning_rate
from distpro_cli.training.step import Batch, StepLosses, Stepper

REPORT_STEPS = 10  # steps between two looks at the losses; a look makes a GPU wait


class Batches(Protocol):
    """Makes the batches of steps `start_step` to the end, on the device."""

    def __call__(self, start_step: int) -> Iterator[Batch]: ...


class Weights(Protocol):
    """A source of weights over time: does one step with the weights that belong to it."""

    def step(self, batch: Batch, step: int) -> tuple[StepLosses, StepLosses | None]:
        """Trains on one batch; returns its losses and, in a search, those of the outer batch."""

    def values(self) -> dict[str, float]:
        """Returns the weights in force by pathway id, for progress and metrics."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], step: int) -> None: ...


class ScheduledWeights:
    """Weights read from a process at training progress step / total_steps; no process is plain training."""

    def __init__(self, stepper: Stepper, total_steps: int, schedule: Schedule | None = None) -> None:
        self.stepper = stepper
        self.total_steps = total_steps
        self.schedule = schedule
        self._current: list[float] = []

    def step(self, batch: Batch, step: int) -> tuple[StepLosses, StepLosses | None]:
        """See `Weights`."""
        if self.schedule is not None:
            self._current = self.schedule.at(step / self.total_steps).tolist()
        return self.stepper.plain(batch, self._current, step), None

    def values(self) -> dict[str, float]:
        """See `Weights`."""
        return by_pathway(self.stepper, self._current)

    def state_dict(self) -> dict[str, Any]:
        """See `Weights`; a schedule has no state."""
        return {}

    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        """See `Weights`; a schedule has no state."""


class SearchedWeights:
    """Weights that a search moves: alpha is updated every `interval` steps by its hypergradient."""

    def __init__(self, stepper: Stepper, bilevel: BilevelStep, alpha: AlphaOptimizer, outer_batches: Batches) -> None:
        self.stepper = stepper
        self.bilevel = bilevel
        self.alpha = alpha
        self.outer_batches = outer_batches
        self._outer: Iterator[Batch] | None = None

    def step(self, batch: Batch, step: int) -> tuple[StepLosses, StepLosses | None]:
        """See `Weights`."""
        weights_k = self.alpha.weights()
        self.alpha.record(step)
        outer_losses = None
        if step % self.alpha.spec.interval == 0:
            if self._outer is None:
                self._outer = self.outer_batches(math.ceil(step / self.alpha.spec.interval))
            losses, outer_losses, hypergradient_k = self.bilevel(batch, next(self._outer), weights_k, step)
            self.alpha.update(hypergradient_k)
        else:
            losses = self.stepper.plain(batch, weights_k, step)
        if step + 1 == self.alpha.total_steps:
            self.alpha.record(step + 1)
        return losses, outer_losses

    def values(self) -> dict[str, float]:
        """See `Weights`."""
        return by_pathway(self.stepper, self.alpha.weights().tolist())

    def state_dict(self) -> dict[str, Any]:
        """See `Weights`."""
        return self.alpha.state_dict()

    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        """See `Weights`."""
        self.alpha.load_state_dict(state)


def by_pathway(stepper: Stepper, weights: list[float]) -> dict[str, float]:
    """Returns `weights` by pathway id; empty without pathways."""
    pathways = stepper.pair.pathways
    return {} if pathways is None else {i.id: w for i, w in zip(pathways.infos, weights, strict=True)}


@contextmanager
def _explaining_small_batches() -> Iterator[None]:
    """Says in our words what BatchNorm says of a batch with one value a channel."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise DistproError(
            "a batch of one image is too small for BatchNorm on a vector or a 1×1 map; set a larger batch_size, or "
            "give the part it comes from more images (data.train_images, search.outer_share)"
        ) from error


@dataclass
class Progress:
    """How far a run is, and what it has measured; all of it is in the checkpoint.

    Attributes:
        step: Steps done.
        top1: Test accuracy in percent after every epoch evaluated so far.
        train_seconds: Time spent in the run so far, evaluation included, over all its resumptions.
        device_seconds: Of these, what the device computed; see `DeviceClock`.
    """

    step: int = 0
    top1: list[float] = field(default_factory=list)
    train_seconds: float = 0.0
    device_seconds: float = 0.0


@dataclass(frozen=True)
class Plan:
    """Length and rhythm of a run."""

    title: str
    epochs: int
    steps_per_epoch: int
    checkpoint_path: Path | None
    checkpoint_seconds: float

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.epochs * self.steps_per_epoch


class Trainer:
    """Runs a plan to its end: steps, an evaluation after every epoch, checkpoints, metrics."""

    def __init__(
        self,
        plan: Plan,
        stepper: Stepper,
        schedule: Scheduler,
        weights: Weights,
        train_batches: Batches,
        evaluate: Callable[[], dict[str, float]],
        *,
        reporter: Reporter,
        metrics: MetricsFile,
        interruption: Interruption,
    ) -> None:
        self.plan = plan
        self.stepper = stepper
        self.schedule = schedule
        self.weights = weights
        self.train_batches = train_batches
        self.evaluate = evaluate
        self.reporter = reporter
        self.metrics = metrics
        self.interruption = interruption
        self.progress = Progress()
        self._clock = DeviceClock(stepper.device)
        self._unchecked: list[tuple[int, StepLosses, StepLosses | None]] = []

    def run(self) -> Progress:
        """Trains from where the progress stands to the end of the plan.

        Raises:
            NonFiniteLossError: a loss left the finite numbers.
            Interrupted: a signal came; the checkpoint is written.
        """
        self.metrics.truncate_after(self.progress.step, len(self.progress.top1))
        self._started = self._saved = time.monotonic()
        self._seconds_before = self.progress.train_seconds
        self.reporter.start(self.plan.title, self.plan.total_steps, self.progress.step)
        try:
            self._run()
        finally:
            self.reporter.stop()
        return self.progress

    def _run(self) -> None:
        progress, plan = self.progress, self.plan
        batches: Iterator[Batch] | None = None
        while True:
            if len(progress.top1) < progress.step // plan.steps_per_epoch:
                self._end_epoch()
            if progress.step == plan.total_steps:
                return
            if batches is None:
                batches = self.train_batches(progress.step)
            self._train_step(next(batches))
            self._checkpoint_if_due()

    def _train_step(self, batch: Batch) -> None:
        step = self.progress.step
        self.schedule.step_update(step)
        self.stepper.pair.student.train()
        with _explaining_small_batches(), self._clock:
            losses, outer_losses = self.weights.step(batch, step)
        self.progress.step += 1
        self._unchecked.append((step, losses, outer_losses))
        if self.stepper.device.type == "cpu" or self.progress.step % REPORT_STEPS == 0:
            self._check_losses()
        if step % REPORT_STEPS == 0 or self.progress.step == self.plan.total_steps:
            self._report(step, losses, outer_losses)

    def _end_epoch(self) -> None:
        self._check_losses()
        self.save()
        self.stepper.pair.student.eval()
        with self._clock:
            result = self.evaluate()
        self.stepper.pair.student.train()
        self.progress.top1.append(result["top1"])
        epoch = len(self.progress.top1)
        self.metrics.write({"step": self.progress.step, "epoch": epoch, **{f"test_{k}": v for k, v in result.items()}})
        self.reporter.epoch(epoch, self.plan.epochs, result["top1"])
        self.save()

    def _checkpoint_if_due(self) -> None:
        interrupted = self.interruption.pending
        if interrupted or time.monotonic() - self._saved >= self.plan.checkpoint_seconds:
            self._check_losses()
            self.save()
        if interrupted:
            raise Interrupted

    def _check_losses(self) -> None:
        """Raises if a loss since the last check is not finite; always run before a checkpoint is written."""
        for step, losses, outer_losses in self._unchecked:
            parts: list[tuple[str, Tensor]] = [("the task loss", losses.task)]
            infos = self.stepper.pair.pathways.infos if self.stepper.pair.pathways is not None else ()
            parts += [(f"the loss of pathway {infos[k].id}", d) for k, d in losses.distances.items()]
            if outer_losses is not None:
                parts.append(("the outer task loss", outer_losses.task))
            for name, value in parts:
                if not math.isfinite(value.item()):
                    self._stop_at_non_finite(step, name, value.item())
        self._unchecked.clear()

    def _stop_at_non_finite(self, step: int, name: str, value: float) -> None:
        path = self.plan.checkpoint_path
        last_good = f"the last good checkpoint is {path}" if path is not None and path.exists() else "no checkpoint yet"
        raise NonFiniteLossError(
            f"step {step}: {name} is {value}; {last_good}; try a smaller optimizer.lr or search.weight, "
            "clip_grad, or precision: float32"
        )

    def _report(self, step: int, losses: StepLosses, outer_losses: StepLosses | None) -> None:
        weights = self.weights.values()
        pathways = self.stepper.pair.pathways
        row: dict[str, Any] = {
            "step": step,
            "epoch": step / self.plan.steps_per_epoch,
            "lr": learning_rate(self.stepper.optimizer),
            "task": losses.task.item(),
        }
        if losses.correct_percent is not None:
            row["train_top1"] = losses.correct_percent.item()
        if outer_losses is not None and outer_losses.correct_percent is not None:
            row |= {"outer_task": outer_losses.task.item(), "outer_top1": outer_losses.correct_percent.item()}
        if pathways is not None:
            row["distances"] = {pathways.infos[k].id: d.item() for k, d in losses.distances.items()}
            row["weights"] = weights
        self.metrics.write(row)
        self.reporter.step(self.progress.step, row)

    def save(self) -> None:
        """Writes the checkpoint."""
        self._saved = time.monotonic()
        self.progress.train_seconds = self._seconds_before + self._saved - self._started
        self.progress.device_seconds += self._clock.take()
        if self.plan.checkpoint_path is not None:
            self.metrics.flush()
            save_checkpoint(self.state_dict(), self.plan.checkpoint_path)

    def state_dict(self) -> dict[str, Any]:
        """Returns all that a resumed run needs to end as if it had never stopped."""
        pair = self.stepper.pair
        return {
            "progress": {
                "step": self.progress.step,
                "top1": list(self.progress.top1),
                "train_seconds": self.progress.train_seconds,
                "device_seconds": self.progress.device_seconds,
            },
            "student": pair.student.model.state_dict(),
            "transforms": {} if pair.pathways is None else pair.pathways.state_dict(),
            "optimizer": self.stepper.optimizer.state_dict(),
            "weights": self.weights.state_dict(),
        }

    def resume(self) -> None:
        """Takes up the run where its checkpoint left it.

        Raises:
            DistproError: there is no checkpoint, or it cannot be read.
        """
        assert self.plan.checkpoint_path is not None
        state = load_checkpoint(self.plan.checkpoint_path, self.stepper.device)
        pair = self.stepper.pair
        pair.student.model.load_state_dict(state["student"])
        if pair.pathways is not None:
            pair.pathways.load_state_dict(state["transforms"])
        self.stepper.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])
        self.weights.load_state_dict(state["weights"], self.progress.step)
