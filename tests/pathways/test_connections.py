"""Connection sets against their definition, ids, and every error at once."""

from __future__ import annotations

import pytest
import torch

from distpro_cli.errors import RecipeError
from distpro_cli.pathways.connections import joins_logits, resolve_pathways
from distpro_cli.process.pathway import PathwayInfo
from distpro_cli.recipe.schema import PathwayGroup
from tests.pathways.levels import levels

TEACHER = levels((8, 16, 16), (16, 8, 8), (32, 4, 4), (32,), logits=10)
STUDENT = levels((4, 16, 16), (8, 8, 8), (16,), logits=10)


def ids(*groups: PathwayGroup) -> list[str]:
    return [info.id for info in resolve_pathways(groups, TEACHER, STUDENT)]


def group(connections: str | list[list[int]] = "lower", transform: str = "conv1", **keys: object) -> PathwayGroup:
    return PathwayGroup.model_validate({"connections": connections, "transform": transform, **keys})


def problems_of(*groups: PathwayGroup) -> str:
    with pytest.raises(RecipeError) as caught:
        resolve_pathways(groups, TEACHER, STUDENT)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # The pooled vectors, 4 and 3, lie equally deep.
        ("lower", ["1-1", "2-1", "2-2", "3-1", "3-2", "4-1", "4-2", "4-3"]),
        ("upper", ["1-1", "1-2", "1-3", "2-2", "2-3", "3-3", "4-3"]),
        ("same", ["1-1", "2-2", "4-3"]),
        ("all", [f"{i}-{j}" for i in range(1, 5) for j in range(1, 4)]),
    ],
)
def test_sets_leave_logits_out(name: str, expected: list[str]) -> None:
    assert ids(group(name)) == expected


def test_five_levels_make_fifteen_lower_pathways() -> None:
    five = levels(*[(8, 16, 16)] * 4, (8,))
    assert len(resolve_pathways([group("lower")], five, five)) == 15


def test_pairs_are_sorted_and_may_name_logits() -> None:
    assert ids(group([[3, 2], [1, 3], [5, 4]], "linear")) == ["1-3", "3-2", "5-4"]


@pytest.mark.parametrize("name", ["lower", "upper", "same", "all"])
def test_kl_joins_the_logits(name: str) -> None:
    assert ids(group(name, "identity", distance="kl")) == ["5-4"]


def test_groups_add_up_under_ids_of_their_own() -> None:
    first, second = group("same"), group([[1, 1], [4, 1]], distance="mse")
    assert ids(first, second) == ["1-1", "2-2", "4-3", "1-1:conv1+mse", "4-1"]


def test_pathways_carry_what_the_group_says() -> None:
    (info,) = resolve_pathways(
        [
            group(
                [[3, 2]],
                "conv2",
                transform_options={"mid": 3},
                distance="l1",
                distance_options={"smooth": 1.0},
            )
        ],
        TEACHER,
        STUDENT,
    )
    assert info == PathwayInfo("3-2", TEACHER[2], STUDENT[1], "conv2", "l1", {"mid": 3}, {"smooth": 1.0})


def test_resolving_draws_nothing_from_the_random_state() -> None:
    before = torch.random.get_rng_state()
    ids(group("all", "conv2"), group("all", "linear"))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_resize_goes_with_distances_that_do_not_compare_channels() -> None:
    assert ids(group([[1, 1], [2, 2]], "resize", distance="attention-map")) == ["1-1", "2-2"]
    found = problems_of(group([[1, 1]], "resize", distance="mse"), group([[3, 3]], "resize", distance="attention-map"))
    assert (
        "pathways.0: 1-1: transform resize leaves channels as they are and distance mse compares them, but the "
        "student's stage1 is 4×16×16, the teacher's stage1 is 8×16×16: use transform conv1 or linear" in found
    )
    same = levels((8, 8, 8))
    assert resolve_pathways([group("same", "resize", distance="mse")], levels((8, 4, 4)), same)


def test_logits_are_wanted_for_a_distance_between_them() -> None:
    plain, logits = group("lower"), group("same", "identity", distance="kl")
    assert not joins_logits([plain])
    assert joins_logits([plain, logits])
    assert not joins_logits([group(distance="klll")])  # told when the pathways are resolved


def test_all_problems_at_once() -> None:
    text = problems_of(
        group("lower", "conv9"),
        group("lower", distance="hlc"),
        group([[6, 1], [1, 9]]),
        group("same", transform_options={"mid": 3}),
        group([[1, 1]], "identity"),
    )
    for part in (
        "pathways.0.transform: unknown transform 'conv9' (did you mean 'conv",
        "pathways.1.distance: unknown distance 'hlc' (did you mean 'hcl'?)",
        "pathways.2.connections: [6, 1]: there is no teacher level 6; there are: 1 (stage1, map 8×16×16)",
        "pathways.2.connections: [1, 9]: there is no student level 9",
        "pathways.3.transform: transform conv1 has no option 'mid'",
        "pathways.4: 1-1: transform identity needs equal shapes",
    ):
        assert part in text
    assert len(text.splitlines()) == 6


def test_declared_twice() -> None:
    problem = "pathways.1.connections: pathway 1-1 with conv1 and hcl is declared twice (also in pathways.0)"
    assert problem in problems_of(group("same"), group([[1, 1]]))
    twice = group([[2, 1]]).model_copy(update={"connections": [[2, 1], [2, 1]]})  # the schema refuses it too
    assert "pathway 2-1 with conv1 and hcl is declared twice in this group" in problems_of(twice)


def test_joining_nothing() -> None:
    nothing = group("same").model_copy(update={"connections": []})  # the schema refuses it too
    assert "joins no levels; name pairs of teacher levels 1 (stage1" in problems_of(nothing)
    with pytest.raises(RecipeError, match=r"'same' with distance kl joins no levels; add logits to teacher\.levels"):
        resolve_pathways([group("same", "identity", distance="kl")], TEACHER[:4], STUDENT[:3])


def test_one_cause_is_told_once() -> None:
    teacher, student = levels((15, 8), (15, 8)), levels((4, 8, 8), (4, 4, 4))
    with pytest.raises(RecipeError) as caught:
        resolve_pathways([group("same", "conv2"), group([[1, 1]], "conv1", distance="kl")], teacher, student)
    text = str(caught.value)
    assert "1-1: teacher level 1 (stage1) has 15 tokens, which form no grid" in text
    assert "1-1: distance kl compares logits or vectors, but the teacher's stage1 is tokens of shape 15×8" in text
