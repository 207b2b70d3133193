"""What operations cost, from their shapes alone: arithmetic and bytes moved, in one unit."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

# The machine: how many floating-point operations of a convolution or matrix product take as long as moving a
# byte, and how much longer products of a backward pass take than their number of operations says. Read off a
# server's CPU core in float32 (80 GFLOP/s forward, 57 backward, 13 GB/s). Only ratios of costs are ever used.
FLOPS_PER_BYTE = 6.0
BACKWARD_FACTOR = 1.4


class OperationCosts(TorchDispatchMode):
    """Adds up the cost of every operation that runs inside it, backward passes included.

    Attributes:
        total: So far, in bytes moved; arithmetic is converted by `FLOPS_PER_BYTE`.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self.total += _moved_bytes(func, (args, kwargs), out) + _flops(func, args, kwargs, out) / FLOPS_PER_BYTE
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
        return BACKWARD_FACTOR * num_products * _convolution_flops(weight, given if args[7] else gradient)
    count = flop_registry.get(func._overloadpacket)
    # A matrix product does not say which pass it belongs to, and backward ones take little longer than forward ones.
    return 0.0 if count is None else float(count(*args, **kwargs, out_val=out))


def _convolution_flops(weight: Tensor, map_bchw: Tensor) -> float:
    """Returns the operations of one product of a convolution; torch's own counter takes no notice of groups backward.

    Args:
        weight: Of the convolution.
        map_bchw: The map of which every value meets one filter: the output, the input of a transposed convolution.
    """
    return 2.0 * map_bchw.numel() * math.prod(weight.shape[1:])
