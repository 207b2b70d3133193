"""What a task is: data, losses, scores, a metric, and what it asks of a network.

A new task is a subclass of `Task` under `@register_task("name")`, in a folder of this package or in a file of the
user's, which a recipe names as `task: path/to/file.py:Name`. Nothing outside `distpro_cli.tasks` knows what is learnt.

Shape legend: b images, c channels, h height, w width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from typing_extensions import override

from distpro_cli.errors import DistproError
from distpro_cli.metric import Metric
from distpro_cli.recipe.schema import Data, Recipe, Training
from distpro_cli.registry import Registry

Sizes = tuple[tuple[int, int], ...]
Filled = tuple[tuple[float, float], ...]
Part = tuple[int, int]  # a rank and the number of ranks, of which each has a part of every batch

WHOLE: Part = (0, 1)


@dataclass(frozen=True)
class Batch:
    """Images [B, C, H, W] in [0, 1] and their targets: what the task's losses take, nested as it likes.

    Attributes:
        images_bchw: The images.
        targets: Of the task.
        sizes: True height and width of every image in pixels, where images of several sizes share the batch: what lies
            below and to the right is padding. Networks see zeros there, and distances leave it out. None: no padding.
    """

    images_bchw: Tensor
    targets: Any
    sizes: Sizes | None = None

    @property
    def filled(self) -> Filled | None:
        """Shares of height and width that every image fills, in (0, 1]; None where no image is padded."""
        height, width = self.images_bchw.shape[2:]
        if self.sizes is None or all(size == (height, width) for size in self.sizes):
            return None
        return tuple((own_height / height, own_width / width) for own_height, own_width in self.sizes)

    def to(self, device: torch.device, memory_format: torch.memory_format = torch.contiguous_format) -> Batch:
        """Returns the batch on a device, the images in a memory format."""
        images_bchw = self.images_bchw.to(device, memory_format=memory_format, non_blocking=True)
        targets = map_tensors(self.targets, lambda tensor: tensor.to(device, non_blocking=True))
        return Batch(images_bchw, targets, self.sizes)

    def with_targets(self, targets: Any) -> Batch:
        """Returns the same images with other targets."""
        return Batch(self.images_bchw, targets, self.sizes)

    def pinned(self) -> Batch:
        """Returns the batch in page-locked memory, from which a device takes it while both work on."""
        return Batch(self.images_bchw.pin_memory(), map_tensors(self.targets, Tensor.pin_memory), self.sizes)

    def split(self, size: int) -> list[Batch]:
        """Returns the batch in parts of `size` images, the last one smaller; targets are split where they are tensors
        or lists with one entry per image."""
        count = len(self.images_bchw)
        return [self._rows(slice(at, at + size), range(count)[at : at + size]) for at in range(0, count, size)]

    def part(self, part: Part) -> Batch:
        """Returns a rank's part of the batch, see `rows_of`; targets as in `split`."""
        rows = rows_of(len(self.images_bchw), part)
        return self._rows(rows, rows)

    def _rows(self, rows: slice | list[int], numbers: Sequence[int]) -> Batch:
        sizes = None if self.sizes is None else tuple(self.sizes[number] for number in numbers)
        targets = _rows(self.targets, rows, numbers, len(self.images_bchw))
        return Batch(self.images_bchw[rows], targets, sizes)


class StoredBatch(Batch):
    """A batch whose images are uint8 [B, C, H, W] as they were read; they become float32 in [0, 1] on the device that
    they are moved to, or here when `images_bchw` is looked at.
    """

    def __init__(self, stored_bchw: Tensor, targets: Any, sizes: Sizes | None = None) -> None:
        for name, value in (("stored_bchw", stored_bchw), ("targets", targets), ("sizes", sizes)):
            object.__setattr__(self, name, value)

    stored_bchw: Tensor

    @cached_property
    def images_bchw(self) -> Tensor:
        """The images as numbers."""
        return as_floats(self.stored_bchw).contiguous()

    @override
    def to(self, device: torch.device, memory_format: torch.memory_format = torch.contiguous_format) -> Batch:
        stored_bchw = self.stored_bchw.to(device, memory_format=memory_format, non_blocking=True)
        targets = map_tensors(self.targets, lambda tensor: tensor.to(device, non_blocking=True))
        return Batch(as_floats(stored_bchw), targets, self.sizes)

    @override
    def with_targets(self, targets: Any) -> Batch:
        return StoredBatch(self.stored_bchw, targets, self.sizes)

    @override
    def pinned(self) -> Batch:
        targets = map_tensors(self.targets, Tensor.pin_memory)
        return StoredBatch(self.stored_bchw.pin_memory(), targets, self.sizes)


