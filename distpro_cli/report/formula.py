"""What a loss was made of, in one line: the task's parts, and the pathways with their weights.

Shape legend: t rows, k pathways.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distpro_cli.process.pathway import PathwayInfo
from distpro_cli.process.schedule import Schedule

MOST_NAMED = 5  # pathways of one kind that are named one by one


@dataclass(frozen=True)
class Term:
    """One pathway of a loss that is on at some time.

    Attributes:
        info: The pathway.
        options: Of its distance, defaults included.
        low: Smallest weight over the run.
        high: Largest weight.
        mean: Over the run.
    """

    info: PathwayInfo
    options: Mapping[str, Any]
    low: float
    high: float
    mean: float

    @property
    def kind(self) -> str:
        """What it shares with others of its kind: `hcl({}; conv2)`, with a place for the connections."""
        info = self.info
        given = _options(info.transform_options)
        transform = f"{info.transform}({given})" if given else info.transform
        inside = [transform] if info.transform != "identity" else []
        return "; ".join(filter(None, [*inside, _options(self.options)]))


def make_terms(
    infos: Sequence[PathwayInfo], options: Sequence[Mapping[str, Any]], schedules: Sequence[Schedule]
) -> list[Term]:
    """Returns the pathways that are on at some time.

    Args:
        infos: The pair's pathways, K.
        options: Of their distances, K.
        schedules: Their weights, one schedule per seed or one for all; dropped entries count as weights of 0.
    """
    tables = [np.where(one.mask, one.weights, 0).astype(np.float64) for one in schedules]
    means = [
        np.diff(one.progress.astype(np.float64)) @ (t[:-1] + t[1:]) / 2
        for one, t in zip(schedules, tables, strict=True)
    ]
    low_k, high_k = np.min([t.min(0) for t in tables], axis=0), np.max([t.max(0) for t in tables], axis=0)
    mean_k = np.mean(means, axis=0)
    return [
        Term(info, own, float(low_k[k]), float(high_k[k]), float(mean_k[k]))
        for k, (info, own) in enumerate(zip(infos, options, strict=True))
        if high_k[k] > 0
    ]


UNITS = {"loss": " / mean", "gradient": " × scale"}  # behind a distance, where the run measures the weights' unit


def loss_formula(parts: Sequence[str], terms: Sequence[Term], unit: str | None = None) -> str:
    """Writes a loss: `task + 5 × Σ hcl(1-1, 2-2; review) + [0.3 to 2.6, mean 1.1] × kl(5-5; temperature=4)`.

    Pathways of one kind are summed up; connections are teacher level - student level. A weight that is not the same
    over the run and over the pathways of its sum is shown by its range and mean.

    Args:
        parts: Names of the parts of the task loss.
        terms: Of the pathways.
        unit: Of their weights, measured in the run; a name of `search.scale`.
    """
    behind = UNITS.get(unit or "", "")
    kinds: dict[tuple[str, str], list[Term]] = {}
    for term in terms:
        kinds.setdefault((term.info.distance, term.kind), []).append(term)
    sums = (_sum(distance, kind, members) + behind for (distance, kind), members in kinds.items())
    return " + ".join([*parts, *sums])


def _sum(distance: str, kind: str, members: Sequence[Term]) -> str:
    low, high = min(term.low for term in members), max(term.high for term in members)
    mean = sum(term.mean for term in members) / len(members)
    weight = f"{high:.3g}"
    if f"{low:.3g}" != weight:
        weight = f"[{low:.3g} to {high:.3g}, mean {mean:.3g}]"
    joined = ", ".join(f"{term.info.teacher.number}-{term.info.student.number}" for term in members)
    where = joined if len(members) <= MOST_NAMED else f"{len(members)} pathways"
    inside = f"{where}; {kind}" if kind else where
    return f"{weight} × {'Σ ' if len(members) > 1 else ''}{distance}({inside})"


def _options(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={json.dumps(value, default=str)}" for name, value in sorted(values.items()))
