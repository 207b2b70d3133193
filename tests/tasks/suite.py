"""What every task must do, whichever it is: tests that a task inherits by a subclass with its name and its data.

class TestDepth(TaskSuite):
    task = "depth"
    data = {"name": "folder", ...}
"""

from __future__ import annotations

import json
import math
import random
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from distpro_cli.errors import DistproError
from distpro_cli.metric import Metric
from distpro_cli.recipe.schema import Data, Recipe, Training
from distpro_cli.tasks.task import Batch, Task, TaskData, find_task, map_tensors

BATCH_SIZE = 8
NUM_STEPS = 12
# Shows all images as they are stored.
UNCHANGED = {"augment": {"crop": "none", "flip": 0.0, "resize": [1.0, 1.0]}, "train_images": None, "test_images": None}


def make_task(name: str, data: dict[str, Any], training: dict[str, Any]) -> Task:
    """Makes a task under a recipe whose networks do not matter."""
    network = {"name": "wrn_10_1"}
    recipe = Recipe.model_validate({"task": name, "data": data, "teacher": network, "student": network})
    return find_task(name)(recipe, Training.model_validate(training))


def tensors(value: Any) -> list[Tensor]:
    """Lists the tensors in a batch, targets or an output, in order."""
    found: list[Tensor] = []
    if isinstance(value, Batch):
        value = (value.images_bchw, value.targets)

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(value, note)
    return found


def same(first: Any, second: Any) -> bool:
    pairs = list(zip(tensors(first), tensors(second), strict=True))
    return bool(pairs) and all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def all_same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) > 0 and all(same(a, b) for a, b in zip(first, second, strict=True))


def digest(batches: Iterable[Batch]) -> float:
    return sum((step + 1) * t.double().sum().item() for step, batch in enumerate(batches) for t in tensors(batch))


def images_of(batches: Iterable[Batch]) -> Counter[bytes]:
    """Counts the images, by their pixels."""
    return Counter(image.numpy().tobytes() for batch in batches for image in batch.images_bchw)


