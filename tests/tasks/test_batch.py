"""Batches of images of several sizes."""

from __future__ import annotations

import torch

from distpro_cli.tasks.task import Batch

CPU = torch.device("cpu")


def test_sizes_follow_the_images() -> None:
    sizes = ((32, 64), (16, 48), (32, 64))
    batch = Batch(torch.rand(3, 3, 32, 64), [{"n": torch.tensor(n)} for n in range(3)], sizes)
    assert batch.filled == ((1.0, 1.0), (0.5, 0.75), (1.0, 1.0))
    assert batch.to(CPU).sizes == sizes
    parts = batch.split(2)
    assert [part.sizes for part in parts] == [sizes[:2], sizes[2:]]
    assert [int(target["n"]) for target in parts[1].targets] == [2]
    assert parts[1].filled is None
    assert Batch(torch.rand(3, 3, 32, 64), torch.arange(3)).filled is None
