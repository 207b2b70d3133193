"""Average pooling and nearest upsampling of maps, with backward passes that are deterministic everywhere.

Shape legend: b images, c channels, h height, w width; sizes are (height, width) in cells.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distpro_cli.pathways.precision import without_autocast

Size = tuple[int, int]


def shrink(map_bchw: Tensor, size: Size) -> Tensor:
    """Average-pools a map [B, C, H, W] to [B, C, *size]; size must not exceed (H, W)."""
    height, width = map_bchw.shape[2:]
    if (height, width) == size:
        return map_bchw
    if size == (1, 1):
        return map_bchw.mean((2, 3), keepdim=True)
    if height % size[0] == 0 and width % size[1] == 0:
        return F.avg_pool2d(map_bchw, (height // size[0], width // size[1]))
    pooled: Tensor = _AdaptivePool.apply(map_bchw, size)
    return pooled


def grow(map_bchw: Tensor, size: Size) -> Tensor:
    """Repeats the nearest cell to bring a map [B, C, h, w] to [B, C, *size]."""
    if tuple(map_bchw.shape[2:]) == size:
        return map_bchw
    if tuple(map_bchw.shape[2:]) == (1, 1):
        return map_bchw.expand(-1, -1, *size)
    return F.interpolate(map_bchw, size=size, mode="nearest")


def spread(pooled_bchw: Tensor, size: Size) -> Tensor:
    """Transpose of adaptive average pooling: gives every cell its share of the pools [B, C, h, w] it lies in.

    Returns:
        [B, C, *size], float32.
    """
    rows = kept(pooling_matrix, pooled_bchw, size[0], pooled_bchw.shape[2])
    columns = kept(pooling_matrix, pooled_bchw, size[1], pooled_bchw.shape[3])
    # A matrix on the right makes one large product, on the left a small one for every image and channel.
    return ((pooled_bchw.float() @ columns).transpose(2, 3) @ rows).transpose(2, 3)


def pooling_matrix(cells: int, pools: int, device: torch.device) -> Tensor:
    """Returns adaptive average pooling along one axis as a matrix [pools, cells] whose rows sum to 1."""
    cell = torch.arange(cells, device=device)
    pool = torch.arange(pools, device=device)[:, None]
    start, end = pool * cells // pools, -(-(pool + 1) * cells // pools)
    inside = ((cell >= start) & (cell < end)).float()
    return inside / (end - start)


def kept(make: Callable[..., Tensor], like: Tensor, *sizes: int) -> Tensor:
    """Returns `make(*sizes, device)` on the device of `like`, made once; not to be written to.

    Tensors without values (those that estimate memory) are neither kept nor given what was.
    """
    return _kept(make, *sizes, like.device) if type(like) in (Tensor, nn.Parameter) else make(*sizes, like.device)


@functools.lru_cache(maxsize=16)
def _kept(make: Callable[..., Tensor], *given: Any) -> Tensor:
    return make(*given)


class _AdaptivePool(torch.autograd.Function):
    """Adaptive average pooling; torch's own backward pass adds atomically on CUDA, in no fixed order."""

    @staticmethod
    def forward(ctx: Any, map_bchw: Tensor, size: Size) -> Tensor:
        ctx.size = tuple(map_bchw.shape[2:])
        return F.adaptive_avg_pool2d(map_bchw, size)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        with without_autocast(gradients[0].device):
            return spread(gradients[0], ctx.size).to(gradients[0].dtype), None
