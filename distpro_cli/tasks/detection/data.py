"""The images of a run and their objects, in batches of like aspect.

Shape legend: b images of a batch, m images of a part.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from distpro_cli.errors import DistproError
from distpro_cli.randomness import derived_seed, global_states_kept, seed_globals
from distpro_cli.recipe import schema
from distpro_cli.tasks.detection.source import DetectionSource, open_splits
from distpro_cli.tasks.detection.transforms import DetectionTransform, Target, padded
from distpro_cli.tasks.images.listing import skipped_text
from distpro_cli.tasks.images.loader import Order, load_batches
from distpro_cli.tasks.images.sources import Indices
from distpro_cli.tasks.images.subsets import draw_evenly, split_off
from distpro_cli.tasks.task import Batch, Sizes

TEST_BATCH = 4


@dataclass(frozen=True)
class DetectionSamples(Dataset[Any]):
    """Turns image numbers into padded batches.

    Attributes:
        source: The images.
        transform: Of an image and its objects.
        seed: With it, the global generators are seeded from (seed, epoch, index) before each sample.
    """

    source: DetectionSource
    transform: DetectionTransform
    seed: int | None = None

    def __getitems__(self, ordered: Any) -> tuple[Tensor, list[Target], Sizes] | DistproError:
        """Reads one batch of an `Order` for torch's loader; leaves global random states as they were.

        Returns:
            Images uint8 [B, 3, H, W], the targets of each, with its number as `image` and its height and width as
            `size`, and all sizes; or the error of an image that cannot be decoded.
        """
        epoch, indices = ordered
        images, targets = [], []
        with global_states_kept():
            for index in indices.tolist():
                try:
                    image_hwc = self.source.load(index)
                except DistproError as error:
                    return error
                if self.seed is not None:
                    seed_globals(derived_seed(self.seed, epoch, index))
                image_hwc, target = self.transform(image_hwc, self.source.objects[index])
                images.append(image_hwc)
                targets.append({**target, "image": index, "size": (image_hwc.shape[0], image_hwc.shape[1])})
        images_bchw, sizes = padded(images)
        return images_bchw, targets, sizes


class DetectionData:
    """A `TaskData` of images with objects.

    Train batches hold images that are all at least as wide as high, or all higher, but for the last ones of an epoch,
    so that little is padded. Which image belongs to which part depends on `data.subset_seed` alone; order and
    augmentation depend on the run's seed.

    Attributes:
        train_source: The train split.
        test_source: The split that the test images come from.
        train_size: Images to train on; the inner part where `outer_share` is set.
        outer_size: Images of the outer part; 0 without.
        test_size: Images to test on.
    """

    def __init__(self, spec: schema.Data, seed: int, outer_share: float | None = None, *, masks: bool = False) -> None:
        """Opens the splits and draws the parts.

        Args:
            spec: The recipe's section.
            seed: Of the run.
            outer_share: Share in (0, 1) of the train images that judges alpha; None leaves all to training.
            masks: Whether masks are learnt.

        Raises:
            DistproError: the data are not there or faulty, or fewer than the recipe asks for.
        """
        self._spec, self._seed, self.masks = spec, seed, masks
        self._train_transform = DetectionTransform(spec, training=True, masks=masks)
        held_out = spec.test_on == "held-out"
        splits = [spec.train_split] if held_out else [spec.train_split, spec.test_split]
        sources = open_splits(spec.root, splits, masks=masks, skip_bad=spec.skip_bad)
        self.train_source, self.test_source = sources[0], sources[-1]
        train, test = np.arange(len(self.train_source)), np.arange(len(self.test_source))
        if held_out:
            train, test = self._split(train, spec.held_out, "held-out")
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
        """What the splits hold, in one line, and what in them was left out."""
        sources = {"train": self.train_source, "test": self.test_source}
        if self.test_source is self.train_source:
            del sources["test"]
        texts = [source.found(part) for part, source in sources.items()]
        texts += [
            f"left out of {part}: {skipped_text(source.skipped)}" for part, source in sources.items() if source.skipped
        ]
        return "; ".join(texts)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Returns the batches in one pass over the train images: at least one, and none that is not full."""
        return _steps_per_epoch(self.train_size, batch_size)

    def train_batches(self, batch_size: int, num_steps: int, start_step: int = 0) -> Iterator[Batch]:
        """Returns the batches of steps start_step..num_steps-1 of a run of `num_steps`.

        Args:
            batch_size: Images per batch.
            num_steps: Steps of the whole run.
            start_step: First step, in the middle of any epoch.

        Yields:
            Images float32 [B, 3, H, W] in [0, 1] and, for each, the targets of `DetectionTransform`.

        Raises:
            DistproError: an image cannot be decoded.
        """
        return self._augmented(self._train, "train", batch_size, range(start_step, num_steps))

    def outer_batches(
        self, batch_size: int, num_steps: int, start_step: int = 0, inner: tuple[int, int] | None = None
    ) -> Iterator[Batch]:
        """Returns batches that judge: of the outer part, which passes over its own images; else like `train_batches`.

        Without an outer part they hold no image of the train batch of their step: they lie half an epoch away, and
        their augmentation is drawn on its own. Arguments and errors are those of `ImageData.outer_batches`.
        """
        if self.outer_size:
            return self._augmented(self._outer, "outer", batch_size, range(start_step, num_steps))
        inner_size, interval = inner or (batch_size, 1)
        if self.train_size <= inner_size:
            raise DistproError(
                f"search.outer: train needs more than one batch of train images; there are {self.train_size} for a "
                f"batch of {inner_size}: set a smaller batch_size, or outer: held-out"
            )
        steps = range(start_step * interval, num_steps * interval, interval)
        order = (
            (epoch, _beside(batches, within, batch_size))
            for epoch, batches, within in self._places(self._train, "train", inner_size, steps)
        )
        return self._loaded(order, derived_seed(self._seed, "outer"))

    def test_batches(self) -> Iterator[Batch]:
        """Returns all test images once, those of like aspect together; nothing is augmented."""
        spec = self._spec
        transform = DetectionTransform(spec, training=False, masks=False)
        aspects = np.array([width / height for height, width in self.test_source.sizes])
        ordered = self._test[np.argsort(aspects[self._test], kind="stable")]
        order = [(0, ordered[at : at + TEST_BATCH]) for at in range(0, self.test_size, TEST_BATCH)]
        samples = DetectionSamples(self.test_source, transform)
        for batch in load_batches(samples, order, 0 if spec.cache else min(spec.workers, len(order))):
            yield Batch(batch.images_bchw, [self._whole(target) for target in batch.targets], batch.sizes)

    def _whole(self, target: Target) -> Target:
        """Returns a test target with all that an evaluation needs of the image as it was."""
        index, source = target["image"], self.test_source
        return {**target, "objects": source.objects[index], "original_size": source.sizes[index]}

    def _augmented(self, part: Indices, name: str, batch_size: int, steps: range) -> Iterator[Batch]:
        order = ((epoch, batches[within]) for epoch, batches, within in self._places(part, name, batch_size, steps))
        return self._loaded(order, self._seed)

    def _loaded(self, order: Order, seed: int) -> Iterator[Batch]:
        if self._spec.cache:
            self.train_source.keep([*self._train.tolist(), *self._outer.tolist()])
        samples = DetectionSamples(self.train_source, self._train_transform, seed)
        return load_batches(samples, order, self._spec.workers)

    def _places(
        self, part: Indices, name: str, batch_size: int, steps: range
    ) -> Iterator[tuple[int, list[Indices], int]]:
        """Yields, for each step, its epoch, that epoch's batches, from (seed, epoch), and which is the step's."""
        seed, per_epoch = derived_seed(self._seed, name), _steps_per_epoch(len(part), batch_size)
        wide = np.array([width >= height for height, width in self.train_source.sizes])
        batches, ordered_epoch = [part], -1
        for step in steps:
            epoch, within = divmod(step, per_epoch)
            if epoch != ordered_epoch:
                order = part[np.random.default_rng(derived_seed(seed, epoch)).permutation(len(part))]
                batches, ordered_epoch = _by_aspect(order, wide, batch_size), epoch
            yield epoch, batches, within

    def _split(self, indices: Indices, share: float, name: str) -> tuple[Indices, Indices]:
        if len(indices) < 2:
            raise DistproError(f"{self.train_source.place}: {len(indices)} train image cannot be split in two ({name})")
        alike = np.zeros(len(indices), dtype=np.int64)
        first, second = split_off(alike, share, self._spec.subset_seed, name)
        return indices[first], indices[second]

    def _draw(self, indices: Indices, source: DetectionSource, count: int | None, key: str) -> Indices:
        if count is None:
            return indices
        if count > len(indices):
            raise DistproError(f"data.{key}: {count} asked for, {source.place} has {len(indices)}")
        alike = np.zeros(len(indices), dtype=np.int64)
        return indices[draw_evenly(alike, count, self._spec.subset_seed, key)]


def _steps_per_epoch(size: int, batch_size: int) -> int:
    return max(size // batch_size, 1)


def _by_aspect(order: Indices, wide: Any, batch_size: int) -> list[Indices]:
    """Returns the full batches of an epoch, each of one aspect, then those of what both aspects leave over."""
    waiting: dict[bool, list[int]] = {False: [], True: []}
    batches: list[Indices] = []
    for image in order.tolist():
        own = waiting[bool(wide[image])]
        own.append(image)
        if len(own) == batch_size:
            batches.append(np.array(own))
            own.clear()
    rest = np.array([*waiting[True], *waiting[False]], dtype=np.int64)
    batches += [rest[at : at + batch_size] for at in range(0, len(rest) - batch_size + 1, batch_size)]
    return batches or [rest]


def _beside(batches: list[Indices], within: int, count: int) -> Indices:
    """Returns images of the batches farthest from one of them, and none of its own; fewer where there are fewer."""
    places: Iterable[int] = (within + len(batches) // 2 + n for n in range(len(batches)))
    others = [batches[place % len(batches)] for place in places if place % len(batches) != within]
    return np.concatenate(others)[:count]