def halves(batches: Iterable[Batch]) -> Iterator[Batch]:
    for batch in batches:
        yield from batch.split(max(1, len(batch.images_bchw) // 2))


class TaskSuite:
    """The tests; see the head of this file.

    Attributes:
        task: As a recipe names it.
        data: The recipe's data section: small images that are read in this process.
        training: Where the task has settings of training, such as mixup.
    """

    task: ClassVar[str]
    data: ClassVar[dict[str, Any]]
    training: ClassVar[dict[str, Any]] = {}

    def build(self, options: dict[str, Any]) -> nn.Module:
        """Makes a network from the task's options; one of timm's does for most tasks."""
        torch.manual_seed(0)
        model: nn.Module = timm.create_model("test_resnet", **options)
        return model

    def make(self) -> Task:
        return make_task(self.task, self.data, self.training)

    def spec(self, **changes: Any) -> Data:
        return Data.model_validate(self.data | changes)

    def open(self, seed: int = 0, outer_share: float | None = None, **changes: Any) -> TaskData:
        return self.make().data(self.spec(**changes), seed, outer_share)

    def train_batch(self) -> Batch:
        return next(iter(self.open().train_batches(BATCH_SIZE, 1)))

    def test_the_metric_is_a_plain_value(self) -> None:
        assert isinstance(self.make().metric, Metric)

    def test_parts_are_disjoint_and_complete(self) -> None:
        data = self.open(outer_share=0.3, test_on="held-out", held_out=0.25, **UNCHANGED)
        parts = [
            images_of(data.train_batches(data.train_size, 1)),
            images_of(data.outer_batches(data.outer_size, 1)),
            images_of(data.test_batches()),
        ]
        assert [part.total() for part in parts] == [data.train_size, data.outer_size, data.test_size]
        everything = self.open(**UNCHANGED)
        assert parts[0] + parts[1] + parts[2] == images_of(everything.train_batches(everything.train_size, 1))
        assert everything.outer_size == 0

    def test_images_are_what_networks_take(self) -> None:
        data = self.open(outer_share=0.5)
        for batches in (data.train_batches(BATCH_SIZE, 1), data.outer_batches(BATCH_SIZE, 1), data.test_batches()):
            images_bchw = next(iter(batches)).images_bchw
            size = self.spec().image_size
            assert images_bchw.dtype == torch.float32 and images_bchw.shape[1:] == (3, size, size)
            assert images_bchw.min() >= 0 and images_bchw.max() <= 1

    def test_an_epoch_has_only_full_batches(self) -> None:
        data = self.open()
        assert data.steps_per_epoch(BATCH_SIZE) == data.train_size // BATCH_SIZE
        assert data.steps_per_epoch(data.train_size + 1) == 1

    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("part", ["train_batches", "outer_batches"])
    def test_batches_are_replayed_by_step(self, part: str, workers: int) -> None:
        whole = list(getattr(self.open(outer_share=0.5), part)(BATCH_SIZE, NUM_STEPS))
        later = list(getattr(self.open(outer_share=0.5, workers=workers), part)(BATCH_SIZE, NUM_STEPS, 7))
        assert len(whole) == NUM_STEPS
        assert all_same(whole[7:], later)

    def test_the_seed_changes_the_order(self) -> None:
        first, other = (list(self.open(seed).train_batches(BATCH_SIZE, NUM_STEPS)) for seed in (0, 1))
        assert not all_same(first, other)

    def test_test_batches_are_always_the_same(self) -> None:
        assert all_same(list(self.open(0).test_batches()), list(self.open(1, 0.5, workers=2).test_batches()))

    def test_the_identity_is_that_of_the_data_alone(self) -> None:
        identity = self.open().identity
        assert set(identity) == {"train", "test"}
        assert json.loads(json.dumps(identity)) == identity
        assert self.open(seed=1, outer_share=0.5, workers=2, cache=True).identity == identity

    def test_another_process_sees_the_same(self, another_process: subprocess.Popen[str]) -> None:
        data = self.open()
        assert another_process.stdin is not None and another_process.stdout is not None
        another_process.stdin.write(json.dumps([self.task, self.data, self.training]) + "\n")
        another_process.stdin.flush()
        found = json.loads(another_process.stdout.readline())
        assert found == [data.identity, digest(data.train_batches(8, 12))]

    def test_augment_depends_on_seed_and_step_alone(self) -> None:
        batch = self.train_batch()
        before = [tensor.clone() for tensor in tensors(batch)]
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        first = self.make().augment(batch, 3)
        drawn = random.random(), np.random.rand(), torch.rand(())
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        assert drawn == (random.random(), np.random.rand(), torch.rand(()))
        task = self.make()
        task.augment(batch, 2)
        assert same(first, task.augment(batch, 3))
        assert all(torch.equal(old, new) for old, new in zip(before, tensors(batch), strict=True))
        assert first.images_bchw.shape == batch.images_bchw.shape

    def test_a_network_with_its_options_passes_and_others_do_not(self) -> None:
        task = self.make()
        network = self.build(task.network_options(self.spec())).eval()
        task.check_output("own", network(self.train_batch().images_bchw), self.spec())
        with pytest.raises(DistproError, match=r"^network own: .+"):
            task.check_output("own", None, self.spec())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_losses_are_named_scalars_with_a_gradient(self, dtype: torch.dtype) -> None:
        task = self.make()
        network = self.build(task.network_options(self.spec()))
        batch = task.augment(self.train_batch(), 0)
        losses = task.losses(map_tensors(network(batch.images_bchw), lambda t: t.to(dtype)), batch.targets)
        assert losses and all(isinstance(name, str) and name for name in losses)
        for loss in losses.values():
            assert loss.shape == () and loss.dtype == torch.float32 and torch.isfinite(loss)
        sum(losses.values(), torch.zeros(())).backward()
        gradients = [parameter.grad for parameter in network.parameters()]
        assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)

    def test_a_few_steps_lower_the_loss(self) -> None:
        task = self.make()
        network = self.build(task.network_options(self.spec()))
        batch = self.train_batch()
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        history = []
        for _ in range(8):
            loss = sum(task.losses(network(batch.images_bchw), batch.targets).values(), torch.zeros(()))
            history.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert history[-1] < history[0]

    def test_scores_are_finite_scalars(self) -> None:
        task = self.make()
        network = self.build(task.network_options(self.spec()))
        batch = task.augment(self.train_batch(), 0)
        scores = task.scores(network(batch.images_bchw), batch.targets)
        assert all(score.shape == () and torch.isfinite(score) for score in scores.values())
        assert not scores or task.metric.name in scores

    def test_evaluation_gives_the_metric_however_images_are_batched(self) -> None:
        task, data = self.make(), self.open()
        network = self.build(task.network_options(self.spec())).eval()
        with torch.no_grad():
            result = task.evaluate(network, data.test_batches())
            again = task.evaluate(network, halves(data.test_batches()))
        assert task.metric.name in result
        assert all(isinstance(name, str) and math.isfinite(value) for name, value in result.items())
        assert again == pytest.approx(result, rel=1e-4)


TOY = f"{Path(__file__).parent.parent / 'toys' / 'regression.py'}:Ink"
