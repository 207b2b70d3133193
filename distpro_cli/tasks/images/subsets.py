"""Which images are used for what: splits and subsets that treat all strata (classes) alike, drawn from a seed.

Shape legend: m images.
"""

from __future__ import annotations

import numpy as np

from distpro_cli.randomness import derived_seed
from distpro_cli.tasks.images.sources import Indices


def draw_evenly(strata_m: Indices, count: int, seed: int, name: str) -> Indices:
    """Draws `count` images with as many of each stratum as its size allows.

    Args:
        strata_m: Number of each image's stratum, from 0.
        count: Images to draw, in 1..M.
        seed: Seed of the draw.
        name: What the draw is for; other names give other draws. A smaller draw is part of a larger.

    Returns:
        Positions in `strata_m`, ascending.
    """
    order, ranks, _ = _ranks(strata_m, seed, name)
    return np.sort(order[np.argsort(ranks, kind="stable")[:count]])


def split_off(strata_m: Indices, share: float, seed: int, name: str) -> tuple[Indices, Indices]:
    """Splits images in two, each stratum in the same proportion.

    Args:
        strata_m: Number of each image's stratum, from 0; M ≥ 2.
        share: Share in (0, 1) of the images that goes to the second part; at least one image stays in each.
        seed: Seed of the split.
        name: What the split is for; other names give other splits.

    Returns:
        Positions of the first and of the second part, ascending.
    """
    order, ranks, sizes = _ranks(strata_m, seed, name)
    count = min(max(round(share * len(strata_m)), 1), len(strata_m) - 1)
    ranked = order[np.argsort((ranks + 0.5) / sizes, kind="stable")]
    return np.sort(ranked[count:]), np.sort(ranked[:count])


def _ranks(strata_m: Indices, seed: int, name: str) -> tuple[Indices, Indices, Indices]:
    """Returns a shuffled order, each image's rank within its stratum in it, and its stratum's size."""
    order = np.random.default_rng(derived_seed(seed, name)).permutation(len(strata_m))
    shuffled = strata_m[order]
    by_stratum = np.argsort(shuffled, kind="stable")
    sizes = np.bincount(shuffled)
    starts = np.cumsum(sizes) - sizes
    ranks = np.empty(len(strata_m), dtype=np.int64)
    ranks[by_stratum] = np.arange(len(strata_m)) - starts[shuffled[by_stratum]]
    return order, ranks, sizes[shuffled]