def as_floats(images_bchw: Tensor) -> Tensor:
    """Returns uint8 images as float32 in [0, 1], the nearest number to x / 255 on every device."""
    floats_bchw = images_bchw.to(torch.float32)
    if images_bchw.device.type == "cpu":
        return floats_bchw.div_(255)
    # By a number, CUDA multiplies with the reciprocal, which is not always the same.
    return floats_bchw.div_(torch.full((), 255.0, device=images_bchw.device))


def _rows(value: Any, rows: slice | list[int], numbers: Sequence[int], count: int) -> Any:
    if isinstance(value, dict):
        return {key: _rows(item, rows, numbers, count) for key, item in value.items()}
    if isinstance(value, Tensor):
        return value[rows]
    if isinstance(value, list) and len(value) == count:
        return [value[number] for number in numbers]
    if isinstance(value, list | tuple):
        return type(value)(_rows(item, rows, numbers, count) for item in value)
    return value


def rows_of(count: int, part: Part) -> list[int]:
    """Returns which images of a batch a rank sees: every R-th pair of the i-th from its start and from its end.

    Batches are mixed in these pairs (timm's mixup), whose places in the part are again the i-th from both its ends.
    Where pairs are left over, every rank gets one image of them, as its last.

    Args:
        count: Images of the batch.
        part: The rank and R.

    Raises:
        DistproError: they cannot be shared evenly.
    """
    rank, size = part
    if count % size:
        raise DistproError(
            f"a batch of {count} images cannot be shared evenly by {size} ranks; set a batch_size (and "
            f"search.outer_batch_size) that is a multiple of {size}, and not larger than the images there are"
        )
    paired = count // 2 // size * size
    first = [*range(rank, paired, size)]
    return [*first, *(count - 1 - row for row in reversed(first)), *range(paired + rank, count - paired, size)]


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Returns `value` (tensors in dicts, lists and tuples) with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: map_tensors(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(item, change) for item in value)
    return value


class TaskData(Protocol):
    """The train, outer and test images of a run, as batches on the CPU; `ImageData` is one for images with targets.

    A batch is a function of the seed and its step alone, wherever the iteration starts and however many processes
    load it. The steps of outer batches are moves of alpha; `inner` is the size of a train batch and the steps from one
    move to the next, for data without an outer part, whose outer batch holds no image of the train batch of its step.
    `repeats` is how often an epoch of as many samples shows an image in train batches; it is given where it is not 1.
    `part` is given where many ranks share the batches, to methods that take it: then they return the rank's part of
    every batch (`rows_of`), and of the test batches every R-th. Batches of other methods are cut after they are made.

    Attributes:
        train_size: Images to train on; the inner part where there is an outer one.
        outer_size: Images that judge alpha; 0 without an outer part.
        test_size: Images to test on.
        identity: What the data are, by content and not by place: `train` and `test`, values that JSON knows.

    A property `found`, a text, is shown before a run where there is one: how many images and classes there are.
    """

    train_size: int
    outer_size: int
    test_size: int

    @property
    def identity(self) -> dict[str, Any]: ...

    def steps_per_epoch(self, batch_size: int) -> int: ...

    def train_batches(
        self, batch_size: int, num_steps: int, start_step: int = 0, repeats: int = 1, part: Part = WHOLE
    ) -> Iterator[Batch]: ...

    def outer_batches(
        self,
        batch_size: int,
        num_steps: int,
        start_step: int = 0,
        inner: tuple[int, int] | None = None,
        repeats: int = 1,
        part: Part = WHOLE,
    ) -> Iterator[Batch]: ...

    def test_batches(self, *, part: Part = WHOLE) -> Iterator[Batch]: ...


