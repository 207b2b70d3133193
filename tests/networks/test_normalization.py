"""Images as networks expect them, made once for those that expect the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from distpro_cli.networks import levels
from distpro_cli.networks.levels import Normalized, TappedNetwork
from distpro_cli.networks.normalization import normalize

IMAGES = torch.rand(4, 3, 6, 5, generator=torch.Generator().manual_seed(0))
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.1]


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_of_pixels_give_the_same_numbers(memory_format: torch.memory_format, dtype: torch.dtype) -> None:
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (MEAN, STD))
    images = IMAGES.to(dtype, memory_format=memory_format, copy=True).requires_grad_()
    found, expected = normalize(images, mean, std), (images - mean) / std
    assert torch.equal(found, expected) and found.dtype == expected.dtype and found.stride() == expected.stride()
    for pixels in (images[:, :, :1, :1], images[:, :, :, ::2], images[:, :1]):
        assert torch.equal(normalize(pixels, mean[:, :1], std[:, :1]), (pixels - mean[:, :1]) / std[:, :1])
    found.sum().backward()
    assert images.grad is not None and torch.allclose(images.grad, (1 / std).to(dtype).expand_as(images), rtol=1e-5)


class Sums(nn.Module):
    """Returns sums of what it is given; with `spoils`, what it is given is no more what it was."""

    def __init__(self, spoils: bool = False) -> None:
        super().__init__()
        self.spoils = spoils
        self.layer = nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        sums = self.layer(images.sum((2, 3)))
        if self.spoils:
            images.zero_()
        return sums


def network(model: nn.Module, mean: list[float] = MEAN) -> TappedNetwork:
    return TappedNetwork(model, levels=["layer"], mean=mean, std=STD, image_size=(6, 5))


@pytest.mark.parametrize(
    ("first", "second_mean", "made"), [(Sums(), MEAN, 1), (Sums(), [0.0, 0.5, 0.6], 2), (Sums(spoils=True), MEAN, 2)]
)
def test_images_are_normalised_once_for_networks_that_expect_the_same(
    monkeypatch: pytest.MonkeyPatch, first: nn.Module, second_mean: list[float], made: int
) -> None:
    teacher, student = network(first), network(Sums(), second_mean)
    alone = student(IMAGES, sizes=((3, 5),) * 4)[0]
    calls = []

    def counted(*given: Any) -> torch.Tensor:
        calls.append(given)
        return normalize(*given)

    monkeypatch.setattr(levels, "normalize", counted)
    shared: Normalized = {}
    teacher(IMAGES, sizes=((3, 5),) * 4, normalized=shared)
    assert torch.equal(student(IMAGES, sizes=((3, 5),) * 4, normalized=shared)[0], alone)
    assert len(calls) == made
