"""What `inspect` reports of a process, as plain values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distpro_cli.process.file import FORMAT, version_of
from distpro_cli.process.pathway import LevelInfo
from distpro_cli.process.process import THRESHOLDS, Process, levels_of
from distpro_cli.process.schedule import rows_at


def summarize(
    process: Process, thresholds: Sequence[float] = THRESHOLDS, keeps: Sequence[float] = ()
) -> dict[str, Any]:
    """Returns what a process holds.

    `pathways` has the weight at progress 0, ½ and 1 (`start`, `middle`, `end`), its `mean` over time, and
    its `share` of the sum of the means, in [0, 1], in units of the scale where the process has one.
    `remaining_percent` maps a threshold to the entries left, `relative_cost` to the cost of a step over that of a
    full one; `keep` maps the share of the entries kept to both. `step_cost` is the part of a full step's cost that
    the student, the teacher and the pathways have; `machine` is what tells the costs, its `name` empty where it is
    the built-in one. All of these are None where the process does not hold what its steps cost.
    """
    at_threshold = {f"{threshold:g}": process.schedule(threshold=threshold) for threshold in thresholds}
    columns = zip(process.at(0.0), process.at(0.5), process.at(1.0), process.mean, process.share, strict=True)
    return {
        "format": FORMAT,
        "version": version_of(process),
        "rows": len(process.progress),
        "pathways": [
            {
                "id": pathway.id,
                "teacher_level": pathway.teacher.number,
                "student_level": pathway.student.number,
                "transform": pathway.transform,
                "distance": pathway.distance,
                "start": float(start),
                "middle": float(middle),
                "end": float(end),
                "mean": float(mean),
                "share": float(share),
            }
            for pathway, (start, middle, end, mean, share) in zip(process.pathways, columns, strict=True)
        ],
        "remaining_percent": {mark: schedule.remaining_percent for mark, schedule in at_threshold.items()},
        "relative_cost": {mark: process.relative_cost(schedule) for mark, schedule in at_threshold.items()}
        if process.parts
        else None,
        "keep": {f"{keep:g}": _at_keep(process, keep) for keep in keeps},
        "step_cost": _step_cost(process),
        "machine": asdict(process.machine) if process.parts else None,
        "normalization": process.normalization,
        "seed": process.seed,
        "versions": dict(process.versions),
        "measured": dict(process.measured),
        "searched": dict(process.searched),
        "gained": dict(process.gained),
        "history": list(process.history),
    }


def _at_keep(process: Process, keep: float) -> dict[str, float | None]:
    schedule = process.schedule(keep=keep)
    return {"remaining_percent": schedule.remaining_percent, "relative_cost": process.relative_cost(schedule)}


def _step_cost(process: Process) -> dict[str, float] | None:
    if not process.parts:
        return None
    shares = dict.fromkeys(("student", "teacher", "pathways"), 0.0)
    total = sum(part.cost for part in process.parts)
    for part in process.parts:
        role = part.name.split(" ")[0]
        shares[role if role in ("student", "teacher") else "pathways"] += part.cost / total
    return shares


def sample(process: Process, num_points: int) -> NDArray[np.float64]:
    """Returns the mean weights, in units of the scale, in `num_points` equal parts of the run; [points, K]."""
    within = 8
    u = (np.arange(num_points * within) + 0.5) / (num_points * within)
    rows = rows_at(process.progress, process.scaled_weights, u)
    means: NDArray[np.float64] = rows.reshape(num_points, within, -1).mean(axis=1)
    return means


def levels(processes: Iterable[Process], side: str) -> list[LevelInfo]:
    """Returns the levels that pathways use on one `side` (`teacher` or `student`), shallow to deep.

    Where several processes have a level of the same number, the first decides.
    """
    return list(levels_of((pathway for process in processes for pathway in process.pathways), side))
