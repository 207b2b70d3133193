"""What a training step costs part by part, and what is left of it when entries of a process are dropped.

Shape legend: t rows, k pathways.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from distpro_cli.process.machine import Machine, Work
from distpro_cli.process.schedule import Schedule

STUDENT_FORWARD = "student forward"
STUDENT_BACKWARD = "student backward"
STUDENT_UPDATE = "student update"
SHARED = "shared"  # parts of shared blocks are called so, with a number and a level behind it


@dataclass(frozen=True)
class Part:
    """A piece of a training step that runs as a whole or not at all.

    Attributes:
        name: Such as `teacher 2` (the teacher's forward from its level 1 to level 2), `5-3` (that pathway).
        cost: Of one step, ≥ 0; parts of one process have one arbitrary unit.
        pathways: Columns of which one must be on for it to run, from 0; None: it always runs.
        work: What it does in one step, by which another machine costs it; None: not known.
    """

    name: str
    cost: float
    pathways: tuple[int, ...] | None = None
    work: Work | None = None


def weighed(parts: Sequence[Part], machine: Machine) -> tuple[Part, ...]:
    """Returns the parts with the costs that they have on a machine; those whose work is not known as they are."""
    return tuple(part if part.work is None else replace(part, cost=machine.cost(part.work)) for part in parts)


def relative_cost(parts: Sequence[Part], schedule: Schedule) -> float:
    """Returns the mean cost of a step under `schedule`, over that of a step in which every part runs.

    Exact for the interpolated schedule of infinitely many steps. Reading images and evaluation are no part of it.

    Args:
        parts: Of the process behind the schedule, at least one of a cost above 0.
        schedule: What is on when.
    """
    widths_t = np.diff(schedule.progress.astype(np.float64))
    first_tk, last_tk = _on_from_both_ends(schedule)
    first_kt, last_kt = np.ascontiguousarray(first_tk.T), np.ascontiguousarray(last_tk.T)
    alone_k = np.minimum(1.0, first_kt + last_kt) @ widths_t
    running = 0.0
    for pathways, cost in _cost_by_pathways(parts).items():
        if pathways is None:
            running += cost
        elif len(pathways) == 1:
            running += cost * float(alone_k[pathways[0]])
        elif pathways:
            # Within an interval a pathway is on from its start or up to its end, so of several the longest
            # of either kind decide when at least one is on.
            columns = list(pathways)
            on_t = np.minimum(1.0, first_kt[columns].max(axis=0) + last_kt[columns].max(axis=0))
            running += cost * float(widths_t @ on_t)
    return running / sum(part.cost for part in parts)


def _cost_by_pathways(parts: Sequence[Part]) -> dict[tuple[int, ...] | None, float]:
    """Returns what all parts cost together that run for the same pathways."""
    costs: dict[tuple[int, ...] | None, float] = {}
    for part in parts:
        costs[part.pathways] = costs.get(part.pathways, 0.0) + part.cost
    return costs


def relative_search_cost(parts: Sequence[Part], interval: int = 1, outer: float = 1.0) -> float:
    """Returns the cost of a step of a search by the cheap hypergradient, over that of a plain distillation step.

    A step that moves alpha adds the student's forward and backward pass on the outer batch, and its forward once
    more, together with that of the blocks that pathways share.

    Args:
        parts: All that runs in a plain step.
        interval: Steps from one move of alpha to the next, at least 1.
        outer: Images of an outer batch over those of a train batch, above 0.
    """
    total = sum(part.cost for part in parts)
    student = {part.name: part.cost for part in parts if part.pathways is None}
    added = (1 + outer) * student.get(STUDENT_FORWARD, 0.0) + outer * student.get(STUDENT_BACKWARD, 0.0)
    # The parameters are moved along v and back, which touches them about as often as an update does.
    added += student.get(STUDENT_UPDATE, 0.0)
    # A forward pass is a third of forward and backward.
    added += sum(part.cost for part in parts if part.name.startswith(f"{SHARED} ")) / 3
    return 1 + added / (total * interval)


def relative_rule_cost(parts: Sequence[Part], interval: int = 1) -> float:
    """Returns the cost of a step of a search by a rule over gradients at the features, over that of a plain step.

    A step that moves the weights adds the way back from the task to the features: at most the student's backward pass.

    Args:
        parts: All that runs in a plain step.
        interval: Steps from one move of the weights to the next, at least 1.
    """
    added = sum(part.cost for part in parts if part.name == STUDENT_BACKWARD)
    return 1 + added / (sum(part.cost for part in parts) * interval)


def _on_from_both_ends(schedule: Schedule) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns for which share of each interval a pathway is on from its start, and up to its end; both [T-1, K].

    One that is on all the time counts as on from the start. A weight of 0 at both ends is off.
    """
    kept_tk, score_tk, weight_tk = schedule.mask, schedule.score, schedule.weights
    before, after = kept_tk[:-1], kept_tk[1:]
    rise_tk = score_tk[1:] - score_tk[:-1]
    crossing_tk = np.zeros_like(rise_tk)
    np.divide(schedule.cutoff - score_tk[:-1], rise_tk, out=crossing_tk, where=(rise_tk != 0) & (before != after))
    crossing_tk = np.clip(crossing_tk, 0.0, 1.0)
    equal_tk = (rise_tk == 0) & (before != after)  # entries of one score of which `keep` takes some
    first_tk = np.where(before & after | equal_tk, 1.0, np.where(before, crossing_tk, 0.0))
    last_tk = np.where(after & ~before & ~equal_tk, 1.0 - crossing_tk, 0.0)
    weighty_tk = (weight_tk[:-1] != 0) | (weight_tk[1:] != 0)
    return first_tk * weighty_tk, last_tk * weighty_tk
