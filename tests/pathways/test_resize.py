"""Pooling and upsampling against torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from distpro_cli.pathways.resize import grow, kept, pooling_matrix, shrink, spread

SIZES = [((8, 8), (4, 4)), ((7, 7), (4, 4)), ((9, 4), (5, 3)), ((6, 5), (1, 1)), ((5, 5), (5, 5))]


@pytest.mark.parametrize(("before", "after"), SIZES)
def test_shrink_is_adaptive_average_pooling(before: tuple[int, int], after: tuple[int, int]) -> None:
    ours = torch.randn(2, 3, *before, dtype=torch.float64, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    weights = torch.randn(2, 3, *after, dtype=torch.float64)
    pooled, expected = shrink(ours, after), F.adaptive_avg_pool2d(theirs, after)
    assert torch.allclose(pooled, expected)
    (pooled * weights).sum().backward()
    (expected * weights).sum().backward()
    assert ours.grad is not None and theirs.grad is not None
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)  # the way back is computed in float32


@pytest.mark.parametrize(("after", "before"), SIZES)
def test_grow_is_nearest_upsampling(before: tuple[int, int], after: tuple[int, int]) -> None:
    small = torch.randn(2, 3, *before)
    assert torch.equal(grow(small, after), F.interpolate(small, size=after, mode="nearest"))


@pytest.mark.parametrize(("cells", "pools"), [(7, 4), (8, 4), (2, 4), (5, 1)])
def test_pooling_matrix_is_adaptive_pooling_along_one_axis(cells: int, pools: int) -> None:
    values = torch.randn(1, 1, cells)
    matrix = pooling_matrix(cells, pools, values.device)
    assert torch.allclose(values @ matrix.T, F.adaptive_avg_pool1d(values, pools), atol=1e-6)
    assert spread(torch.ones(1, 1, pools, pools), (cells, cells)).sum().item() == pytest.approx(pools**2, rel=1e-5)


def test_matrices_are_made_once_and_never_without_values() -> None:
    made: list[tuple[int, int]] = []

    def make(cells: int, pools: int, device: torch.device) -> torch.Tensor:
        made.append((cells, pools))
        return pooling_matrix(cells, pools, device)

    like = torch.ones(1)
    with FakeTensorMode() as mode:
        assert type(kept(make, mode.from_tensor(like), 7, 3)) is not torch.Tensor
    first = kept(make, like, 7, 3)
    assert type(first) is torch.Tensor and kept(make, like, 7, 3) is first
    with mode:
        assert kept(make, mode.from_tensor(like), 7, 3) is not first
    assert made == [(7, 3)] * 3
