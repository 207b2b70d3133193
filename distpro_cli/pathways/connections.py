"""Which teacher level is joined to which student level: a recipe's groups become K pathways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch

from distpro_cli.errors import DistproError, Problem, RecipeError, nearest
from distpro_cli.pathways.alignment import align
from distpro_cli.pathways.distances import DISTANCES, make_distance
from distpro_cli.pathways.layouts import layouts_of_pair, shape_text
from distpro_cli.pathways.transforms import TRANSFORMS, make_transform
from distpro_cli.process.pathway import LevelInfo, PathwayInfo
from distpro_cli.recipe.schema import PathwayGroup
from distpro_cli.registry import check_options, options_taken

Joint = tuple[LevelInfo, LevelInfo]  # teacher level, student level

AUTO = "auto"  # stands for FOR_TOKENS where a side has tokens, for FOR_MAPS elsewhere
FOR_MAPS = "conv2"
FOR_TOKENS = "transformer"

SETS: dict[str, Callable[[int, int], bool]] = {
    "lower": lambda teacher, student: student <= teacher,
    "upper": lambda teacher, student: student >= teacher,
    "same": lambda teacher, student: student == teacher,
    "all": lambda teacher, student: True,
}


def joins_logits(groups: Sequence[PathwayGroup]) -> bool:
    """Returns whether a group's distance is one between logits, so that default levels should end with them."""
    return any(_between_logits(group) for group in groups)


def _between_logits(group: PathwayGroup) -> bool:
    try:
        return bool(getattr(DISTANCES.find(group.distance), "between_logits", False))
    except DistproError:  # reported with the other problems when the pathways are resolved
        return False


def resolve_pathways(
    groups: Sequence[PathwayGroup], teacher: Sequence[LevelInfo], student: Sequence[LevelInfo]
) -> tuple[PathwayInfo, ...]:
    """Resolves the groups of a recipe against the levels of its two networks.

    The sets `lower`, `upper`, `same` and `all` go by the ranks of `align`, which are the levels' numbers where both
    networks have levels of the same kinds. They leave logits out, with any transform; with a distance
    between logits (kl) they join the logits of both networks and nothing else. Pairs may name any level.
    Levels that a recipe leaves out end with the logits where `joins_logits` holds.

    Args:
        groups: The recipe's `pathways`.
        teacher: Levels of the teacher, numbered from 1.
        student: Levels of the student, numbered from 1.

    Returns:
        K pathways, group by group, within a group by teacher level, then student level.

    Raises:
        RecipeError: everything wrong with the groups, all at once.
    """
    problems: list[Problem] = []
    pathways: list[PathwayInfo] = []
    declared: dict[tuple[str, str, str], int] = {}
    for g, group in enumerate(groups):
        key = f"pathways.{g}"
        try:
            _check_names(key, group)
            joints = _joints(f"{key}.connections", group, teacher, student)
        except RecipeError as error:
            problems += error.problems
            continue
        problems += _fit_problems(key, group, joints)
        pathways += _named(g, group, joints, declared, problems)
    if problems:
        raise RecipeError(problems)
    return tuple(pathways)


def groups_of(
    groups: Sequence[PathwayGroup], teacher: Sequence[LevelInfo], student: Sequence[LevelInfo]
) -> list[PathwayGroup]:
    """Returns the group of every pathway that `resolve_pathways` returns, [K]."""
    return [group for group in groups for _ in _joints("", group, teacher, student)]


def _check_names(key: str, group: PathwayGroup) -> None:
    """Raises RecipeError with all that is wrong with a group's transform and distance, for any levels."""
    problems = []
    try:
        if group.transform == AUTO:
            _check_auto_options(group)
        else:
            check_options("transform", group.transform, TRANSFORMS.find(group.transform), group.transform_options)
    except DistproError as error:
        problems += [Problem(f"{key}.transform", line) for line in error.lines]
    try:
        make_distance(group.distance, group.distance_options)
    except DistproError as error:
        problems += [Problem(f"{key}.distance", line) for line in error.lines]
    if problems:
        raise RecipeError(problems)


def _joints(key: str, group: PathwayGroup, teacher: Sequence[LevelInfo], student: Sequence[LevelInfo]) -> list[Joint]:
    """Returns the pairs of levels that a group joins, by teacher level, then student level."""
    if isinstance(group.connections, str):
        return _set_joints(key, group, teacher, student)
    problems = []
    joints = []
    for pair in group.connections:
        joint: list[LevelInfo] = []
        for role, number, levels in zip(("teacher", "student"), pair, (teacher, student), strict=True):
            found = [level for level in levels if level.number == number]
            if not found:
                message = f"{pair}: there is no {role} level {number}; there are: {_levels_text(levels)}"
                problems.append(Problem(key, message))
            joint += found
        if len(joint) == 2:
            joints.append((joint[0], joint[1]))
    if not group.connections:
        problems.append(Problem(key, f"joins no levels; {_remedy(teacher, student)}"))
    if problems:
        raise RecipeError(problems)
    return sorted(joints, key=lambda joint: (joint[0].number, joint[1].number))


