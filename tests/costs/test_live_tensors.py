"""Memory of live tensors against sums done by hand."""

from __future__ import annotations

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from distpro_cli.costs.live_tensors import LiveTensors, without_values

FLOAT = 4


def test_what_is_freed_no_longer_counts() -> None:
    with FakeTensorMode():
        standing = torch.zeros(100)
        with LiveTensors([standing, standing[:50]]) as live:
            first = standing + 1
            view = first[:10]
            del first
            second = standing.expand(3, 100).contiguous()
            del view, second
            third = standing * 2
            fourth = third.add_(1)
    assert live.peak == FLOAT * (100 + 100 + 300)
    assert third is fourth


def test_a_backward_pass_by_hand() -> None:
    mode = FakeTensorMode()
    layer = without_values(nn.Linear(20, 30, bias=False), mode)
    with mode:
        given = torch.zeros(5, 20)
        with LiveTensors([layer.weight, given]) as live:
            layer(given).square().sum().backward()
    # Where the square goes back: its input, the two factors of its gradient and the gradient itself.
    standing, map_size = 20 * 30 + 5 * 20, 5 * 30
    assert FLOAT * (standing + 3 * map_size) <= live.peak <= FLOAT * (standing + 4 * map_size + 20 * 30 + 10)


def test_a_number_that_is_read_is_one() -> None:
    with FakeTensorMode(), LiveTensors():
        assert torch.zeros(1).item() == 1.0
        assert torch.zeros(2, dtype=torch.long).tolist() == [1, 1]
        assert bool(torch.zeros(1).sum() > 0)
