"""Which images are used for what: splits and subsets that treat all classes alike, drawn from a seed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distpro_cli.randomness import derived_seed

Indices = NDArray[np.int64]


def _ranks(targets: NDArray[np.int64], seed: int, name: str) -> tuple[Indices, Indices, Indices]:
    """Returns a shuffled order, each image's rank within its class in it, and its class's size."""
    order = np.random.default_rng(derived_seed(seed, name)).permutation(len(targets))
    shuffled = targets[order]
    by_class = np.argsort(shuffled, kind="stable")
    sizes = np.bincount(shuffled)
    starts = np.cumsum(sizes) - sizes
    ranks = np.empty(len(targets), dtype=np.int64)
    ranks[by_class] = np.arange(len(targets)) - starts[shuffled[by_class]]
    return order, ranks, sizes[shuffled]


def draw_evenly(targets: NDArray[np.int64], count: int, seed: int, name: str) -> Indices:
    """Draws `count` images with as many of each class as its size allows.

    Args:
        targets: Class numbers [M].
        count: Images to draw, in 1..M.
        seed: Seed of the draw.
        name: What the draw is for; other names give other draws. A smaller draw is part of a larger.

    Returns:
        Positions in `targets`, ascending.
    """
    order, ranks, _ = _ranks(targets, seed, name)
    return np.sort(order[np.argsort(ranks, kind="stable")[:count]])


def split_off(targets: NDArray[np.int64], share: float, seed: int, name: str) -> tuple[Indices, Indices]:
    """Splits images in two, each class in the same proportion.

    Args:
        targets: Class numbers [M], M ≥ 2.
        share: Share in (0, 1) of the images that goes to the second part; at least one image stays in each.
        seed: Seed of the split.
        name: What the split is for; other names give other splits.

    Returns:
        Positions of the first and of the second part, ascending.
    """
    order, ranks, sizes = _ranks(targets, seed, name)
    count = min(max(round(share * len(targets)), 1), len(targets) - 1)
    ranked = order[np.argsort((ranks + 0.5) / sizes, kind="stable")]
    return np.sort(ranked[count:]), np.sort(ranked[:count])
