"""Many tensors cloned, put back and exchanged by few kernels, without graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def unmoved_buffers(module: nn.Module) -> Iterator[None]:
    """Keeps every buffer of `module` (BatchNorm's running statistics) unchanged by what runs inside."""
    buffers = list(module.buffers())
    before = clones(buffers)
    try:
        yield
    finally:
        copy_into(buffers, before)


@contextmanager
def standing_at(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[None]:
    """Inside, the parameters are the values, which lie where they lay: nothing is copied, neither there nor back."""
    own = [parameter.data for parameter in parameters]
    try:
        for parameter, value in zip(parameters, values, strict=True):
            parameter.data = value
        yield
    finally:
        for parameter, data in zip(parameters, own, strict=True):
            parameter.data = data


def clones(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Returns copies without graph, made by one kernel per type and not one per tensor."""
    made = [torch.empty_like(tensor) for tensor in tensors]
    copy_into(made, tensors)
    return made


def copy_into(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copies values into tensors of the same types, those of one type together."""
    groups: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for tensor, value in zip(tensors, values, strict=True):
        group = groups.setdefault(tensor.dtype, ([], []))
        group[0].append(tensor)
        group[1].append(value)
    with torch.no_grad():
        for group in groups.values():
            torch._foreach_copy_(*group)
