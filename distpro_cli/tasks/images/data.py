"""The images of a run: which train, which judge alpha, which test, and in what order they come.

Shape legend: b images of a batch, m images of a split, h height, w width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from distpro_cli.errors import DistproError
from distpro_cli.randomness import derived_seed
from distpro_cli.recipe import schema
from distpro_cli.tasks.images.datasets import open_dataset
from distpro_cli.tasks.images.digits import open_digits
from distpro_cli.tasks.images.folders import open_folder
from distpro_cli.tasks.images.listing import skipped_text
from distpro_cli.tasks.images.loader import Draw, Order, Samples, load_batches
from distpro_cli.tasks.images.sources import Indices, Source
from distpro_cli.tasks.images.subsets import draw_evenly, split_off
from distpro_cli.tasks.images.transforms import TestTransform, TrainTransform
from distpro_cli.tasks.images.workers import Workers
from distpro_cli.tasks.task import WHOLE, Batch, Part, rows_of

SourceOpener = Callable[[schema.Data, str | None], Source]
Places = Iterator[tuple[int, Indices, int]]  # epoch, its permutation, and where in it the batch of a step starts


def open_source(spec: schema.Data, split: str | None) -> Source:
    """Opens one split of the recipe's data, with class numbers as targets.

    Args:
        spec: The recipe's section.
        split: Name of the split; None is the test split under its usual names.

    Raises:
        DistproError: it is not there or cannot be read.
    """
    if spec.name == "digits":
        return open_digits(split or "test")
    if spec.name == "folder":
        return open_folder(spec.root, split)
    return open_dataset(spec.name, spec.root, split)


class ImageData:
    """A `TaskData` of images that each have a row of targets.

    Which image belongs to which part depends on `data.subset_seed` alone; order and augmentation depend on the run's
    seed. With `test_on: held-out` a part of the train split is the test set, and the test split is not opened.

    Attributes:
        train_source: The train split.
        test_source: The split that the test images come from.
        train_size: Images to train on; the inner part where `outer_share` is set.
        outer_size: Images of the outer part; 0 without.
        test_size: Images to test on.
    """

    def __init__(
        self, spec: schema.Data, seed: int, outer_share: float | None = None, open_source: SourceOpener = open_source
    ) -> None:
        """Opens the splits and draws the parts.

        Args:
            spec: The recipe's section.
            seed: Of the run.
            outer_share: Share in (0, 1) of the train images that judges alpha; None leaves all to training.
            open_source: Opens a split, with the task's targets.

        Raises:
            DistproError: the data are not there, not readable, or fewer than the recipe asks for.
        """
        self._spec = spec
        self._seed = seed
        self._train_transform = self.transform(training=True)
        self._workers = Workers(spec.workers) if spec.workers else None
        self.train_source = self.test_source = open_source(spec, spec.train_split)
        train = np.arange(len(self.train_source))
        if spec.test_on == "held-out":
            train, test = self._split(train, spec.held_out, "held-out")
        else:
            self.test_source = open_source(spec, spec.test_split)
            test = np.arange(len(self.test_source))
        train = self._draw(train, self.train_source, spec.train_images, "train_images")
        self._test = self._draw(test, self.test_source, spec.test_images, "test_images")
        outer: Indices = train[:0]
        if outer_share is not None:
            train, outer = self._split(train, outer_share, "outer")
        self._train, self._outer = train, outer
        self.train_size, self.outer_size, self.test_size = len(train), len(outer), len(self._test)

    @property
    def identity(self) -> dict[str, Any]:
        """What the splits are, by content and not by place, as values that JSON knows."""
        return {"train": self.train_source.identity, "test": self.test_source.identity}

    @property
    def found(self) -> str:
        """What the splits hold, in one line, and what in them was left out; empty where there is nothing to say."""
        sources = {"train": self.train_source, "test": self.test_source}
        if self.test_source is self.train_source:
            del sources["test"]
        texts = [source.found(part) for part, source in sources.items()]
        texts += [
            f"skipped in {part}: {skipped_text(source.skipped)}" for part, source in sources.items() if source.skipped
        ]
        return "; ".join(text for text in texts if text)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Returns the batches in one pass over the train images: at least one, and none that is not full."""
        return _num_batches(self.train_size, batch_size)

    def train_batches(
        self, batch_size: int, num_steps: int, start_step: int = 0, repeats: int = 1, part: Part = WHOLE
    ) -> Iterator[Batch]:
        """Returns the batches of steps start_step..num_steps-1 of a run of `num_steps`.

        A batch never crosses an epoch; fewer images than `batch_size` make one batch per epoch. Batches depend on the
        seed and the number of the step, not on `workers` or on where the iteration started.

        With `repeats` (repeated augmentation, Hoffer et al. 2020, as timm's RepeatAugSampler plans it) an epoch has as
        many samples as without, of fewer images: of a permutation, every image `repeats` times in a row.

        Args:
            batch_size: Images per batch.
            num_steps: Steps of the whole run.
            start_step: First step, in the middle of any epoch.
            repeats: Samples of an image in an epoch, each with its own augmentation.
            part: Which images of every batch are wanted; they are those of the whole batch, augmented alike.

        Yields:
            Images float32 [B, 3, H, W] in [0, 1] and targets [B, ...].

        Raises:
            DistproError: an image cannot be decoded.
        """
        return self._augmented(self._train, "train", batch_size, range(start_step, num_steps), part, repeats)

    def outer_batches(
        self,
        batch_size: int,
        num_steps: int,
        start_step: int = 0,
        inner: tuple[int, int] | None = None,
        repeats: int = 1,
        part: Part = WHOLE,
    ) -> Iterator[Batch]:
        """Returns batches that judge: of the outer part, which passes over its own images; else like `train_batches`.

        Without an outer part they come from the train part, and hold no image of the train batch of their step: they
        lie half an epoch away in the same permutation, and their augmentation is drawn on its own.

        Args:
            batch_size: Images per batch; fewer where the train batch leaves fewer.
            num_steps: Outer batches of the whole run.
            start_step: First of them.
            inner: Size of a train batch and train steps per outer batch, of a run without an outer part; None: as many
                images, one step.
            repeats: Of the train batches; an outer batch holds an image once.
            part: As in `train_batches`.

        Raises:
            DistproError: also where all images are in one train batch.
        """
        if self.outer_size:
            return self._augmented(self._outer, "outer", batch_size, range(start_step, num_steps), part)
        inner_size, interval = inner or (batch_size, 1)
        if self.train_size <= inner_size:
            raise DistproError(
                f"search.outer: train needs more than one batch of train images; there are {self.train_size} for a "
                f"batch of {inner_size}: set a smaller batch_size, or outer: held-out"
            )
        steps = range(start_step * interval, num_steps * interval, interval)
        places = _places(self._train, derived_seed(self._seed, "train"), inner_size, steps)
        order = self.order_beside(places, (inner_size, repeats), batch_size)
        return self._loaded("beside", order, part)

    def test_batches(self, batch_size: int = 256, part: Part = WHOLE) -> Iterator[Batch]:
        """Returns all test images once, in a fixed order, unaugmented; the last batch may be smaller.

        Of (rank, R), `part` takes every R-th batch.
        """
        order = [once(0, self._test[at : at + batch_size]) for at in range(0, self.test_size, batch_size)]
        return self._loaded_tests(order[part[0] :: part[1]])

    def transform(self, *, training: bool) -> Callable[..., Any]:
        """Makes what changes an image in training or in a test."""
        return TrainTransform(self._spec) if training else TestTransform(self._spec)

    def samples(self, source: Source, transform: Callable[..., Any], seed: int | None = None) -> Samples:
        """Makes what reads the batches of a split."""
        return Samples(source, transform, seed)

    def order(self, places: Places, batch_size: int, repeats: int) -> Order:
        """Yields the batch of each place, in an epoch of every image `repeats` times in a row."""
        return _order(places, batch_size, repeats)

    def order_beside(self, places: Places, inner: tuple[int, int], batch_size: int) -> Order:
        """Yields, for each step, images that are not in its train batch; `inner` is its size and repeats."""
        return _order_beside(places, inner, batch_size)

    def _augmented(
        self, images: Indices, name: str, batch_size: int, steps: range, part: Part, repeats: int = 1
    ) -> Iterator[Batch]:
        places = _places(images, derived_seed(self._seed, name), batch_size, steps)
        return self._loaded("train", self.order(places, batch_size, repeats), part)

    @cached_property
    def _samples(self) -> dict[str, Samples]:
        """What reads train and outer images, outer images of a run without an outer part, and test images."""
        train, test = self._train_transform, self.transform(training=False)
        return {
            "train": self.samples(self.train_source, train, self._seed),
            "beside": self.samples(self.train_source, train, derived_seed(self._seed, "outer")),
            "test": self.samples(self.test_source, test),
        }

    def _loaded(self, name: str, order: Order, part: Part) -> Iterator[Batch]:
        if self._spec.cache:  # all of them before processes are forked, which then share them
            self.train_source.keep([*self._train.tolist(), *self._outer.tolist()])
        return self._load(name, order if part == WHOLE else _parts(order, part), self._workers)

    def _load(self, name: str, order: Order, workers: Workers | None) -> Iterator[Batch]:
        return load_batches(self._samples[name], order, workers, [*self._samples.values()])

    def _loaded_tests(self, order: Sequence[Draw]) -> Iterator[Batch]:
        if self._spec.cache:
            self.test_source.keep(self._test.tolist())
        return self._load("test", order, None if self._spec.cache else self._workers)

    def _split(self, indices: Indices, share: float, name: str) -> tuple[Indices, Indices]:
        source = self.train_source
        if len(indices) < 2:
            raise DistproError(f"{source.place}: {len(indices)} train image cannot be split in two ({name})")
        first, second = split_off(source.strata_of(indices), share, self._spec.subset_seed, name)
        return indices[first], indices[second]

    def _draw(self, indices: Indices, source: Source, count: int | None, key: str) -> Indices:
        if count is None:
            return indices
        if count > len(indices):
            raise DistproError(f"data.{key}: {count} asked for, {source.place} has {len(indices)}")
        return indices[draw_evenly(source.strata_of(indices), count, self._spec.subset_seed, key)]


