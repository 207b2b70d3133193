"""The training loop of every run: search, transfer and plain training differ only in their source of weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn

from distpro_cli.errors import DistproError, NonFiniteLossError, first_line
from distpro_cli.metric import Metric
from distpro_cli.networks.levels import TappedNetwork
from distpro_cli.networks.weights import not_finite, unbounded_tensors
from distpro_cli.runs.checkpoint import load_checkpoint, save_checkpoint
from distpro_cli.runs.context import RunContext
from distpro_cli.runs.metrics import MetricsFile
from distpro_cli.runs.signals import Interrupted
from distpro_cli.tasks.task import Batch
from distpro_cli.training.device import DeviceClock, explaining_kernels
from distpro_cli.training.optimiser import learning_rate
from distpro_cli.training.step import StepLosses
from distpro_cli.training.weights import Batches, Weights
from distpro_cli.world import current_world

REPORT_STEPS = 10  # steps between two looks at the losses; a look makes a GPU wait


@dataclass
class Progress:
    """How far a run is, and what it has measured; all of it is in the checkpoint.

    Attributes:
        step: Steps done.
        history: The task's metric on the test images after every epoch evaluated so far.
        average_history: Likewise, of the running average of the weights, where there is one.
        train_seconds: Time spent in the run so far, evaluation included, over all its resumptions.
        device_seconds: Of these, what the device computed; see `DeviceClock`.
    """

    step: int = 0
    history: list[float] = field(default_factory=list)
    train_seconds: float = 0.0
    device_seconds: float = 0.0
    average_history: list[float] = field(default_factory=list)

    def state_dict(self, metric: Metric) -> dict[str, Any]:
        """Returns the fields, the history under the metric's name."""
        seconds = {"train_seconds": self.train_seconds, "device_seconds": self.device_seconds}
        average = {f"ema_{metric.name}": list(self.average_history)} if self.average_history else {}
        return {"step": self.step, metric.name: list(self.history), **average, **seconds}

    @classmethod
    def of_state(cls, state: Mapping[str, Any], metric: Metric) -> Progress:
        """Returns the progress that `state_dict` wrote."""
        average = list(state.get(f"ema_{metric.name}", []))
        return cls(state["step"], list(state[metric.name]), state["train_seconds"], state["device_seconds"], average)


@dataclass(frozen=True)
class Plan:
    """Length and rhythm of a run, and whom it trains, such as `student wrn_10_1`."""

    title: str
    network: str
    epochs: int
    steps_per_epoch: int
    checkpoint_path: Path
    checkpoint_seconds: float

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.epochs * self.steps_per_epoch


