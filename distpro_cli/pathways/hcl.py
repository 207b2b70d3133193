"""The hierarchical context loss of ReviewKD on the difference alone, with its gradient written out.

Average pooling is linear, so the pools of two features differ by the pool of their difference, and where
sizes divide, coarse pools are pools of finer ones. The full resolution is then written once forward and once
backward. Composed from separate MSEs it takes up to ten times as long (CPU, channels_last, 128×32×32×32),
which is noticeable beside the transform's own convolutions.

Shape legend: b images, c channels, h height, w width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from distpro_cli.pathways.precision import without_autocast
from distpro_cli.pathways.resize import kept, pooling_matrix

POOL_SIZES = (4, 2, 1)


def hierarchical_mse(difference_bchw: Tensor, compiled: bool = False) -> Tensor:
    """Returns Σ_l c_l · mean(pool_l(difference)²) / Σ_l c_l.

    Full resolution counts 1; then l×l adaptive average pools for l = 4, 2, 1 below the height count ½, ¼, ⅛,
    halving only over the sizes used (Chen et al. 2021, official code).

    Args:
        difference_bchw: Student minus teacher, [B, C, H, W], float32.
        compiled: Whether `torch.compile` makes few kernels of it, forward and backward, which changes rounding. Where
            pools do not divide the map it is without effect: there they are one matrix product.

    Returns:
        Scalar, differentiable once.
    """
    loss: Tensor = _HierarchicalMSE.apply(difference_bchw, compiled and _divides(difference_bchw, POOL_SIZES[0]))
    return loss


def pool_weights(height: int) -> dict[int, float]:
    """Returns the weight of every pool size used at this height, as a share of all weights."""
    used = [size for size in POOL_SIZES if size < height]
    total = 2 - 0.5 ** len(used)  # 1 + 1/2 + ... over the sizes used
    return {size: 0.5 ** (n + 1) / total for n, size in enumerate(used)}


class _HierarchicalMSE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, difference_bchw: Tensor, compiled: bool) -> Tensor:
        value: Callable[[Tensor], tuple[Tensor, list[Tensor]]] = _compiled(_value) if compiled else _value
        loss, pools = value(difference_bchw)
        ctx.save_for_backward(difference_bchw, *pools)
        ctx.compiled = compiled
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        difference, *pools = ctx.saved_tensors
        gradient: Callable[[Tensor, list[Tensor], Tensor], Tensor] = _compiled(_gradient) if ctx.compiled else _gradient
        with without_autocast(difference.device):
            return gradient(difference, pools, gradients[0]), None


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    made: Callable[..., Any] = torch.compile(function)
    return made


def _value(difference: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Returns the loss and the pools that its gradient needs."""
    weights = pool_weights(difference.shape[2])
    pools = _pools(difference, list(weights))
    loss = _mean_square(difference) * (1 - sum(weights.values()))
    for pool, weight in zip(pools, weights.values(), strict=True):
        loss = loss + weight * pool.square().mean()
    return loss, pools


def _gradient(difference: Tensor, pools: list[Tensor], gradient: Tensor) -> Tensor:
    """Returns the gradient by the difference from that by the loss."""
    scale = 2 * gradient
    weights = pool_weights(difference.shape[2])
    fine = scale * ((1 - sum(weights.values())) / difference.numel())
    if not pools:
        return difference * fine
    # All cells of a pool receive the same, so the coarse part stays coarse until the fine one is written.
    coarse = _coarse_gradient(difference, pools, list(weights.values())).mul_(scale)
    if coarse.shape == difference.shape:  # in place: each such tensor weighs as much as the feature
        return coarse.addcmul_(difference, fine)
    images, channels, height, width = difference.shape
    rows, columns = coarse.shape[2:]
    blocks = difference.view(images, channels, rows, height // rows, columns, width // columns)
    return torch.addcmul(coarse[:, :, :, None, :, None], blocks, fine).reshape(difference.shape)


def _mean_square(difference: Tensor) -> Tensor:
    # Image by image: one sum of squares over the whole batch loses three digits in float32.
    per_image: Tensor = torch.linalg.vector_norm(difference, dim=(1, 2, 3)).square()
    return per_image.sum() / difference.numel()


def _pools(difference: Tensor, sizes: list[int]) -> list[Tensor]:
    """Returns the l×l average pools of the difference, each [B, C, l, l]."""
    if not sizes:
        return []
    if not _divides(difference, sizes[0]):
        return _unequal_pools(difference, sizes)
    pools, finer = [], difference
    for size in sizes:
        finer = F.avg_pool2d(finer, (finer.shape[2] // size, finer.shape[3] // size))
        pools.append(finer)
    return pools


def _coarse_gradient(difference: Tensor, pools: list[Tensor], weights: list[float]) -> Tensor:
    """Returns half the pooled terms' gradient: at the finest pool if sizes divide, else cell by cell."""
    if not _divides(difference, pools[0].shape[2]):
        return _unequal_gradient(difference, pools, weights)
    total = pools[-1] * (weights[-1] / difference.numel())
    for pool, weight in zip(pools[-2::-1], weights[-2::-1], strict=True):
        repeated = F.interpolate(total, size=pool.shape[2:], mode="nearest")
        total = torch.add(repeated, pool, alpha=weight / difference.numel())
    return total


def _divides(map_bchw: Tensor, size: int) -> bool:
    return map_bchw.shape[2] % size == 0 and map_bchw.shape[3] % size == 0


# Where sizes do not divide, pools overlap. Adaptive pooling of every size is then one product with a matrix
# [pools, cells], its way back one with the transpose: several times as fast as torch's, and in a fixed order.


def _unequal_pools(difference: Tensor, sizes: list[int]) -> list[Tensor]:
    matrix = kept(_pool_matrix, difference, *difference.shape[2:], *sizes)
    counts = [size * size for size in sizes]
    if _is_channels_last(difference):
        cells_bpc = difference.permute(0, 2, 3, 1).flatten(1, 2)
        found = (matrix @ cells_bpc).transpose(1, 2)
    else:
        found = difference.flatten(2) @ matrix.T
    parts: tuple[Tensor, ...] = torch.split(found, counts, 2)
    return [part.reshape(*part.shape[:2], size, size) for part, size in zip(parts, sizes, strict=True)]


def _unequal_gradient(difference: Tensor, pools: list[Tensor], weights: list[float]) -> Tensor:
    matrix = kept(_pool_matrix, difference, *difference.shape[2:], *(pool.shape[2] for pool in pools))
    scaled = [pool.flatten(2) * (w / pool.numel()) for pool, w in zip(pools, weights, strict=True)]
    pulls_bcp = torch.cat(scaled, 2)
    if _is_channels_last(difference):
        cells_bpc = matrix.T @ pulls_bcp.transpose(1, 2)
        return cells_bpc.transpose(1, 2).view(difference.shape)
    return (pulls_bcp @ matrix).view(difference.shape)


def _pool_matrix(height: int, width: int, *sizes_and_device: Any) -> Tensor:
    """Returns the pools of all sizes, one after the other, as averages over the cells: [pools, H · W]."""
    *sizes, device = sizes_and_device
    axes = [(pooling_matrix(height, size, device), pooling_matrix(width, size, device)) for size in sizes]
    return torch.cat([torch.kron(rows, columns) for rows, columns in axes])


def _is_channels_last(map_bchw: Tensor) -> bool:
    return map_bchw.is_contiguous(memory_format=torch.channels_last)
