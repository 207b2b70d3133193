"""What every run sets up: device, data, networks, and a trainer for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from distpro_cli.networks.build import build_network
from distpro_cli.networks.levels import TappedNetwork
from distpro_cli.randomness import derived_seed
from distpro_cli.recipe.schema import Network, Recipe, Training
from distpro_cli.report.progress import Reporter
from distpro_cli.runs.metrics import MetricsFile
from distpro_cli.runs.signals import Interruption
from distpro_cli.tasks.classification.data import ClassificationData
from distpro_cli.tasks.classification.task import task_loss
from distpro_cli.tasks.task import Task, find_task
from distpro_cli.training.device import autocast, choose_device, make_deterministic
from distpro_cli.training.loop import Batches, Plan, ScheduledWeights, Trainer, Weights
from distpro_cli.training.optimiser import make_optimizer, make_schedule
from distpro_cli.training.step import Batch, Pair, Stepper


@dataclass(frozen=True)
class Surroundings:
    """What a run is given besides its recipe.

    Attributes:
        device: Where it computes.
        reporter: Where it says how far it is.
        interruption: Where it looks for signals.
    """

    device: torch.device
    reporter: Reporter
    interruption: Interruption


def surroundings(device_name: str | None, reporter: Reporter, interruption: Interruption) -> Surroundings:
    """Chooses the device and asks for deterministic kernels."""
    make_deterministic()
    return Surroundings(choose_device(device_name), reporter, interruption)


WeightsMaker = Callable[[Stepper, int], Weights]  # (stepper, total steps) → source of weights


AnyModule = TypeVar("AnyModule", bound=nn.Module)


class Session:
    """A recipe made real: its data and networks on a device."""

    def __init__(self, recipe: Recipe, around: Surroundings, outer_share: float | None = None) -> None:
        self.task = find_task(recipe.task)(recipe, recipe.distill)
        self.recipe = recipe
        self.around = around
        self.device = around.device
        self.data = ClassificationData(recipe.data, recipe.seed, outer_share=outer_share)

    def build(
        self, spec: Network, role: str, seed: int | None = None, *, logits: bool = False, pretrained_ok: bool = True
    ) -> TappedNetwork:
        """Builds a network with random weights drawn from the run's seed (or `seed`), or its own weights.

        For `logits` and `pretrained_ok` see `build_network`.
        """
        torch.manual_seed(derived_seed(self.recipe.seed if seed is None else seed, "weights", role))
        return self.place(build_network(spec, self.recipe.data, logits=logits, pretrained_ok=pretrained_ok))

    def under(self, recipe: Recipe) -> Session:
        """Returns the same session under a recipe that differs in levels or pathways alone."""
        other = copy(self)
        other.recipe = recipe
        return other

    def place(self, module: AnyModule) -> AnyModule:
        """Moves a network or pathways to the device, in the recipe's memory format."""
        module.to(self.device)
        if self.recipe.channels_last:
            module.to(memory_format=torch.channels_last)
        return module

    def batches(self, part: str, batch_size: int, num_steps: int, task: Task | None = None) -> Batches:
        """Returns the maker of the batches of the `train` or the `outer` part, on the device."""
        source = self.data.train_batches if part == "train" else self.data.outer_batches

        def make(start_step: int) -> Iterator[Batch]:
            for step, batch in enumerate(source(batch_size, num_steps, start_step), start=start_step):
                if task is not None:
                    batch = task.augment(batch, step)
                yield Batch(self.to_device(batch.images_bchw), batch.targets.to(self.device, non_blocking=True))

        return make

    def to_device(self, images_bchw: Tensor) -> Tensor:
        """Moves images to the device, in the recipe's memory format."""
        layout = torch.channels_last if self.recipe.channels_last else torch.contiguous_format
        return images_bchw.to(self.device, memory_format=layout, non_blocking=True)

    def evaluate(self, network: TappedNetwork) -> dict[str, float]:
        """Returns the network's `top1` in percent and its `loss` on the test images, in eval mode."""
        network.eval()

        def forward(images_bchw: Tensor) -> Tensor:
            logits, _ = network(self.to_device(images_bchw))
            assert logits is not None
            cpu_logits: Tensor = logits.float().cpu()
            return cpu_logits

        with torch.no_grad(), autocast(self.device, self.recipe.precision):
            return self.task.evaluate(forward, self.data.test_batches())

    def trainer(
        self,
        pair: Pair,
        training: Training,
        *,
        title: str,
        seed: int,
        checkpoint: Path | None,
        metrics: MetricsFile,
        make_weights: WeightsMaker | None = None,
    ) -> Trainer:
        """Makes the trainer of a pair; without `make_weights` the student is trained alone.

        Args:
            pair: On the device.
            training: Length, batch size, optimiser and schedule.
            title: What progress shows.
            seed: Of data order, augmentation and dropout.
            checkpoint: Where to write checkpoints, None for nowhere.
            metrics: Where to write metrics.
            make_weights: Makes the source of weights from the stepper and the number of steps.
        """
        optimizer = make_optimizer(pair.trained_modules(), training.optimizer)
        steps_per_epoch = self.data.steps_per_epoch(training.batch_size)
        plan = Plan(title, training.epochs, steps_per_epoch, checkpoint, self.recipe.checkpoint_seconds)
        stepper = Stepper(
            pair,
            optimizer,
            lambda logits, targets: task_loss(logits, targets, training.label_smoothing),
            device=self.device,
            precision=self.recipe.precision,
            clip_grad=training.clip_grad,
            seed=seed,
        )
        weights = (make_weights or ScheduledWeights)(stepper, plan.total_steps)
        task = find_task(self.recipe.task)(self.recipe, training)
        return Trainer(
            plan,
            stepper,
            make_schedule(optimizer, training.schedule, plan.total_steps, steps_per_epoch),
            weights,
            self.batches("train", training.batch_size, plan.total_steps, task),
            lambda: self.evaluate(pair.student),
            reporter=self.around.reporter,
            metrics=metrics,
            interruption=self.around.interruption,
        )
