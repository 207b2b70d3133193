"""What all pictures of processes share: the numbers drawn, what they are called, colours that can be told apart.

Shape legend: t rows, k pathways.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from distpro_cli.process.process import Process

# Apart in lightness by 7 of 100 or more, so that grey print keeps them, and under all three kinds of colour blindness.
COLOURS = ("#2f6fb0", "#8f2d10", "#5fb0c9", "#0b2545", "#c8762b", "#d9b63f")
LINES = ("-", "--", ":", "-.")
COLOUR_MAP = "cividis"  # likewise, from dark to light
Named = Sequence[tuple[str, Process]]


def curves(process: Process, *, normalized: bool) -> NDArray[np.floating]:
    """Returns what is drawn of a process: weights in units of the scale or, normalised, their share at each moment.

    [T, K]; shares are in [0, 1], all 0 where every weight is.
    """
    weight_tk = process.scaled_weights
    if not normalized:
        return weight_tk
    total_t = weight_tk.sum(axis=1, dtype=np.float64)
    return weight_tk / np.where(total_t > 0, total_t, 1)[:, None]


def quantity(processes: Named, *, normalized: bool) -> str:
    """Returns what `curves` is called."""
    if normalized:
        return "share of all weight"
    scaled = any(process.scale is not None for _, process in processes)
    return "weight / scale of the pathway" if scaled else "weight of the pathway"


def highest(processes: Named, *, normalized: bool) -> float:
    """Returns the largest number drawn, or 1 where all are 0."""
    return max(float(curves(process, normalized=normalized).max()) for _, process in processes) or 1.0


def pathway_ids(processes: Named) -> list[str]:
    """Returns the ids of all pathways, each once, in the order of the first process that has it."""
    return list(dict.fromkeys(info.id for _, process in processes for info in process.pathways))
