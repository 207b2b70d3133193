"""A process: the weight of every pathway over time, and what is known of it.

Shape legend: t rows, k pathways.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from distpro_cli.errors import ProcessError
from distpro_cli.process.cost import Part, relative_cost, weighed
from distpro_cli.process.machine import BUILT_IN, Machine
from distpro_cli.process.pathway import LevelInfo, PathwayInfo
from distpro_cli.process.schedule import Float32, Schedule, interpolate, kept_entries

SMALLEST_SCALE = 1e-18  # so that weights in units of it are finite
_MOST_WORK = 2 * 10**8  # entries to look at for what parts of several pathways cost
THRESHOLDS = (0.3, 0.5, 0.6, 0.7)
SIDES = ("teacher", "student")
Facts = Mapping[str, float | int | str]


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
        machine: On which the parts cost that; in a file always the built-in one.
        whole_alpha: [T, K'], alpha of the process that `fit` took these columns from; it decides in place of `alpha`
            what a threshold or a share drops. None: nothing was left out or moved.
        columns: Where in `whole_alpha` each pathway lies, from 0; [K].
        scale: [T, K] > 0, the unit of each pathway's weights, a factor in `weights` (`search.scale`). None: weights
            are factors of the distances, and no unit is known.
        teacher_levels: All levels of the search's teacher, with where they are tapped; none: not known.
        student_levels: Likewise.
        searched: What its weights mean and where they come from: kappa, scale, optimiser, length, data.
        gained: What it gained, and against what; empty: not known.
        history: What was done to it since its search, one text each.

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
    measured: Facts = field(default_factory=dict)
    parts: tuple[Part, ...] = ()
    whole_alpha: Float32 | None = None
    columns: tuple[int, ...] = ()
    scale: Float32 | None = None
    teacher_levels: tuple[LevelInfo, ...] = ()
    student_levels: tuple[LevelInfo, ...] = ()
    searched: Facts = field(default_factory=dict)
    gained: Facts = field(default_factory=dict)
    history: tuple[str, ...] = ()
    machine: Machine = BUILT_IN

    def __post_init__(self) -> None:
        """Takes the tables as float32 and checks them."""
        for name in ("progress", "weights", "alpha"):
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype=np.float32))
        if self.scale is not None:
            object.__setattr__(self, "scale", np.ascontiguousarray(self.scale, dtype=np.float32))
        _check_tables(self)

    def levels(self, side: str) -> tuple[LevelInfo, ...]:
        """Returns the levels of the `teacher` or the `student`, shallow to deep: all, or those known by pathways."""
        known = self.teacher_levels if side == "teacher" else self.student_levels
        return known or levels_of(self.pathways, side)

    def mean_over_time(self) -> Process:
        """Returns the same process with weights and alpha averaged over time: two equal rows.

        Where there is a scale, it and the weights in units of it are.
        """
        alpha, whole_alpha = _averaged(self.progress, self.alpha), self.whole_alpha
        if whole_alpha is not None:
            whole_alpha = _averaged(self.progress, whole_alpha)
            alpha = whole_alpha[:, list(self.columns)]
        weights = _averaged(self.progress, self.scaled_weights)
        scale = None if self.scale is None else _averaged(self.progress, self.scale)
        weights = weights if scale is None else weights * scale
        progress = np.array([0, 1], dtype=np.float32)
        return replace(self, progress=progress, weights=weights, alpha=alpha, whole_alpha=whole_alpha, scale=scale)

    @property
    def scaled_weights(self) -> NDArray[np.floating]:
        """Weights in units of the scale, [T, K]: what pathways are compared by. Without a scale, the weights."""
        return self.weights if self.scale is None else self.weights / self.scale.astype(np.float64)

    def in_units(self) -> Process:
        """Returns the same process with weights in units of the scale, and no scale; itself where it has none."""
        return self if self.scale is None else replace(self, weights=self.scaled_weights, scale=None)

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean weight of every pathway over time (trapezoid, exact for the interpolated weights); [K]."""
        return _mean_over_time(self.progress, self.weights)

    @property
    def share(self) -> NDArray[np.float64]:
        """Each pathway's part of the sum of the mean scaled weights, in [0, 1]; [K], all 0 when every weight is."""
        mean = _mean_over_time(self.progress, self.scaled_weights)
        total = mean.sum()
        return mean / total if total > 0 else np.zeros_like(mean)

    def at(self, u: float) -> Float32:
        """Returns the weights at training progress `u` in [0, 1], linearly interpolated; [K]."""
        return interpolate(self.progress, self.weights, u)

    def schedule(self, threshold: float | None = None, keep: float | None = None) -> Schedule:
        """Returns the process with its weak entries dropped; nothing is dropped when neither is given.

        Args:
            threshold: In [0, 1]. An entry is kept where alpha, scaled to [0, 1] by its smallest and largest
                value over the whole table, reaches it (Deng et al. 2022). All alpha equal: all are kept.
            keep: In (0, 1]. The share of the T × K entries to keep, strongest alpha first, at least one;
                of equal ones those that come first in the table.

        The table is that of the whole process, also where `fit` took only some of its columns.

        Raises:
            DistproError: both are given, or one is out of range.
        """
        alpha_tk = self.alpha if self.whole_alpha is None else self.whole_alpha
        mask_tk, score_tk, cutoff = kept_entries(alpha_tk, threshold, keep)
        columns = list(self.columns or range(len(self.pathways)))
        return Schedule(self.progress, self.weights, mask_tk[:, columns], score_tk[:, columns], cutoff)

    def relative_cost(self, schedule: Schedule) -> float | None:
        """Returns the mean cost of a step under `schedule`, over that of a full one; None where parts are unknown."""
        return relative_cost(self.parts, schedule) if self.parts else None

    @property
    def holds_work(self) -> bool:
        """Whether it knows what its parts do, and so what they cost on any machine."""
        return any(part.work is not None for part in self.parts)

    def on_machine(self, machine: Machine) -> Process:
        """Returns the same process with the costs of a machine; itself where it does not hold its work."""
        if not self.holds_work:
            return self
        return replace(self, parts=weighed(self.parts, machine), machine=machine)