def _num_batches(size: int, batch_size: int) -> int:
    return max(size // batch_size, 1)


def once(epoch: int, indices: Indices) -> Draw:
    """Returns the draw of these images, each in the first of its augmentations."""
    return Draw(epoch, indices, np.zeros_like(indices))


def _parts(order: Order, part: Part) -> Order:
    """Yields a rank's part of every batch."""
    for draw in order:
        rows = rows_of(len(draw.indices), part)
        yield Draw(draw.epoch, draw.indices[rows], draw.repeats[rows])


def _order(places: Places, batch_size: int, repeats: int) -> Order:
    for epoch, order, start in places:
        samples = np.arange(start, min(start + batch_size, len(order)))
        yield Draw(epoch, order[samples // repeats], samples % repeats)


def _order_beside(places: Places, inner: tuple[int, int], batch_size: int) -> Order:
    """Yields the images that are farthest from those of each train batch."""
    inner_size, repeats = inner
    for epoch, order, start in places:
        first_inner, end_inner = start // repeats, -(-(start + inner_size) // repeats)
        others = np.roll(order, -end_inner)[: len(order) - (end_inner - first_inner)]
        first = max((len(others) - batch_size) // 2, 0)
        yield once(epoch, others[first : first + batch_size])


def _places(part: Indices, seed: int, batch_size: int, steps: range) -> Places:
    """Yields, for each step, its epoch, that epoch's permutation, from (seed, epoch), and where its batch starts."""
    per_epoch = _num_batches(len(part), batch_size)
    order, ordered_epoch = part, -1
    for step in steps:
        epoch, within = divmod(step, per_epoch)
        if epoch != ordered_epoch:
            order = part[np.random.default_rng(derived_seed(seed, epoch)).permutation(len(part))]
            ordered_epoch = epoch
        yield epoch, order, within * batch_size
