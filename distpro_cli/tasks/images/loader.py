"""Batches of a source in a given order, in this process or in workers; the result is the same.

Shape legend: b images, c channels, h height, w width; H, W those of the networks' input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from distpro_cli.randomness import derived_seed, global_states_kept, seed_globals
from distpro_cli.tasks.images.sources import Indices, Picture, Pixels, Source
from distpro_cli.tasks.images.workers import Workers, empty_batch
from distpro_cli.tasks.task import Batch, StoredBatch


class Draw(NamedTuple):
    """What a batch is made of.

    Attributes:
        epoch: From 0.
        indices: Image numbers, [B].
        repeats: Of each, which of its augmentations in this epoch, from 0, [B].
    """

    epoch: int
    indices: Indices
    repeats: Indices


Order = Iterable[Draw]  # of every batch


@dataclass(frozen=True)
class Samples:
    """Turns image numbers into tensors.

    Attributes:
        source: The images.
        transform: From uint8 [h, w, 3] to uint8 [H, W, 3]; a subclass may have one of another kind. One with an
            attribute `takes_pictures` is given a Pillow image where the source has one.
        seed: With it, the global generators are seeded from (seed, epoch, index, repeat) before each sample.
    """

    source: Source
    transform: Callable[..., Any]
    seed: int | None = None

    def __call__(self, draw: Draw) -> tuple[Any, ...]:
        """Reads one batch; leaves global random states as they were.

        Returns:
            What `batch` makes.

        Raises:
            DistproError: an image cannot be decoded.
        """
        made = []
        load = self.source.picture if getattr(self.transform, "takes_pictures", False) else self.source.load
        with global_states_kept():
            for index, repeat in zip(draw.indices.tolist(), draw.repeats.tolist(), strict=True):
                image = load(index)
                if self.seed is not None:
                    seed_globals(derived_seed(self.seed, draw.epoch, index, *([repeat] if repeat else [])))
                made.append(self.sample(image, index))
        return self.batch(made, draw.indices)

    def sample(self, image: Picture, index: int) -> Any:
        """Changes an image as `transform` does."""
        return self.transform(image)

    def batch(self, made: Sequence[Any], indices: Indices) -> tuple[Any, ...]:
        """Returns the parts of a `Batch`: images uint8 [B, 3, H, W] and targets [B, ...]."""
        return stacked(made), torch.from_numpy(self.source.targets[indices])


def stacked(images: Sequence[Pixels]) -> torch.Tensor:
    """Returns images of one size as uint8 [B, 3, H, W]; in memory the channels come last, as they are read."""
    images_bhwc = empty_batch(len(images), *images[0].shape)
    for place_hwc, image_hwc in zip(images_bhwc.numpy(), images, strict=True):
        place_hwc[:] = image_hwc
    return images_bhwc.permute(0, 3, 1, 2)


def load_batches(
    samples: Samples, order: Order, workers: Workers | None, others: Sequence[Samples] = ()
) -> Iterator[Batch]:
    """Returns images and their targets, batch by batch of the order; the images are float32 [B, 3, H, W] in [0, 1] once
    they are looked at.

    Args:
        samples: What to read from.
        order: What every batch is made of.
        workers: Processes that read; None: this one does.
        others: What else they will read from.

    Raises:
        DistproError: an image cannot be decoded, or a worker died.
    """
    made = (samples(draw) for draw in order) if workers is None else workers.stream(samples, order, others)
    with closing(made):  # before Python 3.13, closing a generator need not close the one that it reads from
        for images_bchw, *rest in made:
            yield StoredBatch(images_bchw, *rest)
