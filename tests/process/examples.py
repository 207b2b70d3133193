"""Processes to test with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distpro_cli.process.pathway import LevelInfo, PathwayInfo
from distpro_cli.process.process import Process

RECIPE = "data: {name: digits}\nteacher: {name: wrn_16_2}\nstudent: {name: wrn_10_1}\n"


def make_level(number: int, count: int, channels: int) -> LevelInfo:
    """A stage, or for the deepest level the pooled vector."""
    if number == count:
        return LevelInfo(number, count, "pooled", "vector", None, (channels,))
    side = 32 >> number
    return LevelInfo(number, count, f"layer{number}", "map", 2**number, (channels, side, side))


def make_pathway(
    teacher: int, student: int, count: int = 4, transform: str = "conv2", distance: str = "hcl", name: str = ""
) -> PathwayInfo:
    """The pathway `teacher-student` between networks of `count` levels."""
    own, other = make_level(teacher, count, 64), make_level(student, count, 16)
    return PathwayInfo(name or f"{teacher}-{student}", own, other, transform, distance, {"width": 8}, {})


def lower_pathways(count: int = 4) -> tuple[PathwayInfo, ...]:
    """The connection set `lower`."""
    return tuple(make_pathway(i, j, count) for i in range(1, count + 1) for j in range(1, i + 1))


def constant_process(pathways: Sequence[PathwayInfo], weight: float) -> Process:
    """A process of one weight everywhere."""
    table = np.full((2, len(pathways)), weight, dtype=np.float32)
    return Process(np.array([0, 1]), table, table, tuple(pathways), "none", RECIPE)


def make_process(num_rows: int = 21, pathways: Sequence[PathwayInfo] | None = None, seed: int = 0) -> Process:
    """A process in which low levels matter early and high ones late."""
    pathways = lower_pathways() if pathways is None else pathways
    generator = np.random.default_rng(seed)
    progress = np.linspace(0, 1, num_rows, dtype=np.float32)
    slopes = np.array([info.teacher.number - 2.5 + 0.3 * info.student.number for info in pathways])
    alpha = 1 + slopes[None] * progress[:, None] + 0.05 * generator.standard_normal((num_rows, len(pathways)))
    weights = len(pathways) * np.exp(alpha) / (np.e + np.exp(alpha).sum(axis=1, keepdims=True))
    versions, measured = {"distpro-cli": "0.1.0"}, {"teacher_top1": 91.25, "steps": 400}
    return Process(progress, weights, alpha, tuple(pathways), "biased-softmax", RECIPE, versions, seed, measured)
