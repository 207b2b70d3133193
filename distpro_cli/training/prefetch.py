"""Batches on the device: on CUDA the next one is on its way, and changed there, while the device works on this one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from distpro_cli.tasks.task import Batch, map_tensors

Prepare = Callable[[int, Batch], Batch]  # moves a batch to the device, and changes it there; the number is its step's


class Stream(Protocol):
    """A queue of the device's beside the one that computes."""

    def prepare(self, prepare: Prepare, step: int, batch: Batch) -> Callable[[], Batch]:
        """Starts on a batch; what is returned hands it over to the queue that computes."""


class SideStream:
    """A stream of CUDA's that copies from page-locked memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)

    def prepare(self, prepare: Prepare, step: int, batch: Batch) -> Callable[[], Batch]:
        """Copies a batch and changes it, behind what this stream has to do, and beside what the device computes."""
        with torch.cuda.stream(self._stream):
            prepared = prepare(step, batch.pinned())
        done = self._stream.record_event()

        def hand_over() -> Batch:
            computing = torch.cuda.current_stream(self.device)
            computing.wait_event(done)

            def used_there(tensor: Tensor) -> Tensor:
                if tensor.is_cuda:
                    tensor.record_stream(computing)  # else its memory would be free for this stream's next batch
                return tensor

            map_tensors((prepared.images_bchw, prepared.targets), used_there)
            return prepared

        return hand_over


def on_device(batches: Iterable[tuple[int, Batch]], prepare: Prepare, stream: Stream | None) -> Iterator[Batch]:
    """Yields batches as `prepare` makes them; with a stream, each is begun before the one in front of it is given out.

    Args:
        batches: With the numbers of their steps.
        prepare: See `Prepare`.
        stream: None: batches are prepared as they are asked for.
    """
    if stream is None:
        for step, batch in batches:
            yield prepare(step, batch)
        return
    waiting: Callable[[], Batch] | None = None
    for step, batch in batches:
        ready, waiting = waiting, stream.prepare(prepare, step, batch)
        if ready is not None:
            yield ready()
    if waiting is not None:
        yield waiting()
