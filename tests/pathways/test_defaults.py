"""The pathways of a recipe that names none, by the levels of its pair."""

from __future__ import annotations

import pytest

from distpro_cli.pathways.connections import resolve_pathways
from distpro_cli.pathways.defaults import ends_with_logits, groups_for
from distpro_cli.process.pathway import LevelInfo
from distpro_cli.recipe.load import parse_recipe
from distpro_cli.recipe.schema import Recipe
from distpro_cli.tasks.task import Task, find_task
from tests.pathways.levels import levels

TEACHER = levels((8, 16, 16), (16, 8, 8), (32, 4, 4), (32,), logits=10)
STUDENT = levels((4, 16, 16), (8, 8, 8), (16, 4, 4), (16,), logits=10)
FOUR = [(1, 1), (2, 2), (3, 3), (4, 4)]


class NoLogits(find_task("classification")):  # type: ignore[misc]
    """A task whose outputs are no logits."""

    outputs_logits = False


def recipe_with(*overrides: str) -> tuple[Recipe, Task]:
    recipe = parse_recipe("data: {name: digits}\nteacher: {name: wrn_16_1}\nstudent: {name: wrn_10_1}", overrides)
    return recipe, find_task(recipe.task)(recipe, recipe.distill)


def found(
    teacher: tuple[LevelInfo, ...], student: tuple[LevelInfo, ...], kind: type[Task] | None = None
) -> dict[tuple[str, str], list[tuple[int, int]]]:
    """Returns connections by transform and distance, in the order of the pathways."""
    recipe, task = recipe_with()
    groups = groups_for(recipe, task if kind is None else kind(recipe, recipe.distill), teacher, student)
    by_kind: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for info in resolve_pathways(groups, teacher, student):
        by_kind.setdefault((info.transform, info.distance), []).append(info.connection)
    return by_kind


def test_levels_that_correspond_are_joined_alone_by_review_and_at_the_logits() -> None:
    by_kind = found(TEACHER, STUDENT)
    expected = {("conv2", "hcl"): FOUR, ("review", "hcl"): FOUR, ("identity", "kl"): [(5, 5)]}
    assert list(by_kind.items()) == list(expected.items())


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        (TEACHER[:-1], STUDENT),
        (TEACHER, STUDENT[:-1]),
        (TEACHER, levels((4, 16, 16), (8, 8, 8), (16, 4, 4), (16,), logits=7)),
    ],
)
def test_logits_that_are_no_level_or_of_another_width_are_left_out(
    teacher: tuple[LevelInfo, ...], student: tuple[LevelInfo, ...]
) -> None:
    assert found(teacher, student) == {("conv2", "hcl"): FOUR, ("review", "hcl"): FOUR}


def test_outputs_that_are_no_logits_to_the_task_are_left_out() -> None:
    assert found(TEACHER, STUDENT, NoLogits) == {("conv2", "hcl"): FOUR, ("review", "hcl"): FOUR}


@pytest.mark.parametrize(
    ("student", "lower"),
    [
        (levels((5, 12), (5, 12), (5, 12), (12,), logits=10), 10),  # tokens
        (levels((4, 16, 16), (8, 8, 8), (16,), logits=10), 8),  # one level fewer
        (levels((4, 16, 16), (8, 8, 8), (16,), (16,), logits=10), 9),  # another kind at level 3
        (levels((8,), (8,), (8,), (8,), logits=10), 4),  # vectors alone, all joined with the pooled vector
    ],
)
def test_levels_that_do_not_correspond_are_joined_by_lower(student: tuple[LevelInfo, ...], lower: int) -> None:
    student = tuple(
        LevelInfo(i.number, i.count, i.name, i.kind, 8, i.shape, grid=(2, 2), prefix=1) if i.kind == "tokens" else i
        for i in student
    )
    by_kind = found(TEACHER, student)
    assert by_kind.pop(("identity", "kl")) == [(5, len(student))]
    assert len([connection for connections in by_kind.values() for connection in connections]) == lower
    assert all(transform != "review" for transform, _ in by_kind)


def test_a_recipe_that_names_pathways_gets_them() -> None:
    recipe, task = recipe_with("pathways=[{}]")
    assert groups_for(recipe, task, TEACHER, STUDENT) is recipe.pathways
    assert recipe.pathways is not None and (recipe.pathways[0].connections, len(recipe.pathways)) == ("lower", 1)
    assert not ends_with_logits(recipe, task)


def test_default_levels_end_with_logits_unless_a_network_lists_levels_without_them() -> None:
    assert ends_with_logits(*recipe_with())
    assert ends_with_logits(*recipe_with("teacher.levels=[0, 1, 2, pooled, logits]"))
    assert not ends_with_logits(*recipe_with("student.levels=[0, 1, 2, pooled]"))
    recipe, _ = recipe_with()
    assert not ends_with_logits(recipe, NoLogits(recipe, recipe.distill))
