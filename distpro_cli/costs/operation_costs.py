"""What operations do and what it costs on the built-in machine, from their shapes alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from distpro_cli.process.machine import BUILT_IN, Work

Counts = NDArray[np.float64]  # [5]: cost on the built-in machine in bytes moved, then the fields of `Work`


class OperationCosts(TorchDispatchMode):
    """Counts every operation that runs inside it, backward passes included.

    Attributes:
        counts: So far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counts = np.zeros(5)

    @property
    def total(self) -> float:
        """The cost so far on the built-in machine, in bytes moved."""
        return float(self.counts[0])

    @property
    def work(self) -> Work:
        """The work so far."""
        return Work(*self.counts[1:].tolist())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        num_bytes = _moved_bytes(func, (args, kwargs), out)
        flops = _flops(func, args, kwargs, out)
        backward = func._overloadpacket.__name__ == "convolution_backward"
        forward_flops, backward_flops = (0.0, flops) if backward else (flops, 0.0)
        work = Work(num_bytes, forward_flops, backward_flops, float(num_bytes > 0))
        self.counts += (BUILT_IN.cost(work), num_bytes, forward_flops, backward_flops, work.operations)
        return out


def _moved_bytes(func: Any, given: Any, out: Any) -> int:
    """Returns the bytes of all that an operation reads and writes; none where it only gives a new view."""
    written = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
    if func._overloadpacket.__name__.startswith(("empty", "new_empty")):
        return 0
    read = [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]
    if not func._schema.is_mutable and written:
        storages = {tensor.untyped_storage()._cdata for tensor in read}
        if all(tensor.untyped_storage()._cdata in storages for tensor in written):
            return 0
    return sum(tensor.numel() * tensor.element_size() for tensor in (*read, *written))


def _flops(func: Any, args: Any, kwargs: Any, out: Any) -> float:
    name = func._overloadpacket.__name__
    if name == "convolution":
        given, weight, *_ = args
        return _convolution_flops(weight, given if args[6] else out)
    if name == "convolution_backward":
        gradient, given, weight = args[:3]
        num_products = int(args[10][0]) + int(args[10][1])
        return num_products * _convolution_flops(weight, given if args[7] else gradient)
    count = flop_registry.get(func._overloadpacket)
    return 0.0 if count is None else float(count(*args, **kwargs, out_val=out))


def _convolution_flops(weight: Tensor, map_bchw: Tensor) -> float:
    """Returns the operations of one product of a convolution; torch's own counter takes no notice of groups backward.

    Args:
        weight: Of the convolution.
        map_bchw: The map of which every value meets one filter: the output, the input of a transposed convolution.
    """
    return 2.0 * map_bchw.numel() * math.prod(weight.shape[1:])
