"""The hierarchical context loss of ReviewKD on the difference alone, with its gradient written out.

Average pooling is linear, so the pools of two features differ by the pool of their difference, and where
sizes divide, coarse pools are pools of finer ones. The full resolution is then written once forward and once
backward. Composed from separate MSEs it takes up to ten times as long (CPU, channels_last, 128×32×32×32),
which shows beside the transform's own convolutions.

Shape legend: b images, c channels, h height, w width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from distpro_cli.pathways.resize import spread

POOL_SIZES = (4, 2, 1)


def hierarchical_mse(difference_bchw: Tensor) -> Tensor:
    """Returns Σ_l c_l · mean(pool_l(difference)²) / Σ_l c_l.

    Full resolution counts 1; then l×l adaptive average pools for l = 4, 2, 1 below the height count ½, ¼, ⅛,
    halving only over the sizes used (Chen et al. 2021, official code).

    Args:
        difference_bchw: Student minus teacher, [B, C, H, W], float32.

    Returns:
        Scalar, differentiable once.
    """
    loss: Tensor = _HierarchicalMSE.apply(difference_bchw)
    return loss


def pool_weights(height: int) -> dict[int, float]:
    """Returns the weight of every pool size used at this height, as a share of all weights."""
    used = [size for size in POOL_SIZES if size < height]
    total = 2 - 0.5 ** len(used)  # 1 + 1/2 + ... over the sizes used
    return {size: 0.5 ** (n + 1) / total for n, size in enumerate(used)}


class _HierarchicalMSE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, difference_bchw: Tensor) -> Tensor:
        weights = pool_weights(difference_bchw.shape[2])
        pools = _pools(difference_bchw, list(weights))
        ctx.save_for_backward(difference_bchw, *pools)
        loss = _mean_square(difference_bchw) * (1 - sum(weights.values()))
        for pool, weight in zip(pools, weights.values(), strict=True):
            loss = loss + weight * pool.square().mean()
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        difference: Tensor
        difference, *pools = ctx.saved_tensors
        scale = 2 * gradients[0]
        weights = pool_weights(difference.shape[2])
        fine = scale * ((1 - sum(weights.values())) / difference.numel())
        if not pools:
            return difference * fine
        # All cells of a pool receive the same, so the coarse part stays coarse until the fine one is written.
        coarse = _coarse_gradient(difference, pools, list(weights.values())) * scale
        images, channels, height, width = difference.shape
        rows, columns = coarse.shape[2:]
        blocks = difference.view(images, channels, rows, height // rows, columns, width // columns)
        gradient = torch.addcmul(coarse[:, :, :, None, :, None], blocks, fine)
        return gradient.reshape(difference.shape)


def _divides(map_bchw: Tensor, size: int) -> bool:
    return map_bchw.shape[2] % size == 0 and map_bchw.shape[3] % size == 0


def _pools(difference: Tensor, sizes: list[int]) -> list[Tensor]:
    """Returns the l×l average pools of the difference, each [B, C, l, l]."""
    if not sizes or not _divides(difference, sizes[0]):
        return [F.adaptive_avg_pool2d(difference, size) for size in sizes]
    pools, finer = [], difference
    for size in sizes:
        finer = F.avg_pool2d(finer, (finer.shape[2] // size, finer.shape[3] // size))
        pools.append(finer)
    return pools


def _coarse_gradient(difference: Tensor, pools: list[Tensor], weights: list[float]) -> Tensor:
    """Returns half the pooled terms' gradient: at the finest pool if sizes divide, else cell by cell."""
    if not _divides(difference, pools[0].shape[2]):
        return torch.stack(
            [
                spread(pool, (difference.shape[2], difference.shape[3])) * (weight / pool.numel())
                for pool, weight in zip(pools, weights, strict=True)
            ]
        ).sum(0)
    total = pools[-1] * (weights[-1] / difference.numel())
    for pool, weight in zip(pools[-2::-1], weights[-2::-1], strict=True):
        repeated = F.interpolate(total, size=pool.shape[2:], mode="nearest")
        total = torch.add(repeated, pool, alpha=weight / difference.numel())
    return total


def _mean_square(difference: Tensor) -> Tensor:
    # Image by image: one sum of squares over the whole batch loses three digits in float32.
    per_image: Tensor = torch.linalg.vector_norm(difference, dim=(1, 2, 3)).square()
    return per_image.sum() / difference.numel()