class Task(ABC):
    """Something to be learnt, under one way of training.

    Attributes:
        metric: What it is judged by.
        outputs_logits: Whether a network returns logits [B, N], whose softmax a student may learn from a teacher's.
        recipe: Of the run; its seed is that of the run.
        training: How a network is trained: `distill`, `teacher.train`, or what a search makes of `distill`.
    """

    metric: ClassVar[Metric]
    outputs_logits: ClassVar[bool] = False

    def __init__(self, recipe: Recipe, training: Training) -> None:
        self.recipe = recipe
        self.training = training

    @abstractmethod
    def data(self, spec: Data, seed: int, outer_share: float | None = None) -> TaskData:
        """Opens the data.

        Args:
            spec: The recipe's section.
            seed: Of order and augmentation.
            outer_share: Share in (0, 1) of the train images that judges alpha; None leaves all to training.

        Raises:
            DistproError: they are not there, not readable, or do not fit the recipe.
        """

    def network_options(self, spec: Data) -> dict[str, Any]:
        """Returns what the networks' constructors are given, where they take it; no data is read."""
        return {}

    def check_output(self, name: str, output: Any, spec: Data) -> None:
        """Raises DistproError if what a network returns for a batch is not what the losses take.

        Args:
            name: Of the network, for the message.
            output: Of a dry forward, batch first.
            spec: The recipe's section.
        """

    def describe(self, data: TaskData) -> dict[str, Any]:
        """Returns what was learnt from the data, as values that JSON knows; it is written beside trained weights."""
        return {}

    def doubt(self, facts: Mapping[str, str], data: TaskData) -> str | None:
        """Says why weights may not fit the data although their shapes do, None where nothing speaks against it.

        Args:
            facts: What `describe` said of the data that they were trained on, each as JSON, among others.
            data: What they are to be used on.
        """
        return None

    def augment(self, batch: Batch, step: int) -> Batch:
        """Changes a whole train batch, on the device where it lies; what it draws depends on the seed and the step
        alone.

        Where many ranks share the batch, it is given the rank's part, see `rows_of`.
        """
        return batch

    @abstractmethod
    def losses(self, output: Any, targets: Any) -> dict[str, Tensor]:
        """Returns the parts of the task loss by name, float32 scalars with their graph; their sum is minimised."""

    def scores(self, output: Any, targets: Any) -> dict[str, Tensor]:
        """Returns cheap figures of a train batch for progress, scalars; the metric's name is shown."""
        return {}

    @abstractmethod
    def evaluate(self, forward: Callable[..., Any], batches: Iterable[Batch]) -> dict[str, float]:
        """Measures a network, which the caller has put into eval mode, on test batches.

        Where many ranks train a network, each measures it on all of them, unless this is `summed_over_ranks`.

        Args:
            forward: Images float32 [B, C, H, W] in [0, 1], and the batch's `sizes` where images are padded, to the
                network's output, whose tensors are float32 on the CPU.
            batches: Targets on the CPU; images on the network's device or on the CPU.

        Returns:
            Figures by name, that of the metric among them.
        """


def summed_over_ranks(evaluate: Callable[..., Any]) -> Callable[..., Any]:
    """Marks an `evaluate` that is given the rank's test batches alone, and adds up what all ranks found."""
    evaluate.sums_over_ranks = True  # type: ignore[attr-defined]
    return evaluate


TASKS: Registry[type[Task]] = Registry("task", package="distpro_cli.tasks")
register_task = TASKS.register


def find_task(name: str) -> type[Task]:
    """Returns the task called `name`, or `Name` from `file.py:Name`.

    Raises:
        DistproError: there is no such task, or it is not a whole one.
    """
    found = TASKS.find_subclass(name, Task)  # type: ignore[type-abstract]
    if not isinstance(getattr(found, "metric", None), Metric):
        raise DistproError(f"task {name}: it lacks metric, a distpro_cli.metric.Metric")
    return found