class Trainer:
    """Runs a plan to its end: steps, an evaluation after every epoch, checkpoints, metrics.

    Args:
        plan: Length and rhythm.
        weights: Source of weights; runs the steps.
        schedule: Of the learning rate.
        train_batches: Makes the batches from a step on.
        evaluate: Measures a network on the test images: the student, and its running average where there is one.
        metrics: Where metrics go.
        context: Progress, signals.
    """

    def __init__(
        self,
        plan: Plan,
        weights: Weights,
        schedule: Scheduler,
        train_batches: Batches,
        evaluate: Callable[[TappedNetwork], dict[str, float]],
        metrics: Path,
        context: RunContext,
    ) -> None:
        self.plan = plan
        self.weights = weights
        self.stepper = weights.stepper
        self.schedule = schedule
        self.train_batches = train_batches
        self.evaluate = evaluate
        self.metrics = MetricsFile(metrics)
        self.reporter, self.interruption = context.reporter, context.interruption
        self.metric = self.stepper.task.metric
        self.world = current_world()
        self.progress = Progress()
        self._clock = DeviceClock(self.stepper.device)
        self._unchecked: list[tuple[int, StepLosses, StepLosses | None]] = []
        self._unbounded = unbounded_tensors(self._trained_tensors())

    def run(self) -> Progress:
        """Trains from where the progress stands to the end of the plan.

        Raises:
            NonFiniteLossError: a loss or a weight is not finite.
            Interrupted: a signal came; the checkpoint is written.
        """
        progress, plan = self.progress, self.plan
        self.world.check_same(self._state())
        self.metrics.truncate_after(progress.step, len(progress.history))
        self._started = self._saved = time.monotonic()
        self._seconds_before = progress.train_seconds
        self.reporter.start(plan.title, plan.total_steps, progress.step, self.metric)
        batches: Iterator[Batch] | None = None
        try:
            while True:
                if len(progress.history) < progress.step // plan.steps_per_epoch:
                    self._end_epoch()
                if progress.step == plan.total_steps:
                    return progress
                if batches is None:
                    batches = self.train_batches(progress.step)
                self._train_step(next(batches))
                self._checkpoint_if_due()
        finally:
            self.reporter.stop()

    def _train_step(self, batch: Batch) -> None:
        step = self.progress.step
        self.schedule.step_update(step)
        self.stepper.student.train()
        with _explaining_steps(f"{self.plan.network}: step {step}"), explaining_kernels(), self._clock:
            losses, outer_losses = self.weights.step(batch, step)
        self.progress.step += 1
        self._unchecked.append((step, losses, outer_losses))
        looks = step % REPORT_STEPS == 0 or self.progress.step == self.plan.total_steps
        if looks or self.stepper.device.type == "cpu":
            self._check_losses()
        if looks:
            self._report(step, losses.read(), None if outer_losses is None else outer_losses.read())

    def _end_epoch(self) -> None:
        self._check_losses()
        self._check_weights()
        self.save()
        with self._clock:
            result = self.evaluate(self.stepper.student)
            average = self.stepper.average
            of_average = self.evaluate(average) if average is not None else {}
        self._check_result(result)
        self.progress.history.append(result[self.metric.name])
        self.progress.average_history += [of_average[self.metric.name]] if of_average else []
        epoch = len(self.progress.history)
        row = {f"test_{k}": v for k, v in result.items()} | {f"test_ema_{k}": v for k, v in of_average.items()}
        self.metrics.write({"step": self.progress.step, "epoch": epoch, **row})
        self.reporter.epoch(epoch, self.plan.epochs, result[self.metric.name])
        self.save()

    def _checkpoint_if_due(self) -> None:
        is_due = time.monotonic() - self._saved >= self.plan.checkpoint_seconds
        interrupted, is_due = self.world.any(self.interruption.pending, is_due)
        if interrupted or is_due:
            self._check_losses()
            self._check_weights()
            self.save()
        if interrupted:
            raise Interrupted

    def _check_losses(self) -> None:
        """Raises if a loss since the last check is not finite; always run before a checkpoint is written."""
        infos = self.stepper.trained.infos
        found: list[tuple[int, str, Tensor]] = []
        for step, losses, outer_losses in self._unchecked:
            found.append((step, "the task loss", losses.task))
            found += [(step, f"the loss of pathway {infos[k].id}", d) for k, d in losses.distances.items()]
            if outer_losses is not None:
                found.append((step, "the outer task loss", outer_losses.task))
        self._unchecked.clear()
        if not found:
            return
        values = torch.stack([value.float() for _, _, value in found]).tolist()  # one copy from the device
        for (step, name, _), value in zip(found, values, strict=True):
            if not math.isfinite(value):
                self._stop_at_non_finite(step, name, value)

    def _check_weights(self) -> None:
        """Raises if the last update left a weight that is not finite; run before a checkpoint is written."""
        tensors = self._trained_tensors()
        if wrong := not_finite(tensors, self._unbounded):
            what = f"{len(wrong)} of {len(tensors)} tensors of weights, such as {wrong[0]}, hold"
            self._stop_at_non_finite(self.progress.step - 1, what, "NaN or infinity", verb="")

    def _trained_tensors(self) -> dict[str, Tensor]:
        parts = self.stepper.trained.modules()
        named = nn.ModuleDict(parts) if len(parts) > 1 else next(iter(parts.values()))
        tensors: dict[str, Tensor] = named.state_dict()
        return tensors

    def _check_result(self, result: Mapping[str, float]) -> None:
        """Raises if the loss on the test images, or the metric, is not finite."""
        for name in ("loss", self.metric.name):
            if not math.isfinite(value := result.get(name, 0.0)):
                self.plan.checkpoint_path.unlink(missing_ok=True)  # it holds the network that has just failed
                self._stop_at_non_finite(self.progress.step - 1, f"{name} on the test images", value)

    def _stop_at_non_finite(self, step: int, name: str, value: float | str, verb: str = "is ") -> None:
        path = self.plan.checkpoint_path
        last_good = f"the last good checkpoint is {path}" if path.exists() else "there is no good checkpoint"
        raise NonFiniteLossError(
            f"{self.plan.network}: step {step}: {name} {verb}{value}; {last_good}; try a smaller optimizer.lr or "
            "search.weight, clip_grad, or precision: float32"
        )

    def _report(self, step: int, losses: StepLosses, outer_losses: StepLosses | None) -> None:
        infos = self.stepper.trained.infos
        row: dict[str, Any] = {
            "step": step,
            "epoch": step / self.plan.steps_per_epoch,
            "lr": learning_rate(self.stepper.optimizer),
            "task": losses.task.item(),
            "losses": {name: part.item() for name, part in losses.parts.items()},
        }
        row |= {f"train_{name}": score.item() for name, score in losses.scores.items()}
        if outer_losses is not None:
            row["outer_task"] = outer_losses.task.item()
            row |= {f"outer_{name}": score.item() for name, score in outer_losses.scores.items()}
        if infos:
            row["distances"] = {infos[k].id: d.item() for k, d in losses.distances.items()}
            weights, scale = self.weights.by_pathway(), self.weights.scale()
            row["weights"] = weights
            if scale:
                row["scaled_weights"] = {
                    name: weight / unit for (name, weight), unit in zip(weights.items(), scale, strict=True)
                }
        self.metrics.write(row)
        self.reporter.step(self.progress.step, row)

    def save(self) -> None:
        """Writes the checkpoint: all that a resumed run needs to end as if it had never stopped."""
        self._saved = time.monotonic()
        self.progress.train_seconds = self._seconds_before + self._saved - self._started
        self.progress.device_seconds += self._clock.take()
        state = self._state()
        self.world.check_same(state)
        where = {"device": self.stepper.device.type, "progress": self.progress.state_dict(self.metric)}
        save_checkpoint({**where, **state}, self.plan.checkpoint_path)

    def _state(self) -> dict[str, Any]:
        """Returns what is trained, and what trains it; the same on every rank."""
        state = {
            **{name: module.state_dict() for name, module in self.stepper.trained.modules().items()},
            "optimizer": self.stepper.optimizer.state_dict(),
            "weights": self.weights.state_dict(),
        }
        if self.stepper.average is not None:
            state["average"] = self.stepper.average.model.state_dict()
        return state

    def resume(self) -> None:
        """Resumes the run from its checkpoint.

        Raises:
            DistproError: there is no checkpoint, it cannot be read, or it is another run's.
        """
        path = self.plan.checkpoint_path
        state = load_checkpoint(path)
        try:
            for name, module in self.stepper.trained.modules().items():
                module.load_state_dict(state[name])
            self.stepper.optimizer.load_state_dict(state["optimizer"])
            self.weights.load_state_dict(state["weights"])
            if self.stepper.average is not None:
                self.stepper.average.model.load_state_dict(state["average"])
            self.progress = Progress.of_state(state["progress"], self.metric)
            before, now = state.get("device"), self.stepper.device.type  # 0.1.0 wrote none
            if before not in (None, now):
                self.reporter.message(f"resumed on {now} from {before}: bits may differ from a run on one of them")
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
            raise DistproError(
                f"{path}: does not hold what this run needs ({type(error).__name__}: {first_line(error)}); it is "
                "another run's, or damaged; start over with --force"
            ) from error


@contextmanager
def _explaining_steps(which: str) -> Iterator[None]:
    """Rephrases BatchNorm's error for a batch with one value per channel, and that for a number beyond float32."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise DistproError(
            "a batch of one image is too small for BatchNorm on a vector or a 1×1 map; set a larger batch_size, or "
            "give the part it comes from more images (data.train_images, search.outer_share)"
        ) from error
    except (RuntimeError, OverflowError) as error:
        if "overflow" not in str(error) and not isinstance(error, OverflowError):
            raise
        raise NonFiniteLossError(
            f"{which}: a number is too large for float32 ({first_line(error)}); "
            "try a smaller optimizer.lr, search.alpha_lr or search.weight"
        ) from error
