"""Which anchors and proposals the losses are taken of: drawn anew in every step, and the same whenever it is repeated.

Shape legend: n candidates of an image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

from distpro_cli.randomness import derived_seed


class StepSampler:
    """Draws as torchvision's sampler does, from a generator of its own.

    Its seed is that with which torch's global generator was seeded last, which a training step does before its forward.
    Every candidate gets a number, and those with the smallest are taken: what is drawn at one place depends neither on
    what was drawn before nor on how many candidates there are.

    Args:
        like: Gives `batch_size_per_image` and `positive_fraction`.
        name: What is sampled; other names give other draws.
    """

    def __init__(self, like: BalancedPositiveNegativeSampler, name: str) -> None:
        self.batch_size_per_image = int(like.batch_size_per_image)
        self.positive_fraction = float(like.positive_fraction)
        self.name = name

    def __call__(self, labels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Returns which candidates of every image are taken: of objects, and of the background.

        Args:
            labels: Of every image, [N]: above 0 an object, 0 the background, below 0 neither.

        Returns:
            Masks bool [N] of every image, of both kinds.
        """
        seed = torch.initial_seed()
        objects, backgrounds = [], []
        for image, labels_n in enumerate(labels):
            generator = torch.Generator().manual_seed(derived_seed(seed, self.name, image))
            order_n = torch.rand(len(labels_n), generator=generator).to(labels_n.device)
            most = int(self.batch_size_per_image * self.positive_fraction)
            taken_n = _smallest(order_n, labels_n >= 1, most)
            objects.append(taken_n)
            rest = self.batch_size_per_image - int(taken_n.sum())
            backgrounds.append(_smallest(order_n, labels_n == 0, rest))
        return objects, backgrounds


def _smallest(order_n: Tensor, allowed_n: Tensor, count: int) -> Tensor:
    """Returns a mask of the `count` smallest among the allowed ones, or of all of them."""
    candidates = torch.where(allowed_n)[0]
    if len(candidates) > count:
        candidates = candidates[order_n[candidates].argsort()[:count]]
    taken_n = torch.zeros_like(allowed_n, dtype=torch.bool)
    taken_n[candidates] = True
    return taken_n
