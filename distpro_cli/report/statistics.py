"""Means, spreads and paired intervals over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Returns `mean`, `std` (of the sample; 0.0 of a single value) and `values`."""
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else 0.0,
        "values": list(values),
    }


def paired_difference(values: Sequence[float], baseline: Sequence[float], confidence: float = 0.95) -> dict[str, Any]:
    """Returns the mean of values - baseline, pair by pair, with its t interval.

    Args:
        values: One per seed.
        baseline: Of the same seeds in the same order.
        confidence: Of the interval, in (0, 1).

    Returns:
        `mean`, `low`, `high` (None for a single pair) and `values`, the differences.
    """
    differences = [value - base for value, base in zip(values, baseline, strict=True)]
    mean, count = statistics.fmean(differences), len(differences)
    if count == 1:
        return {"mean": mean, "low": None, "high": None, "values": differences}
    half = t_quantile(count - 1, confidence) * statistics.stdev(differences) / math.sqrt(count)
    return {"mean": mean, "low": mean - half, "high": mean + half, "values": differences}


def t_quantile(degrees: int, confidence: float = 0.95) -> float:
    """Returns the t within ± which Student's distribution has `confidence` of its mass.

    Args:
        degrees: Degrees of freedom, at least 1.
        confidence: In (0, 1).
    """
    low, high = 0.0, 1.0
    while _t_mass(high, degrees) < confidence:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_mass(middle, degrees) < confidence else (low, middle)
    return (low + high) / 2


def _t_mass(t: float, degrees: int) -> float:
    """Returns P(|T| < t) for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2 == 1
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for power in range(3 if odd else 2, degrees + 1, 2):
        total += term
        term *= cosine * cosine * (power - 1) / power
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
