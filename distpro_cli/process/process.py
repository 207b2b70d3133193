"""A process: the weight of every pathway over time, and reading it at any moment of a run.

Shape legend: t rows, k pathways.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from distpro_cli.errors import DistproError, ProcessError
from distpro_cli.process.cost import Part, relative_cost
from distpro_cli.process.pathway import PathwayInfo

Float32 = NDArray[np.float32]
MOST_ROWS = 2000
THRESHOLDS = (0.3, 0.5, 0.6, 0.7)


def rows_to_keep(num_steps: int, most: int = MOST_ROWS) -> list[int]:
    """Chooses which steps of a run are recorded.

    Args:
        num_steps: Steps of the run, at least 1.
        most: Largest number of rows, at least 2.

    Returns:
        Step numbers from 0 to num_steps - 1, increasing, first and last included, evenly spread.
    """
    if num_steps < 1 or most < 2:
        raise ValueError(f"num_steps is {num_steps} and most is {most}; at least 1 and 2 are needed")
    if num_steps <= most:
        return list(range(num_steps))
    return [row * (num_steps - 1) // (most - 1) for row in range(most)]


@dataclass(frozen=True, eq=False)
class Schedule:
    """A process as a run reads it: weights at a progress, what is dropped exactly 0.

    Attributes:
        progress: [T], as in `Process`.
        weights: [T, K], as in `Process`.
        mask: [T, K], True where the entry is kept.
        score: [T, K] float64; between two rows of which one is kept, an entry is kept where its
            interpolated score reaches `cutoff`.
        cutoff: See `score`.
    """

    progress: Float32
    weights: Float32
    mask: NDArray[np.bool_]
    score: NDArray[np.float64]
    cutoff: float

    @property
    def remaining_percent(self) -> float:
        """Share of the T × K entries that are kept, in percent."""
        return float(100.0 * self.mask.mean())

    @property
    def ever_on(self) -> list[bool]:
        """For each pathway, whether it is kept anywhere in the run; [K]."""
        return [bool(column.any()) for column in self.mask.T]

    def kept_at(self, u: float) -> NDArray[np.bool_]:
        """Returns which pathways are kept at progress `u` in [0, 1]; [K]."""
        row, share = _position(self.progress, u)
        if share == 0.0:
            exact: NDArray[np.bool_] = self.mask[row].copy()
            return exact
        before, after = self.mask[row], self.mask[row + 1]
        score = self.score[row] + share * (self.score[row + 1] - self.score[row])
        kept: NDArray[np.bool_] = (before & after) | ((before | after) & (score >= self.cutoff))
        return kept

    def at(self, u: float) -> Float32:
        """Returns the weights at progress `u` in [0, 1]; [K], dropped ones exactly 0."""
        weights: Float32 = _interpolate(self.progress, self.weights, u)
        weights[~self.kept_at(u)] = 0
        return weights


@dataclass(frozen=True, eq=False)
class Process:
    """What a search delivers: weights over time for K pathways.

    Attributes:
        progress: [T], strictly increasing from 0 to 1.
        weights: [T, K] ≥ 0, what multiplies each pathway's loss.
        alpha: [T, K], the raw scores behind the weights.
        pathways: K of them, in the order of the columns.
        normalization: How alpha became weights.
        recipe: The full recipe of the search as YAML.
        versions: Version by package.
        seed: Seed of the search.
        measured: What the search measured; nothing that differs between two equal searches.
        parts: What a step costs that trains the pair with all pathways on, part by part; none: not known.

    Raises:
        ProcessError: the fields do not fit each other, or hold values that no process has.
    """

    progress: Float32
    weights: Float32
    alpha: Float32
    pathways: tuple[PathwayInfo, ...]
    normalization: str
    recipe: str
    versions: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    measured: Mapping[str, float | int | str] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()

    def __post_init__(self) -> None:
        """Takes the tables as float32 and checks them."""
        for name in ("progress", "weights", "alpha"):
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype=np.float32))
        _check_tables(self)

    @classmethod
    def constant(
        cls,
        pathways: Sequence[PathwayInfo],
        weights: Sequence[float],
        recipe: str,
        seed: int,
        *,
        normalization: str = "none",
        versions: Mapping[str, str] | None = None,
        measured: Mapping[str, float | int | str] | None = None,
    ) -> Process:
        """Returns a process whose weights ([K], ≥ 0) never change: two rows; alpha is the weights."""
        row = np.asarray(weights, dtype=np.float32).reshape(-1)
        table = np.stack([row, row])
        progress = np.array([0, 1], dtype=np.float32)
        own = (normalization, recipe, versions or {}, seed, measured or {})
        return cls(progress, table, table.copy(), tuple(pathways), *own)

    def mean_over_time(self) -> Process:
        """Returns the same process with weights and alpha averaged over time: two equal rows."""
        weights = self.mean.astype(np.float32)
        alpha = _mean_over_time(self.progress, self.alpha).astype(np.float32)
        progress = np.array([0, 1], dtype=np.float32)
        tables = np.stack([weights, weights]), np.stack([alpha, alpha])
        return replace(self, progress=progress, weights=tables[0], alpha=tables[1])

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean weight of every pathway over time (trapezoid, exact for the interpolated weights); [K]."""
        return _mean_over_time(self.progress, self.weights)

    @property
    def share(self) -> NDArray[np.float64]:
        """Each pathway's part of the sum of the mean weights, in [0, 1]; [K], all 0 when every weight is."""
        mean = self.mean
        total = mean.sum()
        return mean / total if total > 0 else np.zeros_like(mean)

    def at(self, u: float) -> Float32:
        """Returns the weights at training progress `u` in [0, 1], linearly interpolated; [K]."""
        return _interpolate(self.progress, self.weights, u)

    def schedule(self, threshold: float | None = None, keep: float | None = None) -> Schedule:
        """Returns the process with its weak entries dropped; nothing is dropped when neither is given.

        Args:
            threshold: In [0, 1]. An entry is kept where alpha, scaled to [0, 1] by its smallest and largest
                value over the whole table, reaches it (Deng et al. 2022). All alpha equal: all are kept.
            keep: In (0, 1]. The share of the T × K entries to keep, strongest alpha first, at least one;
                of equal ones those that come first in the table.

        Raises:
            DistproError: both are given, or one is out of range.
        """
        if threshold is not None and keep is not None:
            raise DistproError("--threshold and --keep exclude each other; give one of them")
        alpha_tk = self.alpha.astype(np.float64)
        if threshold is not None:
            if not 0 <= threshold <= 1:
                raise DistproError(f"--threshold is {threshold:g}; allowed: 0 to 1")
            low, span = alpha_tk.min(), np.ptp(alpha_tk)
            score_tk = (alpha_tk - low) / span if span > 0 else np.ones_like(alpha_tk)
            return Schedule(self.progress, self.weights, score_tk >= threshold, score_tk, threshold)
        if keep is not None:
            if not 0 < keep <= 1:
                raise DistproError(f"--keep is {keep:g}; allowed: more than 0, up to 1")
            return self._strongest(alpha_tk, keep)
        return Schedule(self.progress, self.weights, np.ones(alpha_tk.shape, np.bool_), alpha_tk, -np.inf)

    def remaining_percent(self, thresholds: Sequence[float] = THRESHOLDS) -> dict[str, float]:
        """Returns the share of the entries kept, in percent, by the threshold as text."""
        return {f"{threshold:g}": self.schedule(threshold=threshold).remaining_percent for threshold in thresholds}

    def relative_cost(self, schedule: Schedule) -> float | None:
        """Returns the mean cost of a step under `schedule`, over that of a full one; None where parts are unknown."""
        return relative_cost(self.parts, schedule) if self.parts else None

    def _strongest(self, alpha_tk: NDArray[np.float64], keep: float) -> Schedule:
        count = max(1, int(np.floor(keep * alpha_tk.size + 0.5)))
        strongest_first = np.argsort(-alpha_tk, axis=None, kind="stable")[:count]
        mask = np.zeros(alpha_tk.size, np.bool_)
        mask[strongest_first] = True
        cutoff = float(alpha_tk.reshape(-1)[strongest_first[-1]])
        return Schedule(self.progress, self.weights, mask.reshape(alpha_tk.shape), alpha_tk, cutoff)


