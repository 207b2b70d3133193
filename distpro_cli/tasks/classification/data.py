"""The images of a classification run: which train, which judge α, which test, and in what order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from distpro_cli.errors import DistproError
from distpro_cli.randomness import derived_seed
from distpro_cli.recipe import schema
from distpro_cli.tasks.images.datasets import open_dataset
from distpro_cli.tasks.images.folders import open_folder
from distpro_cli.tasks.images.loader import Batch, Plan, Samples, load_batches
from distpro_cli.tasks.images.sources import Source, open_digits
from distpro_cli.tasks.images.subsets import draw_evenly, split_off
from distpro_cli.tasks.images.transforms import TestTransform, TrainTransform

Indices = NDArray[np.int64]


def open_source(data: schema.Data, split: str | None) -> Source:
    """Opens one split of the recipe's data; `None` is the test split under its usual names.

    Raises:
        DistproError: It is not there or cannot be read.
    """
    if data.name == "digits":
        return open_digits(split or "test")
    if data.name == "folder":
        return open_folder(data.root, split)
    return open_dataset(data.name, data.root, split)


class ClassificationData:
    """Train, outer and test images of a run, as batches.

    Which image belongs to which part depends on `data.subset_seed` alone; order and augmentation depend on
    the run's seed. With `test_on: held-out` a part of the train split is the test set, and the test split is
    not opened.

    Args:
        data: The recipe's data section.
        seed: Seed of the run.
        outer_share: Share in (0, 1) of the train images that judges α; `None` leaves all to training.

    Attributes:
        num_classes: Number of classes.
        class_names: Their names, by number.
        train_size: Images to train on; the inner part where `outer_share` is set.
        outer_size: Images of the outer part; 0 without.
        test_size: Images to test on.

    Raises:
        DistproError: The data are not there, not readable, or do not fit the recipe.
    """

    def __init__(self, data: schema.Data, seed: int, outer_share: float | None = None) -> None:
        self._data = data
        self._seed = seed
        self._train_transform = TrainTransform(data)
        self._train_source = open_source(data, data.train_split)
        train = np.arange(len(self._train_source.targets))
        if data.test_on == "held-out":
            self._test_source = self._train_source
            train, test = self._split(train, data.held_out, "held-out")
        else:
            self._test_source = open_source(data, data.test_split)
            test = np.arange(len(self._test_source.targets))
            _check_same_classes(self._train_source, self._test_source)
        self.class_names = self._train_source.class_names
        self.num_classes = len(self.class_names)
        _check_num_classes(data, self._train_source)
        train = self._draw(train, self._train_source, data.train_images, "train_images")
        self._test = self._draw(test, self._test_source, data.test_images, "test_images")
        self._outer: Indices = np.empty(0, dtype=np.int64)
        if outer_share is not None:
            train, self._outer = self._split(train, outer_share, "outer")
        self._train = train
        self.train_size, self.outer_size, self.test_size = len(train), len(self._outer), len(self._test)

    @property
    def places(self) -> tuple[str, str]:
        """Where the train and the test images come from: paths, or names of data sets."""
        return self._train_source.place, self._test_source.place

    def steps_per_epoch(self, batch_size: int) -> int:
        """Returns the batches in one pass over the train images: at least one, and none that is not full."""
        return _steps_per_epoch(self.train_size, batch_size)

    def train_batches(self, batch_size: int, num_steps: int, start_step: int = 0) -> Iterator[Batch]:
        """Returns the batches of steps start_step..num_steps-1 of a run of `num_steps`.

        A batch never crosses an epoch; fewer images than `batch_size` make one batch per epoch. Batches depend
        on the seed and the number of the step, not on `workers` or on where the iteration started.

        Args:
            batch_size: Images per batch.
            num_steps: Steps of the whole run.
            start_step: First step, in the middle of any epoch.

        Yields:
            Images float32 [B, 3, S, S] in [0, 1] and class numbers int64 [B].

        Raises:
            DistproError: An image cannot be decoded.
        """
        return self._augmented(self._train, "train", batch_size, num_steps, start_step)

    def outer_batches(self, batch_size: int, num_steps: int, start_step: int = 0) -> Iterator[Batch]:
        """Returns batches of the outer part, which passes over its own images; else like `train_batches`."""
        if not self.outer_size:
            raise ValueError("there is no outer part: outer_share is None")
        return self._augmented(self._outer, "outer", batch_size, num_steps, start_step)

    def test_batches(self, batch_size: int = 256) -> Iterator[Batch]:
        """Returns all test images once, in a fixed order, unaugmented; the last batch may be smaller."""
        samples = Samples(self._test_source, TestTransform(self._data), self._data.image_size)
        batches = [(0, self._test[at : at + batch_size]) for at in range(0, self.test_size, batch_size)]
        if self._data.cache:
            self._test_source.keep(self._test.tolist())
        return load_batches(samples, batches, 0 if self._data.cache else min(self._data.workers, len(batches)))

    def _augmented(self, part: Indices, name: str, batch_size: int, num_steps: int, start: int) -> Iterator[Batch]:
        if self._data.cache:
            self._train_source.keep(part.tolist())
        samples = Samples(self._train_source, self._train_transform, self._data.image_size, self._seed)
        plan = _plan(part, derived_seed(self._seed, name), batch_size, num_steps, start)
        return load_batches(samples, plan, self._data.workers)

    def _split(self, indices: Indices, share: float, name: str) -> tuple[Indices, Indices]:
        if len(indices) < 2:
            raise DistproError(
                f"{self._train_source.place}: {len(indices)} train image cannot be split in two ({name})"
            )
        first, second = split_off(self._train_source.targets[indices], share, self._data.subset_seed, name)
        return indices[first], indices[second]

    def _draw(self, indices: Indices, source: Source, count: int | None, key: str) -> Indices:
        if count is None:
            return indices
        if count > len(indices):
            raise DistproError(f"data.{key}: {count} asked for, {source.place} has {len(indices)}")
        return indices[draw_evenly(source.targets[indices], count, self._data.subset_seed, key)]


def _steps_per_epoch(size: int, batch_size: int) -> int:
    return max(size // batch_size, 1)


def _plan(part: Indices, seed: int, batch_size: int, num_steps: int, start_step: int) -> Plan:
    """Yields epoch and image numbers of each batch; each epoch is a permutation from (seed, epoch)."""
    per_epoch = _steps_per_epoch(len(part), batch_size)
    order, ordered_epoch = part, -1
    for step in range(start_step, num_steps):
        epoch, within = divmod(step, per_epoch)
        if epoch != ordered_epoch:
            order = part[np.random.default_rng(derived_seed(seed, epoch)).permutation(len(part))]
            ordered_epoch = epoch
        yield epoch, order[within * batch_size : (within + 1) * batch_size]


def _check_num_classes(data: schema.Data, source: Source) -> None:
    found, expected = len(source.class_names), data.known_num_classes()
    if found != expected:
        origin = "" if data.num_classes is not None else " (not set)"
        raise DistproError(
            f"data.num_classes: {expected}{origin}, but {source.place} has {found} classes "
            f"({_some(source.class_names)}); set data.num_classes={found}"
        )


def _check_same_classes(train: Source, test: Source) -> None:
    if train.class_names == test.class_names:
        return
    missing = sorted(set(train.class_names) - set(test.class_names))
    extra = sorted(set(test.class_names) - set(train.class_names))
    differences = [f"without {_some(missing)}"] * bool(missing) + [f"with {_some(extra)}"] * bool(extra)
    raise DistproError(
        f"data: {test.place} has other classes than {train.place}: "
        f"{', '.join(differences) or 'another order'}; both need the same class folders"
    )


def _some(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