def _set_joints(
    key: str, group: PathwayGroup, teacher: Sequence[LevelInfo], student: Sequence[LevelInfo]
) -> list[Joint]:
    assert isinstance(group.connections, str)
    if _between_logits(group):
        joints = [(i, j) for i, j in product(teacher, student) if i.kind == j.kind == "logits"]
        remedy = "add logits to teacher.levels and to student.levels (a teacher with head: false has none), or name "
        remedy += "pairs of vectors"
    else:
        joins = SETS[group.connections]
        features = product(*([level for level in side if level.kind != "logits"] for side in (teacher, student)))
        ranks = align(teacher, student)
        joints = [(i, j) for i, j in features if joins(ranks.teacher[i.number], ranks.student[j.number])]
        remedy = _remedy(teacher, student)
    if not joints:
        message = f"'{group.connections}' with distance {group.distance} joins no levels; {remedy}"
        raise RecipeError([Problem(key, message)])
    return joints


def _fit_problems(key: str, group: PathwayGroup, joints: Sequence[Joint]) -> list[Problem]:
    """Returns which pairs of levels the group's transform or distance cannot bring together."""
    distance = make_distance(group.distance, group.distance_options)
    problems: dict[str, list[str]] = {}  # message → connections, so that one cause is reported once
    for teacher, student in joints:
        connection = f"{teacher.number}-{student.number}"
        transform = _transform_of(group, teacher, student)
        try:
            distance.check(teacher)
        except DistproError as error:
            problems.setdefault(str(error), []).append(connection)
        try:
            with torch.device("meta"):  # no memory, and nothing drawn from the random state
                make_transform(transform, student, teacher, _options_of(group, transform))
            if getattr(TRANSFORMS.find(transform), "keeps_channels", False) and distance.compares_channels:
                _check_channels(group, student, teacher)
        except DistproError as error:
            problems.setdefault(str(error), []).append(connection)
    return [Problem(key, f"{', '.join(where)}: {message}") for message, where in problems.items()]


def _transform_of(group: PathwayGroup, teacher: LevelInfo, student: LevelInfo) -> str:
    """Returns the block of a pair of levels: the group's; of `auto` what fits their kinds."""
    if group.transform != AUTO:
        return group.transform
    return FOR_TOKENS if "tokens" in (teacher.kind, student.kind) else FOR_MAPS


def _options_of(group: PathwayGroup, transform: str) -> dict[str, Any]:
    """Returns the options of one of the group's blocks; under `auto` every block gets those that it takes."""
    if group.transform != AUTO:
        return group.transform_options
    taken = options_taken(TRANSFORMS.find(transform))
    return {key: value for key, value in group.transform_options.items() if key in taken}


def _check_auto_options(group: PathwayGroup) -> None:
    """Raises DistproError for an option that none of the blocks behind `auto` takes."""
    known = [key for name in (FOR_MAPS, FOR_TOKENS) for key in options_taken(TRANSFORMS.find(name))]
    if unknown := [key for key in group.transform_options if key not in known]:
        raise DistproError(
            f"transform {AUTO} has no option '{unknown[0]}'{nearest(unknown[0], known)}; its options, for {FOR_MAPS} "
            f"and {FOR_TOKENS}: {', '.join(known)}"
        )


def _check_channels(group: PathwayGroup, student: LevelInfo, teacher: LevelInfo) -> None:
    student_layout, teacher_layout = layouts_of_pair(student, teacher)
    if student_layout.channels != teacher_layout.channels:
        raise DistproError(
            f"transform {group.transform} leaves channels as they are and distance {group.distance} compares them, but "
            f"the student's {student.name} is {shape_text(student.shape)}, the teacher's {teacher.name} is "
            f"{shape_text(teacher.shape)}: use transform conv1 or linear, or distance attention-map"
        )


def _named(
    g: int,
    group: PathwayGroup,
    joints: Sequence[Joint],
    declared: dict[tuple[str, str, str], int],
    problems: list[Problem],
) -> list[PathwayInfo]:
    """Returns a group's pathways under their ids, and reports those declared before."""
    distance = group.distance
    pathways = []
    for teacher, student in joints:
        transform = _transform_of(group, teacher, student)
        connection = pathway_id = f"{teacher.number}-{student.number}"
        identity = (connection, transform, distance)
        if identity in declared:
            where = "in this group" if declared[identity] == g else f"(also in pathways.{declared[identity]})"
            message = (
                f"pathway {connection} with {transform} and {distance} is declared twice {where}; leave one out, "
                "or give it another transform or distance"
            )
            problems.append(Problem(f"pathways.{g}.connections", message))
            continue
        if any(connection == taken for taken, _, _ in declared):
            pathway_id = f"{connection}:{transform}+{distance}"
        declared[identity] = g
        options = (_options_of(group, transform), group.distance_options)
        pathways.append(PathwayInfo(pathway_id, teacher, student, transform, distance, *options))
    return pathways


def _levels_text(levels: Sequence[LevelInfo]) -> str:
    return ", ".join(f"{info.number} ({info.name}, {info.kind} {shape_text(info.shape)})" for info in levels)


def _remedy(teacher: Sequence[LevelInfo], student: Sequence[LevelInfo]) -> str:
    sides = (("teacher", teacher), ("student", student))
    if alone := [role for role, levels in sides if all(level.kind == "logits" for level in levels)]:
        return (
            f"the logits are the only level of the {' and of the '.join(alone)}; take a distance between logits (kl), "
            "or name other levels"
        )
    return f"name pairs of teacher levels {_levels_text(teacher)} and student levels {_levels_text(student)}"