def _position(progress_t: Float32, u: float) -> tuple[int, float]:
    """Returns the row at or before `u`, and how far `u` is on the way to the next one, in [0, 1)."""
    # In float32, as the rows are: a run as long as the search then meets every row exactly.
    u = float(np.float32(min(max(u, 0.0), 1.0)))
    row = int(np.searchsorted(progress_t, np.float32(u), side="right")) - 1
    if row == len(progress_t) - 1:
        return row, 0.0
    start, end = float(progress_t[row]), float(progress_t[row + 1])
    return row, (u - start) / (end - start)


def _interpolate(progress_t: Float32, table_tk: Float32, u: float) -> Float32:
    row, share = _position(progress_t, u)
    if share == 0.0:
        exact: Float32 = table_tk[row].copy()
        return exact
    before, after = table_tk[row].astype(np.float64), table_tk[row + 1].astype(np.float64)
    between: Float32 = (before * (1 - share) + after * share).astype(np.float32)
    return between


def _mean_over_time(progress_t: Float32, table_tk: Float32) -> NDArray[np.float64]:
    widths_t = np.diff(progress_t.astype(np.float64))
    middles_tk = (table_tk[:-1].astype(np.float64) + table_tk[1:]) / 2
    mean: NDArray[np.float64] = widths_t @ middles_tk
    return mean


