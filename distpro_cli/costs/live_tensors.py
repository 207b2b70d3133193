"""How much memory tensors hold at once while something runs, from their shapes alone."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class LiveTensors(TorchDispatchMode):
    """Follows the storages that operations inside it make, until they are freed; entered inside a `FakeTensorMode`.

    What an operation needs for itself while it runs is not seen. A number that is read from a tensor is 1.

    Args:
        standing: Tensors that are there before.

    Attributes:
        peak: Most bytes held at once so far, each storage counted once.
    """

    def __init__(self, standing: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._held = 0
        self._known: set[int] = set()
        for tensor in standing:
            self._hold(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if args[0].is_floating_point() else 1
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._hold(leaf)
        return out

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if (address := storage._cdata) in self._known:
            return
        self._known.add(address)
        self._held += storage.nbytes()
        self.peak = max(self.peak, self._held)
        weakref.finalize(storage, self._free, address, storage.nbytes())

    def _free(self, address: int, num_bytes: int) -> None:
        self._known.discard(address)
        self._held -= num_bytes


def without_values(module: AnyModule, mode: FakeTensorMode) -> AnyModule:
    """Returns a copy of the module whose parameters and buffers have shapes and no values, made outside `mode`."""
    copied = copy.deepcopy(module)
    for part in copied.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = mode.from_tensor(tensor)  # type: ignore[assignment]
    return copied
