"""How alike processes are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from distpro_cli.process.process import Process
from distpro_cli.process.schedule import rows_at

MOMENTS = 201  # evenly spread over a run, both ends among them


def likeness(one: Process, other: Process) -> float | None:
    """Returns Pearson's correlation of two processes, over time and the pathways that both have, in [-1, 1].

    It is that of the pathways' shares in all scaled weight of a moment, so that neither units nor kappa count. None:
    they have fewer than two pathways in common, or one of them never prefers any.
    """
    ids, others = ([pathway.id for pathway in process.pathways] for process in (one, other))
    common = [name for name in ids if name in others]
    if len(common) < 2:
        return None
    first = _shares(one)[:, [ids.index(name) for name in common]].ravel()
    second = _shares(other)[:, [others.index(name) for name in common]].ravel()
    if not first.std() * second.std() > np.finfo(np.float32).eps:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def likenesses(processes: Sequence[Process]) -> list[list[float | None]]:
    """Returns `likeness` of every process with itself and with those before it, row by row."""
    return [[likeness(one, other) for other in processes[: i + 1]] for i, one in enumerate(processes)]


def _shares(process: Process) -> NDArray[np.float64]:
    """Returns each pathway's share of all scaled weight at every moment, [moments, K]; 0 where there is none."""
    weights = rows_at(process.progress, process.scaled_weights, np.linspace(0, 1, MOMENTS))
    totals = weights.sum(axis=1, keepdims=True)
    shares: NDArray[np.float64] = weights / np.where(totals > 0, totals, 1)
    return shares