def _check_tables(process: Process) -> None:
    progress, weights, alpha = process.progress, process.weights, process.alpha
    num_pathways = len(process.pathways)
    if progress.ndim != 1 or len(progress) < 2:
        raise ProcessError(f"progress has the shape {list(progress.shape)}; expected [T] with at least 2 rows")
    if num_pathways == 0:
        raise ProcessError("there is no pathway; a process has at least one")
    expected = (len(progress), num_pathways)
    for name, table in (("weights", weights), ("alpha", alpha)):
        if table.shape != expected:
            raise ProcessError(
                f"{name} has the shape {list(table.shape)}; expected {list(expected)}: "
                f"{len(progress)} rows of progress, {num_pathways} pathways"
            )
    for name, table in (("progress", progress), ("weights", weights), ("alpha", alpha)):
        if not np.isfinite(table).all():
            raise ProcessError(f"{name} holds a value that is not finite")
    if progress[0] != 0 or progress[-1] != 1 or not (np.diff(progress) > 0).all():
        raise ProcessError("progress does not increase from 0 to 1")
    if (weights < 0).any():
        raise ProcessError("weights holds a negative value; a weight is 0 or more")
    _check_parts(process)
    ids = [pathway.id for pathway in process.pathways]
    if len(set(ids)) < len(ids):
        twice = sorted(name for name, count in Counter(ids).items() if count > 1)
        raise ProcessError(f"pathway ids occur twice: {', '.join(twice[:5])}")


def _check_parts(process: Process) -> None:
    if process.parts and not 0 < sum(part.cost for part in process.parts) < np.inf:
        raise ProcessError("the costs of the parts do not add up to a finite number above 0")
    for part in process.parts:
        if not part.cost >= 0:
            raise ProcessError(f"part {part.name} has the cost {part.cost:g}; a cost is 0 or more")
        if beyond := [k for k in part.pathways or () if not 0 <= k < len(process.pathways)]:
            raise ProcessError(
                f"part {part.name} names pathway {beyond[0]}; there are 0 to {len(process.pathways) - 1}"
            )
