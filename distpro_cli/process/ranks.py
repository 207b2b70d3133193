"""How deep the levels of two networks lie, as ranks: levels of equal rank correspond."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from distpro_cli.process.pathway import LevelInfo

Levels = Sequence[LevelInfo]
Ranks = list[Mapping[int, int]]  # of either network: rank by level number, without logits
RankRule = Callable[[Sequence[Levels]], list[list[int]] | None]

_FROM_END = 1 << 20  # rank of the last vector, beyond that of every map


def ranks_by_reduction(sides: Sequence[Levels]) -> Ranks | None:
    """Returns ranks by the logarithm of the pixels per cell, rounded (14 is 16's); vectors count from the last one.

    None where it does not grow from level to level in both networks, or nothing of it agrees.
    """
    return _ranked(sides, _by_reduction)


def ranks_by_depth(sides: Sequence[Levels]) -> Ranks:
    """Returns ranks by the share of the maps or tokens that have come; vectors count from the last one.

    Each level of the shorter network is at the nearest one of the longer.
    """
    ranks = _ranked(sides, _by_depth)
    assert ranks is not None
    return ranks


def _ranked(sides: Sequence[Levels], rule: RankRule) -> Ranks | None:
    features = [[level for level in side if level.kind != "logits"] for side in sides]
    positions = [[level for level in side if level.kind != "vector"] for side in features]
    vectors = [[level.number for level in side if level.kind == "vector"] for side in features]
    ranks = rule(positions)
    if ranks is None:
        return None
    return [
        {
            **{level.number: rank for level, rank in zip(side, of_side, strict=True)},
            **{number: _FROM_END - back for back, number in enumerate(reversed(last))},
        }
        for side, of_side, last in zip(positions, ranks, vectors, strict=True)
    ]


def _by_reduction(positions: Sequence[Levels]) -> list[list[int]] | None:
    found = []
    for side in positions:
        reductions = [level.reduction for level in side]
        ranks = [round(math.log2(reduction)) for reduction in reductions if reduction]
        if len(ranks) < len(reductions) or ranks != sorted(set(ranks)):
            return None
        found.append(ranks)
    return found if set(found[0]) & set(found[1]) else None


def _by_depth(positions: Sequence[Levels]) -> list[list[int]]:
    longest = max(len(side) for side in positions)
    return [[math.floor(n * longest / len(side) + 0.5) for n in range(1, len(side) + 1)] for side in positions]
