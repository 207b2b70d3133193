"""A recipe made real: its task, data and networks on a device, and the training of them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from distpro_cli.errors import DistproError
from distpro_cli.files import expand_path
from distpro_cli.networks.build import build_network
from distpro_cli.networks.compiled import compile_between_taps
from distpro_cli.networks.levels import TappedNetwork
from distpro_cli.networks.synchronised import synchronise_batch_norm
from distpro_cli.networks.weights import save_weights, weights_metadata
from distpro_cli.randomness import derived_seed
from distpro_cli.recipe.schema import Network, Recipe, Teacher, Training
from distpro_cli.report.progress import Reporter
from distpro_cli.runs.context import RunContext
from distpro_cli.runs.identity import Identity
from distpro_cli.runs.signals import Interruption
from distpro_cli.tasks.task import WHOLE, Batch, Sizes, Task, find_task, map_tensors, rows_of
from distpro_cli.training.device import (
    autocast,
    check_open_files,
    choose_device,
    determinism_kept,
    explaining_kernels,
    set_determinism,
)
from distpro_cli.training.loop import Plan, Progress, Trainer
from distpro_cli.training.optimiser import make_optimizer, make_schedule
from distpro_cli.training.prefetch import SideStream, on_device
from distpro_cli.training.step import Distiller, Pair, Solo, Stepper
from distpro_cli.training.weights import Batches, Weights
from distpro_cli.versions import installed_versions
from distpro_cli.world import current_world

AnyModule = TypeVar("AnyModule", bound=nn.Module)


@contextmanager
def run_context(device_name: str | None, reporter: Reporter, interruption: Interruption) -> Iterator[RunContext]:
    """Chooses the device; what runs inside leaves torch's settings of determinism as they were.

    Of many ranks, the main one reports.
    """
    with determinism_kept():
        reporter = reporter if current_world().is_main else Reporter()
        yield RunContext(choose_device(device_name), reporter, interruption)


def make_stepper(recipe: Recipe, trained: Solo, training: Training, device: torch.device) -> Stepper:
    """Makes the steps of a network on the device that is trained alone."""
    _check_shared(training)
    return Stepper(trained, *_step_parts(recipe, trained, training), **_step_options(recipe, training, device))


def make_distiller(recipe: Recipe, pair: Pair, training: Training, device: torch.device) -> Distiller:
    """Makes the steps of a pair on the device; labels are smoothed in training, and not where a search judges."""
    _check_shared(training)
    judge = find_task(recipe.task)(recipe, training.model_copy(update={"label_smoothing": 0.0}))
    return Distiller(pair, *_step_parts(recipe, pair, training), judge=judge, **_step_options(recipe, training, device))


def _check_shared(training: Training) -> None:
    """Raises DistproError where the ranks of the run cannot share a batch evenly, before anything is trained."""
    rows_of(training.batch_size, (0, current_world().size))


def _step_parts(recipe: Recipe, trained: Solo | Pair, training: Training) -> tuple[torch.optim.Optimizer, Task]:
    return make_optimizer(trained.modules(), training.optimizer), find_task(recipe.task)(recipe, training)


def _step_options(recipe: Recipe, training: Training, device: torch.device) -> dict[str, Any]:
    own = {"device": device, "precision": recipe.precision, "seed": recipe.seed}
    return {**own, **{key: getattr(training, key) for key in ("clip_grad", "micro_batch_size", "ema_decay")}}


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
        context.interruption.check()
        check_open_files(recipe.data.workers)
        self.recipe = recipe
        self.context = context
        self.device = context.device
        set_determinism(recipe.deterministic, self.device)
        self.task = self.task_under(recipe.distill)
        self.data = self.task.data(recipe.data, recipe.seed, outer_share)
        if found := getattr(self.data, "found", ""):  # data of a user's own task need not say
            context.say_once(f"data: {found}")

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
        self.context.interruption.check()
        torch.manual_seed(derived_seed(self.recipe.seed if seed is None else seed, "weights", role))
        network = build_network(spec, self.recipe.data, self.task, logits=logits, pretrained_ok=pretrained_ok)
        if pretrained_ok and spec.weights is not None and (remark := self._remark(spec, network)):
            self.context.reporter.message(f"{role} {spec.name}: {remark}")
        return self.place(network)

    def _remark(self, spec: Network, network: TappedNetwork) -> str | None:
        """Returns what the user should know of a network's weights; of a teacher's new head its training tells."""
        if not spec.head:
            return None
        if network.new_head is not None:
            return None if isinstance(spec, Teacher) else f"weights {spec.weights}, with {network.new_head}"
        facts = weights_metadata(expand_path(str(spec.weights))) if spec.weights != "pretrained" else {}
        doubt = self.task.doubt(facts, self.data)
        return f"weights {spec.weights}: {doubt}" if doubt else None

    def place(self, module: AnyModule) -> AnyModule:
        """Moves a network or pathways to the device, in the recipe's memory format, unless it cannot be in that.

        Raises:
            DistproError: BatchNorm is to see the batch of all ranks, and cannot there.
        """
        module.to(self.device)
        if self.recipe.sync_batch_norm and current_world().size > 1:
            synchronise_batch_norm(module, self.device)
        if self.recipe.channels_last and not getattr(module, "needs_contiguous", False):
            module.to(memory_format=torch.channels_last)
        return module

    def save(self, network: TappedNetwork, spec: Network, path: Path, training: Training, **trained: Any) -> None:
        """Writes a network's weights with all that one needs to use them, as strings in the file's header.

        These are `network`, `options`, `mean`, `std`, `image_size`, `levels`, what the task adds, and `trained`: by
        what. All but the first are JSON. Whoever builds a network with this file gets its mean and std.

        Args:
            network: Trained.
            spec: Its section of the recipe.
            path: Replaced if it exists.
            training: How it was trained.
            trained: Further facts for `trained`, such as the teacher.
        """
        recipe = self.recipe
        # Printed as float32, a number is as short as its recipe wrote it.
        mean, std = ([float(str(x)) for x in values.flatten().cpu().numpy()] for values in (network.mean, network.std))
        how = {"task": recipe.task, "data": recipe.data.name, "epochs": training.epochs, "seed": recipe.seed}
        facts = {
            "options": spec.options,
            "mean": mean,
            "std": std,
            "image_size": recipe.data.image_size,
            "levels": [level.name for level in network.levels],
            **self.task.describe(self.data),
            "trained": {**how, **trained, "versions": installed_versions()},
        }
        metadata = {key: json.dumps(value, sort_keys=True, default=str) for key, value in facts.items()}
        save_weights(network.model, path, {"network": spec.name, **metadata})

    def batches(
        self,
        part: str,
        batch_size: int,
        num_steps: int,
        task: Task | None = None,
        inner: tuple[int, int] | None = None,
        repeats: int = 1,
    ) -> Batches:
        """Returns the maker of the batches of the `train` or the `outer` part, on the device: of this rank's images.

        Args:
            part: Which.
            batch_size: Images per step, of all ranks.
            num_steps: Of the whole run.
            task: Augments whole batches; None: nothing does.
            inner: Of outer batches, see `TaskData`.
            repeats: Of an image in the train batches of an epoch.

        Raises:
            DistproError: the data of the user's own task cannot repeat images, or the ranks of the run cannot share a
                batch evenly.
        """
        source = self.data.train_batches if part == "train" else self.data.outer_batches
        beside_train = part == "outer" and not self.data.outer_size
        options: dict[str, Any] = {"inner": inner} if beside_train else {}
        if repeats > 1 and (part == "train" or beside_train):
            _check_repeats(source)
            options["repeats"] = repeats
        of_rank = (current_world().rank, current_world().size)
        rows_of(batch_size, of_rank)  # raises here where it cannot be shared
        cut = of_rank != WHOLE and not _takes(source, "part")
        if of_rank != WHOLE and not cut:
            options["part"] = of_rank

        def prepare(step: int, batch: Batch) -> Batch:
            batch = (batch.part(of_rank) if cut else batch).to(self.device, self._memory_format)
            return batch if task is None else task.augment(batch, step).to(self.device, self._memory_format)

        def make(start_step: int) -> Iterator[Batch]:
            batches = source(batch_size, num_steps, start_step, **options)
            return on_device(enumerate(batches, start_step), prepare, self._side_stream())

        return make

    def _side_stream(self) -> SideStream | None:
        return SideStream(self.device) if self.device.type == "cuda" else None

    def evaluate(self, network: TappedNetwork) -> dict[str, float]:
        """Returns the task's figures of a network on the test images, in eval mode; many ranks share them if they can.

        Raises:
            Interrupted: a signal came.
        """
        network.eval()

        def forward(images_bchw: Tensor, sizes: Sizes | None = None) -> Any:
            if current_world().size == 1:  # many stop together, after it
                self.context.interruption.check()  # the checkpoint is written before an evaluation
            images_bchw = images_bchw.to(self.device, memory_format=self._memory_format, non_blocking=True)
            output, _ = network(images_bchw, sizes=sizes)
            return map_tensors(output, _to_cpu)

        def with_images(_: int, batch: Batch) -> Batch:
            return Batch(batch.to(self.device, self._memory_format).images_bchw, batch.targets, batch.sizes)

        batches = self._test_batches()
        if (stream := self._side_stream()) is not None:
            batches = on_device(enumerate(batches), with_images, stream)
        with explaining_kernels(), torch.no_grad(), autocast(self.device, self.recipe.precision):
            return self.task.evaluate(forward, batches)

    def _test_batches(self) -> Iterator[Batch]:
        """Returns the test batches that this rank measures networks on."""
        world, source = current_world(), self.data.test_batches
        if world.size == 1 or not getattr(self.task.evaluate, "sums_over_ranks", False):
            return source()
        if _takes(source, "part"):
            return source(part=(world.rank, world.size))
        return islice(source(), world.rank, None, world.size)

    def total_steps(self, training: Training) -> int:
        """Returns the steps of a whole training."""
        return training.epochs * self.data.steps_per_epoch(training.batch_size)

    def stepper(self, trained: Solo, training: Training) -> Stepper:
        """Makes the steps of a network that is trained alone."""
        if self.recipe.compile:
            compile_between_taps(trained.student.model)
        return make_stepper(self.recipe, trained, training, self.device)

    def distiller(self, pair: Pair, training: Training) -> Distiller:
        """Makes the steps of a pair."""
        return make_distiller(self.recipe, pair, training, self.device)

    def train(
        self,
        weights: Weights,
        training: Training,
        title: str,
        checkpoint: Path,
        metrics: Path,
        *,
        resume: bool,
        network: str | None = None,
    ) -> Progress:
        """Trains what a source of weights steps, to the end.

        Args:
            weights: The source; its stepper was made under the same `training`.
            training: Length, batch size and schedule.
            title: What progress shows.
            checkpoint: Where checkpoints go.
            metrics: Where metrics go.
            resume: Whether an existing checkpoint is resumed.
            network: Whom it trains, for messages; None: the recipe's student.

        Raises:
            NonFiniteLossError: a loss or a weight is not finite.
            Interrupted: a signal came; the checkpoint is written.
        """
        stepper = weights.stepper
        steps_per_epoch = self.data.steps_per_epoch(training.batch_size)
        network = network or f"student {self.recipe.student.name}"
        plan = Plan(title, network, training.epochs, steps_per_epoch, checkpoint, self.recipe.checkpoint_seconds)
        trainer = Trainer(
            plan,
            weights,
            make_schedule(stepper.optimizer, training.schedule, plan.total_steps, steps_per_epoch),
            self.batches(
                "train", training.batch_size, plan.total_steps, stepper.task, repeats=training.augment_repeats
            ),
            self.evaluate,
            metrics,
            self.context,
        )
        if current_world().broadcast(resume and checkpoint.exists()):
            trainer.resume()
        return trainer.run()

    @property
    def _memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.recipe.channels_last else torch.contiguous_format


def _check_repeats(source: Callable[..., Iterator[Batch]]) -> None:
    if not _takes(source, "repeats"):
        raise DistproError(
            f"augment_repeats: the data of this task cannot repeat images, because {source.__name__} takes no "
            "argument repeats; set augment_repeats to 1, or write it (see TaskData)"
        )


def _takes(source: Callable[..., Iterator[Batch]], option: str) -> bool:
    """Says whether what makes the batches of a user's own task takes what it is given only where it is needed."""
    return option in inspect.signature(source).parameters


def _to_cpu(tensor: Tensor) -> Tensor:
    return tensor.float().cpu() if tensor.is_floating_point() else tensor.cpu()
