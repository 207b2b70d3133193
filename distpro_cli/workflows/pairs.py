"""Makes the pair of a run ready: networks, pathways between them, and what a step of it costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from distpro_cli.costs.step_costs import step_parts
from distpro_cli.errors import first_line
from distpro_cli.networks.compiled import compile_between_taps
from distpro_cli.networks.frozen import fold_batch_norm, round_once
from distpro_cli.networks.inheritance import inherit, inherited
from distpro_cli.networks.levels import TappedNetwork
from distpro_cli.pathways.connections import resolve_pathways
from distpro_cli.pathways.defaults import ends_with_logits, groups_for
from distpro_cli.pathways.module import Pathways
from distpro_cli.process.cost import Part
from distpro_cli.process.fitting import How, Match, find_match
from distpro_cli.process.matching import Levels, level_differences, levels_for, mapped
from distpro_cli.process.pathway import PathwayInfo
from distpro_cli.process.process import Process
from distpro_cli.randomness import derived_seed
from distpro_cli.recipe.schema import PathwayGroup, Recipe
from distpro_cli.runs.folder import RunFolder
from distpro_cli.tasks.task import Task
from distpro_cli.training.device import autocast
from distpro_cli.training.step import Distiller, Pair
from distpro_cli.workflows.session import Session
from distpro_cli.workflows.teacher import build_teacher, measured_teacher

FindParts = Callable[[Session, Pair, int], tuple[Part, ...]]  # of a pair's step with so many images


def build_pair(session: Session) -> Pair:
    """Builds teacher, student and the recipe's pathways between them, on the device; no teacher is trained yet.

    Raises:
        DistproError: a network, or everything wrong with the pathways.
    """
    student, teacher = build_networks(session, logits=ends_with_logits(session.recipe, session.task))
    return join(session, student, teacher)


def build_networks(session: Session, *, logits: bool, weights: bool = True) -> tuple[TappedNetwork, TappedNetwork]:
    """Builds student and teacher.

    Args:
        session: The run.
        logits: Whether default levels end with the logits.
        weights: Whether the teacher's weights are wanted, not its levels alone.
    """
    student = session.build(session.recipe.student, "student", logits=logits)
    return student, build_teacher(session, logits=logits, weights=weights)


def join(session: Session, student: TappedNetwork, teacher: TappedNetwork) -> Pair:
    """Returns the pair of two networks with the recipe's pathways, whose weights come from the run's seed.

    Raises:
        RecipeError: everything wrong with the pathways.
        DistproError: the student cannot start with what its recipe says.
    """
    inherited(student.model, teacher.model, session.recipe.student.inherit)  # before a teacher is trained for it
    groups = groups_for(session.recipe, session.task, teacher.levels, student.levels)
    return with_pathways(session, student, teacher, resolve_pathways(groups, teacher.levels, student.levels))


def with_pathways(
    session: Session, student: TappedNetwork, teacher: TappedNetwork, infos: Sequence[PathwayInfo]
) -> Pair:
    """Returns the pair of two networks with these pathways, whose weights come from the run's seed."""
    torch.manual_seed(derived_seed(session.recipe.seed, "weights", "pathways"))
    return Pair(student, teacher, session.place(Pathways(infos)))


def start_with_teacher(session: Session, distiller: Distiller) -> None:
    """Fills the student with the parts of the teacher, which is ready, that its recipe names."""
    parts = session.recipe.student.inherit
    if not parts:
        return
    student, average = distiller.student, distiller.average
    tensors = inherited(student.model, distiller.teacher.model, parts)
    for network in (student, average):
        if network is not None:
            inherit(network.model, tensors)
    session.context.reporter.message(
        f"the student starts with the teacher's {', '.join(parts)}: {len(tensors)} tensors"
    )


