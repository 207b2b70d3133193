"""Batches of a source in a given order, in this process or in workers; the result is the same.

Shape legend: b images, c channels, h height, w width; H, W those of the networks' input.
"""

from __future__ import annotations

import atexit
import functools
import os
import signal
import sys
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from distpro_cli.errors import DistproError, first_line
from distpro_cli.randomness import derived_seed, global_states_kept, seed_globals
from distpro_cli.tasks.images.sources import Indices, Pixels, Source
from distpro_cli.tasks.task import Batch


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
class Samples(Dataset[Any]):
    """Turns image numbers into tensors.

    Attributes:
        source: The images.
        transform: From uint8 [h, w, 3] to uint8 [H, W, 3]; a subclass may have one of another kind.
        seed: With it, the global generators are seeded from (seed, epoch, index, repeat) before each sample.
    """

    source: Source
    transform: Callable[..., Any]
    seed: int | None = None

    def __getitems__(self, ordered: Any) -> tuple[Any, ...] | DistproError:
        """Reads one batch of an `Order` for torch's loader; leaves global random states as they were.

        Returns:
            What `batch` makes; or the error of an image that cannot be decoded, because one that a worker raises would
            carry its traceback as its message.
        """
        draw: Draw = ordered
        made = []
        with global_states_kept():
            for index, repeat in zip(draw.indices.tolist(), draw.repeats.tolist(), strict=True):
                try:
                    image_hwc = self.source.load(index)
                except DistproError as error:
                    return error
                if self.seed is not None:
                    seed_globals(derived_seed(self.seed, draw.epoch, index, *([repeat] if repeat else [])))
                made.append(self.sample(image_hwc, index))
        return self.batch(made, draw.indices)

    def sample(self, image_hwc: Pixels, index: int) -> Any:
        """Changes an image as `transform` does."""
        return self.transform(image_hwc)

    def batch(self, made: Sequence[Any], indices: Indices) -> tuple[Any, ...]:
        """Returns the parts of a `Batch`: images uint8 [B, 3, H, W] and targets [B, ...]."""
        images_bchw = np.ascontiguousarray(np.stack(made).transpose(0, 3, 1, 2))
        return torch.from_numpy(images_bchw), torch.from_numpy(self.source.targets[indices])


def load_batches(samples: Samples, order: Order, workers: int) -> Iterator[Batch]:
    """Returns images float32 [B, 3, H, W] in [0, 1] and their targets, batch by batch of the order.

    Workers start at the first batch, live until the order ends or the iterator is closed, and leave this
    process's random states alone.

    Args:
        samples: What to read from.
        order: What every batch is made of.
        workers: Processes; 0 reads in this one.

    Raises:
        DistproError: an image cannot be decoded, or a worker died.
    """
    batches = _load(samples, order, workers)
    _end_before_exit(batches)
    return batches


def _load(samples: Samples, order: Order, workers: int) -> Iterator[Batch]:
    batch = batches = None
    try:
        with _death_found_here():
            batches = _start(samples, order, workers)
        for batch in batches:
            if isinstance(batch, DistproError):
                raise batch
            images_bchw, *others = batch
            yield Batch(images_bchw.to(torch.float32).div_(255), *others)
    except (RuntimeError, OSError, EOFError) as error:  # the last: it died while it handed over a batch
        if not workers or str(error).startswith("Caught "):  # raised by a worker that lives
            raise
        raise DistproError(
            f"data.workers: a process that loads data died, or could not be had ({first_line(error)}); memory may be "
            f"short, /dev/shm too: there were {workers}, set fewer, or data.workers=0"
        ) from error.with_traceback(None)  # it would hold torch's iterator
    finally:
        # Dropped, torch's iterator stops its workers; an error that holds this frame must not hold it.
        del batch, batches


def _end_before_exit(batches: Iterator[Batch]) -> None:
    """Closes an iterator that something still holds when the interpreter exits.

    Multiprocessing would wait for its workers for ever, since they ignore the one SIGTERM that it sends.
    """
    _closed_at_exit().add(batches)


@functools.cache
def _closed_at_exit() -> weakref.WeakSet[Iterator[Batch]]:
    running: weakref.WeakSet[Iterator[Batch]] = weakref.WeakSet()

    def close_all() -> None:
        for batches in list(running):
            batches.close()  # type: ignore[attr-defined]  # a generator

    atexit.register(close_all)  # what is registered last runs first
    return running


@contextmanager
def _death_found_here() -> Iterator[None]:
    """Keeps torch from installing a handler that reports a dead worker wherever this process happens to be.

    Without it torch finds the dead one within five seconds, when it waits for a batch.
    """
    number = getattr(signal, "SIGCHLD", None)
    before = None if number is None else signal.getsignal(number)
    yield
    if number is not None and before is not None and signal.getsignal(number) is not before:
        signal.signal(number, before)


def _start(samples: Samples, order: Order, workers: int) -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*worker processes in total.*")
        warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork.*", category=DeprecationWarning)
        loader: DataLoader[Any] = DataLoader(
            samples,
            batch_sampler=order,  # type: ignore[arg-type]  # __getitems__ takes what the order yields
            num_workers=workers,
            collate_fn=_as_it_is,
            worker_init_fn=partial(_start_worker, os.getpid()),
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
            generator=torch.Generator(),  # else a seed is drawn from the global one
        )
        return iter(loader)


def _as_it_is(batch: Any) -> Any:
    return batch


def _start_worker(parent: int, _worker: int) -> None:
    """Ends a worker whose parent was killed before torch looked who that is; torch would wait for it for ever."""
    if os.getppid() != parent:
        os._exit(1)
    _set_signals()


def _set_signals() -> None:
    """Leaves stopping to the main process: a signal to the whole group must not take its data away.

    SIGINT is ignored. So is the first SIGTERM; a second one ends the worker. A worker whose parent is gone
    ends by itself.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