def levels_of(pathways: Iterable[PathwayInfo], side: str) -> tuple[LevelInfo, ...]:
    """Returns the levels that pathways join on one `side`, shallow to deep; the first of a number decides."""
    found: dict[int, LevelInfo] = {}
    for pathway in pathways:
        level = pathway.teacher if side == "teacher" else pathway.student
        found.setdefault(level.number, level)
    return tuple(found[number] for number in sorted(found))


def _mean_over_time(progress_t: Float32, table_tk: NDArray[np.floating]) -> NDArray[np.float64]:
    widths_t = np.diff(progress_t.astype(np.float64))
    mean: NDArray[np.float64] = widths_t @ ((table_tk[:-1].astype(np.float64) + table_tk[1:]) / 2)
    return mean


def _averaged(progress_t: Float32, table_tk: NDArray[np.floating]) -> Float32:
    """Returns two equal rows."""
    return np.tile(_mean_over_time(progress_t, table_tk).astype(np.float32), (2, 1))


def _check_tables(process: Process) -> None:
    progress, weights, alpha = process.progress, process.weights, process.alpha
    num_pathways = len(process.pathways)
    if progress.ndim != 1 or len(progress) < 2:
        raise ProcessError(f"progress has the shape {list(progress.shape)}; expected [T] with at least 2 rows")
    if num_pathways == 0:
        raise ProcessError("there is no pathway; a process has at least one")
    expected = [len(progress), num_pathways]
    tables = {"progress": progress, "weights": weights, "alpha": alpha}
    if process.scale is not None:
        tables["scale"] = process.scale
    for name, table in tables.items():
        if name != "progress" and list(table.shape) != expected:
            reason = f"{len(progress)} rows of progress, {num_pathways} pathways"
            raise ProcessError(f"{name} has the shape {list(table.shape)}; expected {expected}: {reason}")
        if not np.isfinite(table).all():
            raise ProcessError(f"{name} holds a value that is not finite")
    if progress[0] != 0 or progress[-1] != 1 or not (np.diff(progress) > 0).all():
        raise ProcessError("progress does not increase from 0 to 1")
    if (weights < 0).any():
        raise ProcessError("weights holds a negative value; a weight is 0 or more")
    if process.whole_alpha is not None and not np.array_equal(process.whole_alpha[:, list(process.columns)], alpha):
        raise ProcessError("alpha is not what lies in these columns of whole_alpha")
    _check_parts(process)
    if (
        process.scale is not None
        and not SMALLEST_SCALE <= process.scale.min() <= process.scale.max() <= 1 / SMALLEST_SCALE
    ):
        raise ProcessError(f"scale holds a value out of range; allowed: {SMALLEST_SCALE:g} to {1 / SMALLEST_SCALE:g}")
    ids = [pathway.id for pathway in process.pathways]
    if len(set(ids)) < len(ids):
        twice = sorted(name for name, count in Counter(ids).items() if count > 1)
        raise ProcessError(f"pathway ids occur twice: {', '.join(twice[:5])}")


def _check_parts(process: Process) -> None:
    if process.parts and not 0 < sum(part.cost for part in process.parts) < np.inf:
        raise ProcessError("the costs of the parts do not add up to a finite number above 0")
    works = [part.work for part in process.parts if part.work is not None]
    if works and len(works) < len(process.parts):
        raise ProcessError(f"{len(works)} of {len(process.parts)} parts hold their work; all of them do, or none")
    if works and not sum(work.moved_bytes for work in works) > 0:
        raise ProcessError("the work of the parts moves no bytes")
    named = sum(len(pathways) for pathways in {part.pathways or () for part in process.parts} if len(pathways) > 1)
    if named * len(process.progress) > _MOST_WORK:
        raise ProcessError(f"the parts name {named} pathways over {len(process.progress)} rows; that is too many")
    for part in process.parts:
        if not part.cost >= 0:
            raise ProcessError(f"part {part.name} has the cost {part.cost:g}; a cost is 0 or more")
        if beyond := [k for k in part.pathways or () if not 0 <= k < len(process.pathways)]:
            last = len(process.pathways) - 1
            raise ProcessError(f"part {part.name} names pathway {beyond[0]}; there are 0 to {last}")