def make_ready(
    session: Session, pair: Pair, distiller: Distiller, folder: RunFolder, known: float | None
) -> float | None:
    """Makes a pair ready for its first step: the teacher with its weights, the student with what it starts with, and
    steps as cheap as they get.

    Args:
        session: The run.
        pair: Its costs (`FindParts`) have been asked for: the teacher changes here.
        distiller: Of the pair.
        folder: Of the run.
        known: The teacher's figure; None: it is measured.

    Returns:
        The teacher's figure.
    """
    figure = measured_teacher(session, pair.teacher, folder, known)
    start_with_teacher(session, distiller)
    hasten(session, pair)
    return figure


def hasten(session: Session, pair: Pair) -> None:
    """Makes the steps of a pair that is ready cheaper, in place; whoever reads the teacher's weights has done so.

    In bfloat16 the teacher's weights are rounded once, which changes no bit. Where bits are not promised, off the CPU
    and under `compile`, its BatchNorm is folded into its convolutions. Networks and pathways are compiled if asked for.
    """
    recipe, teacher = session.recipe, pair.teacher
    if recipe.compile or session.device.type != "cpu":
        fold_batch_norm(teacher, recipe.data.image_size)
    if recipe.precision == "bfloat16":
        round_once(teacher, recipe.data.image_size, lambda: autocast(session.device, recipe.precision))
    if recipe.compile:
        for module in (teacher.model, pair.student.model, pair.pathways.shared, pair.pathways.transforms):
            compile_between_taps(module)
        for distance in pair.pathways.distances:
            distance.compiled = True


def recipe_for(process: Process, recipe: Recipe) -> Recipe:
    """Returns the recipe, without pathways with those of the process: what decides whether levels end with logits."""
    return recipe if recipe.pathways else recipe.model_copy(update={"pathways": pathway_groups(process)})


def match_pair(process: Process, recipe: Recipe, task: Task, teacher: Levels, student: Levels, how: How) -> Match:
    """Returns what a process drives of a pair with these levels; without pathways in the recipe, the process's own.

    Raises:
        RecipeError: everything wrong with the pathways.
        ProcessError: no level of the process corresponds to one of the pair.
    """
    levels = (teacher, student)
    if recipe.pathways is not None:
        infos = resolve_pathways(recipe.pathways, *levels)
        return find_match(process, infos, how, levels)
    matching = how.matching(levels)
    numbers = matching.both_numbers(process)
    groups = []
    for info in process.pathways:
        there = levels_for(info, numbers, levels)
        if None not in there and not level_differences(info, *there).keys() & matching.asked:
            groups.append(_group(info, mapped(info, numbers)))
    return find_match(process, resolve_pathways(groups, *levels) if groups else (), how, levels)


def pathway_groups(process: Process) -> list[PathwayGroup]:
    """Returns the process's own pathways as groups of a recipe, one per pathway."""
    return [_group(info, info.connection) for info in process.pathways]


def _group(info: PathwayInfo, connection: tuple[int | None, int | None]) -> PathwayGroup:
    """Returns a group of one pathway, between these levels of teacher and student."""
    return PathwayGroup.model_validate(
        {
            "connections": [list(connection)],
            "transform": info.transform,
            "transform_options": info.transform_options,
            "distance": info.distance,
            "distance_options": info.distance_options,
        }
    )


class PartsOnce:
    """Does what `parts_of` does, once for equal pathways and batches; for runs of one recipe's networks."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[Part, ...]] = {}

    def __call__(self, session: Session, pair: Pair, batch_size: int) -> tuple[Part, ...]:
        """Returns what `parts_of` does."""
        key = repr((pair.infos, batch_size))
        if key not in self._found:
            self._found[key] = parts_of(session, pair, batch_size)
        return self._found[key]


def parts_of(session: Session, pair: Pair, batch_size: int) -> tuple[Part, ...]:
    """Returns what a step of the pair costs, part by part; nothing, and a message, where that cannot be told."""
    try:
        return step_parts(pair.teacher, pair.student, pair.pathways, session.recipe.data.image_size, batch_size)
    except Exception as error:
        # An estimate: a network that runs on this device alone is no reason not to train.
        session.context.reporter.message(f"the cost of a step cannot be estimated: {first_line(error)}")
        return ()
