"""The pathways of a recipe that names none, chosen by the levels of its two networks."""

from __future__ import annotations

from collections.abc import Sequence

from distpro_cli.errors import RecipeError
from distpro_cli.networks.level_choice import LOGITS
from distpro_cli.pathways.connections import joins_logits, resolve_pathways
from distpro_cli.process.pathway import LevelInfo
from distpro_cli.recipe.schema import PathwayGroup, Recipe
from distpro_cli.tasks.task import Task

SAME_LEVELS = PathwayGroup(connections="same", transform="conv2")
REVIEW = PathwayGroup(connections="same", transform="review")
BETWEEN_LOGITS = PathwayGroup(connections="same", transform="identity", distance="kl")
OTHERWISE = PathwayGroup(connections="lower")


def ends_with_logits(recipe: Recipe, task: Task) -> bool:
    """Returns whether the default levels of the recipe's networks end with the logits."""
    if recipe.pathways is not None:
        return joins_logits(recipe.pathways)
    return (
        recipe.teacher.head
        and task.outputs_logits
        and all(spec.levels is None or LOGITS in spec.levels for spec in (recipe.teacher, recipe.student))
    )


def groups_for(
    recipe: Recipe, task: Task, teacher: Sequence[LevelInfo], student: Sequence[LevelInfo]
) -> Sequence[PathwayGroup]:
    """Returns the recipe's groups of pathways or, where it names none, those that fit the pair.

    These join every level to that of the same number, once on its own and once through ReviewKD's chain; where levels
    do not correspond or hold tokens, `lower` stands for both. The logits of both networks are joined where they are
    among the levels, are logits to the task and are equally wide; alone where they are the only level of a network.

    Args:
        recipe: Of the pair.
        task: What is learnt.
        teacher: Levels of the teacher.
        student: Levels of the student.
    """
    if recipe.pathways is not None:
        return recipe.pathways
    groups = [SAME_LEVELS, REVIEW] if _correspond(teacher, student) else [OTHERWISE]
    if task.outputs_logits and _fits(BETWEEN_LOGITS, teacher, student):
        if any(all(level.kind == "logits" for level in side) for side in (teacher, student)):
            return [BETWEEN_LOGITS]
        groups.append(BETWEEN_LOGITS)
    return groups


def _correspond(teacher: Sequence[LevelInfo], student: Sequence[LevelInfo]) -> bool:
    """Returns whether both networks have the same kinds of features under the same numbers: maps, and no tokens."""
    teachers, students = (
        [(level.number, level.kind) for level in levels if level.kind != "logits"] for levels in (teacher, student)
    )
    kinds = {kind for _, kind in teachers}
    return teachers == students and "map" in kinds and "tokens" not in kinds


def _fits(group: PathwayGroup, teacher: Sequence[LevelInfo], student: Sequence[LevelInfo]) -> bool:
    try:
        resolve_pathways([group], teacher, student)
    except RecipeError:
        return False
    return True
