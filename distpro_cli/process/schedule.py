"""The weights of a process at any moment of a run, with weak entries dropped.

Shape legend: t rows, k pathways.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distpro_cli.errors import DistproError

Float32 = NDArray[np.float32]
MOST_ROWS = 2000


def rows_to_keep(num_steps: int) -> list[int]:
    """Chooses which steps of a run are recorded.

    Args:
        num_steps: Steps of the run, at least 1.

    Returns:
        At most `MOST_ROWS` step numbers from 0 to num_steps - 1, increasing, first and last included, evenly spread.
    """
    if num_steps <= MOST_ROWS:
        return list(range(num_steps))
    return [row * (num_steps - 1) // (MOST_ROWS - 1) for row in range(MOST_ROWS)]


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
        kept: NDArray[np.bool_] = self.mask[row].copy()
        if share > 0:
            after = self.mask[row + 1]
            score = self.score[row] + share * (self.score[row + 1] - self.score[row])
            kept = (kept & after) | ((kept | after) & (score >= self.cutoff))
        return kept

    def at(self, u: float) -> Float32:
        """Returns the weights at progress `u` in [0, 1]; [K], dropped ones exactly 0."""
        weights = interpolate(self.progress, self.weights, u)
        weights[~self.kept_at(u)] = 0
        return weights


def kept_entries(
    alpha_tk: Float32, threshold: float | None, keep: float | None
) -> tuple[NDArray[np.bool_], NDArray[np.float64], float]:
    """Returns mask, score and cutoff of a `Schedule` for a whole table of alpha; arguments as in `Process.schedule`.

    Raises:
        DistproError: both are given, or one is out of range.
    """
    if threshold is not None and keep is not None:
        raise DistproError("--threshold and --keep exclude each other; give one of them")
    score_tk = alpha_tk.astype(np.float64)
    if threshold is not None:
        if not 0 <= threshold <= 1:
            raise DistproError(f"--threshold is {threshold:g}; allowed: 0 to 1")
        low, span = score_tk.min(), np.ptp(score_tk)
        score_tk = (score_tk - low) / span if span > 0 else np.ones_like(score_tk)
        return score_tk >= threshold, score_tk, threshold
    if keep is not None:
        if not 0 < keep <= 1:
            raise DistproError(f"--keep is {keep:g}; allowed: more than 0, up to 1")
        count = max(1, int(np.floor(keep * score_tk.size + 0.5)))
        strongest_first = np.argsort(-score_tk, axis=None, kind="stable")[:count]
        mask_tk = np.zeros(score_tk.shape, np.bool_)
        mask_tk.flat[strongest_first] = True
        return mask_tk, score_tk, float(score_tk.flat[strongest_first[-1]])
    return np.ones(score_tk.shape, np.bool_), score_tk, -np.inf


def interpolate(progress_t: Float32, table_tk: Float32, u: float) -> Float32:
    """Returns the row of a table at progress `u`, linearly interpolated; [K]."""
    row, share = _position(progress_t, u)
    table_k: Float32 = table_tk[row].copy()
    if share > 0:
        before, after = table_tk[row : row + 2].astype(np.float64)
        table_k = (before * (1 - share) + after * share).astype(np.float32)
    return table_k


def rows_at(progress_t: Float32, table_tk: Float32, u_n: NDArray[Any]) -> NDArray[np.float64]:
    """Returns the rows of a table at many moments, linearly interpolated in float64; [N, K]."""
    u_n = u_n.astype(np.float64)
    return np.stack([np.interp(u_n, progress_t, column) for column in table_tk.T], axis=1)


def _position(progress_t: Float32, u: float) -> tuple[int, float]:
    """Returns the row at or before `u`, and how far `u` is on the way to the next one, in [0, 1)."""
    # In float32, as the rows are: a run as long as the search then meets every row exactly.
    u = float(np.float32(min(max(u, 0.0), 1.0)))
    row = int(np.searchsorted(progress_t, np.float32(u), side="right")) - 1
    if row == len(progress_t) - 1:
        return row, 0.0
    start, end = float(progress_t[row]), float(progress_t[row + 1])
    return row, (u - start) / (end - start)
