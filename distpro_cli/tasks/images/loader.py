"""Batches of a source in a given order, in this process or in workers; the result is the same.

Shape legend: b images, c channels, h height, w width, s image size.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from distpro_cli.errors import DistproError
from distpro_cli.randomness import derived_seed, global_states_kept, seed_globals
from distpro_cli.tasks.images.sources import Indices, Pixels, Source
from distpro_cli.tasks.task import Batch

Order = Iterable[tuple[int, Indices]]  # epoch and image numbers of every batch


@dataclass(frozen=True)
class Samples(Dataset[Any]):
    """Turns image numbers into tensors.

    Attributes:
        source: The images.
        transform: From uint8 [H, W, 3] to uint8 [S, S, 3].
        image_size: S.
        seed: With it, the global generators are seeded from (seed, epoch, index) before each sample.
    """

    source: Source
    transform: Callable[[Pixels], Pixels]
    image_size: int
    seed: int | None = None

    def read(self, epoch: int, indices: Indices) -> tuple[Tensor, Tensor]:
        """Returns images uint8 [B, 3, S, S] and targets [B, ...]; leaves global random states as they were.

        Raises:
            DistproError: an image cannot be decoded.
        """
        size = self.image_size
        images_bchw = np.empty((len(indices), 3, size, size), dtype=np.uint8)
        with global_states_kept():
            for row, index in enumerate(indices.tolist()):
                image_hwc = self.source.load(index)
                if self.seed is not None:
                    seed_globals(derived_seed(self.seed, epoch, index))
                images_bchw[row] = self.transform(image_hwc).transpose(2, 0, 1)
        return torch.from_numpy(images_bchw), torch.from_numpy(self.source.targets[indices])

    def __getitems__(self, ordered: Any) -> tuple[Tensor, Tensor] | str:
        """Reads one batch for torch's loader; an error of the user's comes back as its text."""
        try:
            return self.read(*ordered)
        except DistproError as error:  # an exception out of a worker would carry its traceback as its message
            return str(error)


def load_batches(samples: Samples, order: Order, workers: int) -> Iterator[Batch]:
    """Yields images float32 [B, 3, S, S] in [0, 1] and targets [B, ...], batch by batch of the order.

    Workers start at the first batch, live until the order ends or the iterator is closed, and leave this
    process's random states alone.

    Args:
        samples: What to read from.
        order: Epoch and image numbers of every batch.
        workers: Processes; 0 reads in this one.

    Raises:
        DistproError: an image cannot be decoded, or a worker was killed.
    """
    if workers == 0:
        for epoch, indices in order:
            yield _as_batch(*samples.read(epoch, indices))
        return
    batches = _start(samples, order, workers)
    try:
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                reason = str(error).splitlines()[0]
                raise DistproError(
                    f"data.workers: a process that loads data died ({reason}); memory may be "
                    f"short, /dev/shm too: there were {workers}, set fewer, or data.workers=0"
                ) from error
            if isinstance(batch, str):
                raise DistproError(batch)
            yield _as_batch(*batch)
    finally:
        del batches  # torch's iterator stops its workers when it is dropped


def _start(samples: Samples, order: Order, workers: int) -> Iterator[tuple[Tensor, Tensor] | str]:
    context = multiprocessing.get_context("fork") if sys.platform == "linux" else None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*worker processes in total.*")
        warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork.*", category=DeprecationWarning)
        loader: DataLoader[Any] = DataLoader(
            samples,
            batch_sampler=order,  # type: ignore[arg-type]  # __getitems__ takes what the order yields
            num_workers=workers,
            collate_fn=_as_it_is,
            worker_init_fn=_set_signals,
            multiprocessing_context=context,
            generator=torch.Generator(),  # else a seed is drawn from the global one
        )
        return iter(loader)


def _as_batch(images_bchw: Tensor, targets: Tensor) -> Batch:
    return Batch(images_bchw.to(torch.float32).div_(255), targets)


def _as_it_is(batch: Any) -> Any:
    return batch


def _set_signals(_worker: int) -> None:
    """Leaves stopping to the main process: a signal to the whole group must not take its data away.

    SIGINT is ignored. So is the first SIGTERM; a second one ends the worker. A worker whose parent is gone
    ends by itself.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _first_sigterm)


def _first_sigterm(_number: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
