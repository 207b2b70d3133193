"""A recipe made real: its task, data and networks on a device, and the training of them."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from distpro_cli.networks.build import build_network
from distpro_cli.networks.levels import TappedNetwork
from distpro_cli.randomness import derived_seed
from distpro_cli.recipe.schema import Network, Recipe, Training
from distpro_cli.report.progress import Reporter
from distpro_cli.runs.context import RunContext
from distpro_cli.runs.identity import Identity
from distpro_cli.runs.signals import Interruption
from distpro_cli.tasks.task import Batch, Task, find_task, map_tensors
from distpro_cli.training.device import autocast, choose_device, make_deterministic
from distpro_cli.training.loop import Plan, Progress, Trainer
from distpro_cli.training.optimiser import make_optimizer, make_schedule
from distpro_cli.training.step import Distiller, Pair, Solo, Stepper
from distpro_cli.training.weights import Batches, Weights

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def run_context(device_name: str | None, reporter: Reporter, interruption: Interruption) -> RunContext:
    """Chooses the device and asks for deterministic kernels."""
    make_deterministic()
    return RunContext(choose_device(device_name), reporter, interruption)


class Session:
    """A recipe with its task and its data on a device.

    Args:
        recipe: What is to be run.
        context: Device, progress, signals.
        outer_share: Share of the train images that judges alpha; None leaves all to training.

    Raises:
        DistproError: the task is unknown, or the data cannot be had.
    """

    def __init__(self, recipe: Recipe, context: RunContext, outer_share: float | None = None) -> None:
        self.recipe = recipe
        self.context = context
        self.device = context.device
        self.task = self.task_under(recipe.distill)
        self.data = self.task.data(recipe.data, recipe.seed, outer_share)

    def task_under(self, training: Training) -> Task:
        """Returns the recipe's task under a way of training."""
        return find_task(self.recipe.task)(self.recipe, training)

    def under(self, recipe: Recipe) -> Session:
        """Returns the same session under a recipe that differs in levels or pathways alone."""
        other = copy(self)
        other.recipe = recipe
        return other

    @property
    def identity(self) -> Identity:
        """What determines the runs of this session."""
        return Identity(self.recipe, self.data.identity, self.device)

    def build(
        self, spec: Network, role: str, seed: int | None = None, *, logits: bool = False, pretrained_ok: bool = True
    ) -> TappedNetwork:
        """Builds a network on the device, with random weights drawn from the run's seed (or `seed`), or its own.

        For `logits` and `pretrained_ok` see `build_network`.
        """
        torch.manual_seed(derived_seed(self.recipe.seed if seed is None else seed, "weights", role))
        network = build_network(spec, self.recipe.data, self.task, logits=logits, pretrained_ok=pretrained_ok)
        return self.place(network)

    def place(self, module: AnyModule) -> AnyModule:
        """Moves a network or pathways to the device, in the recipe's memory format."""
        module.to(self.device)
        if self.recipe.channels_last:
            module.to(memory_format=torch.channels_last)
        return module

    def batches(
        self,
        part: str,
        batch_size: int,
        num_steps: int,
        task: Task | None = None,
        inner: tuple[int, int] | None = None,
    ) -> Batches:
        """Returns the maker of the batches of the `train` or the `outer` part, on the device.

        Args:
            part: Which.
            batch_size: Images per step.
            num_steps: Of the whole run.
            task: Augments whole batches; None: nothing does.
            inner: Of outer batches, see `TaskData`.
        """
        source = self.data.train_batches if part == "train" else self.data.outer_batches
        if part == "outer" and not self.data.outer_size:
            source = partial(self.data.outer_batches, inner=inner)

        def make(start_step: int) -> Iterator[Batch]:
            for step, batch in enumerate(source(batch_size, num_steps, start_step), start=start_step):
                changed = batch if task is None else task.augment(batch, step)
                yield changed.to(self.device, self._memory_format)

        return make

    def evaluate(self, network: TappedNetwork) -> dict[str, float]:
        """Returns the task's figures of a network on the test images, in eval mode."""
        network.eval()

        def forward(images_bchw: Tensor) -> Any:
            images_bchw = images_bchw.to(self.device, memory_format=self._memory_format, non_blocking=True)
            output, _ = network(images_bchw)
            return map_tensors(output, _to_cpu)

        with torch.no_grad(), autocast(self.device, self.recipe.precision):
            return self.task.evaluate(forward, self.data.test_batches())

    def total_steps(self, training: Training) -> int:
        """Returns the steps of a whole training."""
        return training.epochs * self.data.steps_per_epoch(training.batch_size)

    def stepper(self, trained: Solo, training: Training) -> Stepper:
        """Makes the steps of a network that is trained alone."""
        return Stepper(trained, *self._step_parts(trained, training), **self._step_options(training))

    def distiller(self, pair: Pair, training: Training) -> Distiller:
        """Makes the steps of a pair; labels are smoothed in training, and not where a search judges."""
        judge = self.task_under(training.model_copy(update={"label_smoothing": 0.0}))
        return Distiller(pair, *self._step_parts(pair, training), judge=judge, **self._step_options(training))

    def train(
        self, weights: Weights, training: Training, title: str, checkpoint: Path, metrics: Path, *, resume: bool
    ) -> Progress:
        """Trains what a source of weights steps, to the end.

        Args:
            weights: The source; its stepper was made under the same `training`.
            training: Length, batch size and schedule.
            title: What progress shows.
            checkpoint: Where checkpoints go.
            metrics: Where metrics go.
            resume: Whether an existing checkpoint is resumed.

        Raises:
            NonFiniteLossError: a loss is not finite.
            Interrupted: a signal came; the checkpoint is written.
        """
        stepper = weights.stepper
        steps_per_epoch = self.data.steps_per_epoch(training.batch_size)
        plan = Plan(title, training.epochs, steps_per_epoch, checkpoint, self.recipe.checkpoint_seconds)
        trainer = Trainer(
            plan,
            weights,
            make_schedule(stepper.optimizer, training.schedule, plan.total_steps, steps_per_epoch),
            self.batches("train", training.batch_size, plan.total_steps, stepper.task),
            self.evaluate,
            metrics,
            self.context,
        )
        if resume and checkpoint.exists():
            trainer.resume()
        return trainer.run()

    @property
    def _memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.recipe.channels_last else torch.contiguous_format

    def _step_parts(self, trained: Solo | Pair, training: Training) -> tuple[torch.optim.Optimizer, Task]:
        return make_optimizer(trained.modules(), training.optimizer), self.task_under(training)

    def _step_options(self, training: Training) -> dict[str, Any]:
        recipe = self.recipe
        own = {"device": self.device, "precision": recipe.precision, "seed": recipe.seed}
        return {**own, **{key: getattr(training, key) for key in ("clip_grad", "micro_batch_size", "ema_decay")}}


def _to_cpu(tensor: Tensor) -> Tensor:
    return tensor.float().cpu() if tensor.is_floating_point() else tensor.cpu()
