"""Handing tensors from one process to another through memory that both see, used again and again.

A batch is written into a slot, the other process looks at it there, and once nothing there holds it any more, the slot
goes back. So no page of memory is asked for twice, nothing is copied on the way, and /dev/shm is not used. Where the
system has no memory without a name (all but Linux), torch's own way is taken.
"""

from __future__ import annotations

import io
import os
import pickle
import weakref
from collections.abc import Iterable
from multiprocessing import reduction
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing  # teaches multiprocessing torch's own way
from numpy.typing import NDArray
from torch import Tensor

SMALL_BYTES = 1 << 14  # tensors up to here travel in the message itself
_DESCRIPTORS = Path("/proc/self/fd")
HAS_SLOTS = hasattr(os, "memfd_create") and _DESCRIPTORS.is_dir()


class Slots:
    """The memory of the process that sends: slots by number, each in use until the other side gives it back."""

    def __init__(self) -> None:
        self._free: dict[int, NDArray[np.uint8]] = {}
        self._used: dict[int, NDArray[np.uint8]] = {}
        self._by_address: dict[int, int] = {}
        self._unsent: set[int] = set()
        self._new: list[tuple[int, int, int]] = []  # number, bytes, descriptor
        self._dropped: list[int] = []
        self._next = 0

    def empty(self, num_bytes: int) -> Tensor:
        """Returns a uint8 tensor in a slot."""
        fitting = [number for number, slot in self._free.items() if slot.nbytes >= num_bytes]
        number = min(fitting, key=lambda number: self._free[number].nbytes, default=None)
        if number is None:
            number = self._make(num_bytes)
        self._unsent.add(number)
        slot = self._used[number] = self._free.pop(number)
        self._by_address[slot.ctypes.data] = number
        return torch.from_numpy(slot[:num_bytes])

    def _make(self, num_bytes: int) -> int:
        if self._free:  # all too small
            number, _ = self._free.popitem()
            self._dropped.append(number)
        descriptor = os.memfd_create("distpro", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, num_bytes)
        self._free[self._next] = _mapped(descriptor, num_bytes)
        self._new.append((self._next, num_bytes, descriptor))
        self._next += 1
        return self._next - 1

    def give_back(self, numbers: Iterable[int]) -> None:
        """Takes slots back that the other side is done with."""
        for number in numbers:
            slot = self._free[number] = self._used.pop(number)
            del self._by_address[slot.ctypes.data]

    def place(self, tensor: Tensor) -> tuple[int, torch.dtype, torch.Size, tuple[int, ...]] | None:
        """Returns slot, type, shape and strides of a tensor, which is copied into a slot if it is a large one."""
        number = self._by_address.get(tensor.data_ptr())
        if number is None:
            num_bytes = tensor.numel() * tensor.element_size()
            if num_bytes <= SMALL_BYTES:
                return None
            copy = self.empty(num_bytes)
            number = self._by_address[copy.data_ptr()]
            tensor = copy.view(tensor.dtype).view(tensor.shape).copy_(tensor)
        self._unsent.discard(number)
        return number, tensor.dtype, tensor.shape, tensor.stride()

    def send(self, connection: Connection, value: Any) -> None:
        """Sends a value; its large tensors are then the other side's."""
        message = io.BytesIO()
        _Pickler(message, self).dump(value)
        connection.send(([(number, size) for number, size, _ in self._new], self._dropped))
        for _, _, descriptor in self._new:
            reduction.send_handle(connection, descriptor, os.getppid())
            os.close(descriptor)
        connection.send_bytes(message.getbuffer())
        self._new, self._dropped = [], []
        self.give_back(self._unsent)  # what was asked for and not sent, or only a part of it
        self._unsent.clear()


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, slots: Slots) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._slots = slots

    def persistent_id(self, value: Any) -> Any:
        return self._slots.place(value) if isinstance(value, Tensor) else None

    def reducer_override(self, value: Any) -> Any:
        # Torch's own way puts ten times as much into the message.
        if isinstance(value, Tensor) and value.dtype not in (torch.bfloat16, torch.complex32):
            return torch.from_numpy, (value.numpy(),)
        return NotImplemented


class Seen:
    """What the process that receives sees of another one's slots.

    Attributes:
        done: Numbers of slots that nothing here holds any more, to be given back.
    """

    def __init__(self) -> None:
        self.done: list[int] = []
        self._slots: dict[int, NDArray[np.uint8]] = {}

    def take_done(self) -> list[int]:
        """Returns what is done, once."""
        return [self.done.pop() for _ in range(len(self.done))]  # more may come at any time

    def receive(self, connection: Connection) -> Any:
        """Returns what `Slots.send` sent."""
        new, dropped = connection.recv()
        for number in dropped:
            del self._slots[number]
        for number, num_bytes in new:
            descriptor = reduction.recv_handle(connection)
            try:
                self._slots[number] = _mapped(descriptor, num_bytes)
            finally:
                os.close(descriptor)
        return _Unpickler(io.BytesIO(connection.recv_bytes()), self).load()

    def hold(self, number: int) -> NDArray[np.uint8]:
        """Returns a slot's memory; when nothing holds this array any more, the slot is done."""
        held = self._slots[number].view()
        weakref.finalize(held, self.done.append, number).atexit = False
        return held


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, seen: Seen) -> None:
        super().__init__(file)
        self._seen = seen
        self._held: dict[int, NDArray[np.uint8]] = {}

    def persistent_load(self, place: Any) -> Tensor:
        number, dtype, shape, strides = place
        if number not in self._held:
            self._held[number] = self._seen.hold(number)
        whole = torch.from_numpy(self._held[number])
        size = torch.empty(0, dtype=dtype).element_size()
        return whole[: len(whole) // size * size].view(dtype).as_strided(shape, strides)


def _mapped(descriptor: int, num_bytes: int) -> NDArray[np.uint8]:
    """Returns the memory behind a descriptor, which may then be closed; Python's own mmap would keep it open."""
    tensor = torch.from_file(str(_DESCRIPTORS / str(descriptor)), shared=True, size=num_bytes, dtype=torch.uint8)
    mapped: NDArray[np.uint8] = tensor.numpy()
    return mapped
