"""The images of a run and their objects, in batches of like aspect.

Shape legend: b images of a batch, m images of a part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from distpro_cli.recipe import schema
from distpro_cli.tasks.detection.source import DetectionSource, open_splits
from distpro_cli.tasks.detection.transforms import DetectionTransform, Target, padded
from distpro_cli.tasks.images.data import ImageData, Places, once
from distpro_cli.tasks.images.loader import Order, Samples
from distpro_cli.tasks.images.sources import Indices, Picture, Pixels, Source
from distpro_cli.tasks.task import WHOLE, Batch, Part

TEST_BATCH = 4


@dataclass(frozen=True)
class DetectionSamples(Samples):
    """Turns image numbers into padded batches."""

    source: DetectionSource

    @override
    def sample(self, image: Picture, index: int) -> tuple[Pixels, Target]:
        """Returns the image and its targets, with its number as `image` and its height and width as `size`."""
        image_hwc, target = self.transform(image, self.source.objects[index])
        return image_hwc, {**target, "image": index, "size": (image_hwc.shape[0], image_hwc.shape[1])}

    @override
    def batch(self, made: Sequence[tuple[Pixels, Target]], indices: Indices) -> tuple[Any, ...]:
        """Returns images uint8 [B, 3, H, W], the targets of each, and the sizes."""
        images_bchw, sizes = padded([image_hwc for image_hwc, _ in made])
        return images_bchw, [target for _, target in made], sizes


class DetectionData(ImageData):
    """A `TaskData` of images with objects; targets are lists of what `DetectionTransform` makes.

    Train batches hold images that are all at least as wide as high, or all higher, but for the last ones of an epoch,
    so that little is padded.
    """

    train_source: DetectionSource
    test_source: DetectionSource

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
        self._masks = masks
        splits = [spec.train_split] if spec.test_on == "held-out" else [spec.train_split, spec.test_split]
        opened = open_splits(spec.root, splits, masks=masks, skip_bad=spec.skip_bad)
        by_name = dict(zip(splits, opened, strict=True))
        super().__init__(spec, seed, outer_share, lambda _, split: by_name[split])

    @override
    def transform(self, *, training: bool) -> DetectionTransform:
        return DetectionTransform(self._spec, training=training, masks=training and self._masks)

    @override
    def samples(self, source: Source, transform: Any, seed: int | None = None) -> DetectionSamples:
        assert isinstance(source, DetectionSource)
        return DetectionSamples(source, transform, seed)

    @override
    def test_batches(self, batch_size: int = TEST_BATCH, part: Part = WHOLE) -> Iterator[Batch]:
        """Returns all test images once, those of like aspect together, unaugmented; of `part` (rank, R) every R-th
        batch.

        Targets hold all that an evaluation needs of an image as it was: its `objects` and its `original_size`.
        """
        source = self.test_source
        aspects = np.array([width / height for height, width in source.sizes])
        ordered = self._test[np.argsort(aspects[self._test], kind="stable")]
        order = [once(0, ordered[at : at + batch_size]) for at in range(0, self.test_size, batch_size)]
        for batch in self._loaded_tests(order[part[0] :: part[1]]):
            targets = [
                {**own, "objects": source.objects[own["image"]], "original_size": source.sizes[own["image"]]}
                for own in batch.targets
            ]
            yield batch.with_targets(targets)

    @override
    def order(self, places: Places, batch_size: int, repeats: int) -> Order:
        for epoch, batches, within in self._batches(places, batch_size):
            yield once(epoch, batches[within])

    @override
    def order_beside(self, places: Places, inner: tuple[int, int], batch_size: int) -> Order:
        for epoch, batches, within in self._batches(places, inner[0]):
            yield once(epoch, _beside(batches, within, batch_size))

    def _batches(self, places: Places, batch_size: int) -> Iterator[tuple[int, list[Indices], int]]:
        """Yields, for each step, its epoch, that epoch's batches, and which of them is the step's."""
        wide_m = np.array([width >= height for height, width in self.train_source.sizes])
        batches: list[Indices] = []
        batched_epoch = -1
        for epoch, order, start in places:
            if epoch != batched_epoch:
                batches, batched_epoch = _by_aspect(order, wide_m, batch_size), epoch
            yield epoch, batches, start // batch_size


def _by_aspect(order: Indices, wide_m: NDArray[np.bool_], batch_size: int) -> list[Indices]:
    """Returns the full batches of an epoch, each of one aspect, then those of what both aspects leave over."""
    waiting: dict[bool, list[int]] = {False: [], True: []}
    batches: list[Indices] = []
    for image in order.tolist():
        own = waiting[bool(wide_m[image])]
        own.append(image)
        if len(own) == batch_size:
            batches.append(np.array(own))
            own.clear()
    rest = np.array([*waiting[True], *waiting[False]], dtype=np.int64)
    batches += [rest[at : at + batch_size] for at in range(0, len(rest) - batch_size + 1, batch_size)]
    return batches or [rest]


def _beside(batches: list[Indices], within: int, count: int) -> Indices:
    """Returns images of the batches farthest from one of them, and none of its own; fewer where there are fewer."""
    around = ((within + len(batches) // 2 + n) % len(batches) for n in range(len(batches)))
    return np.concatenate([batches[place] for place in around if place != within])[:count]
