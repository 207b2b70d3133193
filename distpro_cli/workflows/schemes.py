"""Fixed schemes as processes, so that they run, are saved and are shown like any other.

Shape legend: k pathways.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from distpro_cli.errors import DistproError, Problem, RecipeError, nearest
from distpro_cli.networks.level_choice import DISTILLATION_LOGITS, LOGITS
from distpro_cli.pathways.alignment import equally_deep
from distpro_cli.process.pathway import LevelInfo, PathwayInfo
from distpro_cli.process.process import Process
from distpro_cli.recipe.load import dump_recipe
from distpro_cli.recipe.schema import KAPPA, PathwayGroup, Recipe
from distpro_cli.training.alpha import NORMALIZATIONS
from distpro_cli.versions import installed_versions

Levels = Sequence[LevelInfo]
Groups = Callable[[Recipe, Levels, Levels], list[PathwayGroup]]  # (recipe, teacher's levels, student's levels)
Rows = Callable[[Recipe, int], list[tuple[float, float]]]  # (recipe, K) → (progress, weight of every pathway)


@dataclass(frozen=True)
class Scheme:
    """A process that is defined, not searched.

    Attributes:
        rows: Its weights over time.
        groups: Its own pathways; None: the recipe's.
        on_logits: Whether its pathways join logits, which are made levels for it.
        teaches: Whether the teacher is ever on.
        levels: The levels of teacher and student that its pathways join, in place of the recipe's.
    """

    rows: Rows
    groups: Groups | None = None
    on_logits: bool = False
    teaches: bool = True
    levels: tuple[str, str] | None = None


def find_scheme(name: str) -> Scheme:
    """Returns the scheme called `name`.

    Raises:
        DistproError: there is none.
    """
    if name not in SCHEMES:
        raise DistproError(f"there is no scheme '{name}'{nearest(name, SCHEMES)}; there are: {', '.join(SCHEMES)}")
    return SCHEMES[name]


def scheme_recipe(name: str, recipe: Recipe, teacher: Levels, student: Levels) -> Recipe:
    """Returns the recipe with the scheme's own pathways, if it has any, in place of the recipe's.

    Raises:
        RecipeError: the networks do not have the levels that the scheme joins.
    """
    groups = SCHEMES[name].groups
    return recipe if groups is None else recipe.model_copy(update={"pathways": groups(recipe, teacher, student)})


def scheme_process(name: str, recipe: Recipe, infos: Sequence[PathwayInfo], factors: Sequence[float]) -> Process:
    """Returns the scheme as a process over the resolved pathways of `scheme_recipe`.

    Args:
        name: Of the scheme.
        recipe: As `scheme_recipe` returns it.
        infos: The pathways.
        factors: What multiplies the weight of each, [K].
    """
    progress, weights = zip(*SCHEMES[name].rows(recipe, len(infos)), strict=True)
    table = np.outer(weights, factors).astype(np.float32)
    return Process(
        progress=np.asarray(progress, dtype=np.float32),
        weights=table,
        alpha=table.copy(),
        pathways=tuple(infos),
        normalization="none",
        recipe=dump_recipe(recipe),
        versions=installed_versions(),
        seed=recipe.seed,
    )


def with_levels_of(name: str, recipe: Recipe) -> Recipe:
    """Returns the recipe with the levels that the scheme needs."""
    scheme = SCHEMES[name]
    if scheme.levels is not None:
        roles = zip(("teacher", "student"), (recipe.teacher, recipe.student), scheme.levels, strict=True)
        specs = {role: spec.model_copy(update={"levels": [level]}) for role, spec, level in roles}
        return recipe.model_copy(update=specs)
    return _with_logits(recipe) if scheme.on_logits else recipe


def _with_logits(recipe: Recipe) -> Recipe:
    """Returns the recipe with logits as the last level of both networks, where it names levels without them."""
    specs = {
        role: spec.model_copy(update={"levels": [*spec.levels, LOGITS]})
        for role, spec in (("teacher", recipe.teacher), ("student", recipe.student))
        if spec.levels is not None and LOGITS not in spec.levels
    }
    return recipe.model_copy(update=specs)


def under_its_name(name: str, error: RecipeError) -> RecipeError:
    """Returns problems of pathways that the recipe does not name, as problems of the scheme."""
    return RecipeError([replace(problem, key=f"scheme {name}") for problem in error.problems])


def _constant(weight: float) -> list[tuple[float, float]]:
    return [(0.0, weight), (1.0, weight)]


def _start_of_search(recipe: Recipe, num_pathways: int) -> float:
    """Returns the weight that every pathway has before a search with `scale: distance` moves it."""
    spec = recipe.search
    kappa = spec.kappa if spec.scale == "distance" else KAPPA["distance"]
    start_k = torch.full((num_pathways,), float(spec.alpha_start))
    return float(NORMALIZATIONS[spec.normalization](start_k, kappa, spec.bias)[0])


def _uniform_rows(recipe: Recipe, num_pathways: int) -> list[tuple[float, float]]:
    weight = recipe.schemes.uniform.weight
    return _constant(_start_of_search(recipe, num_pathways) if weight is None else weight)


def _kd_groups(recipe: Recipe, teacher: Levels, student: Levels) -> list[PathwayGroup]:
    options = {"temperature": recipe.schemes.kd.temperature}
    return [PathwayGroup(connections="same", transform="identity", distance="kl", distance_options=options)]


def _hint_groups(recipe: Recipe, teacher: Levels, student: Levels) -> list[PathwayGroup]:
    numbers = sorted({info.number for info in teacher} & {info.number for info in student})
    level = recipe.schemes.hint.level
    if level is None:
        joints = equally_deep(teacher, student, "map", "tokens") or [[number, number] for number in numbers]
        joint = joints[(len(joints) - 1) // 2]
    else:
        joint = [level, level]
    if joint[0] not in numbers and level is not None:
        found = ", ".join(map(str, numbers))
        raise RecipeError([Problem("schemes.hint.level", f"{level} is no level of both networks; those are: {found}")])
    return [PathwayGroup(connections=[joint], transform="conv1", distance="mse")]


def _attention_groups(recipe: Recipe, teacher: Levels, student: Levels) -> list[PathwayGroup]:
    joints = [joint for joint in equally_deep(teacher, student, "map") if _has_positions(teacher, joint[0])]
    if not joints:
        message = "no level is a map in both networks, and in the teacher of more than one cell; set levels to maps"
        raise RecipeError([Problem("scheme attention-transfer", message)])
    return [PathwayGroup(connections=joints, transform="resize", distance="attention-map")]


def _reviewkd_groups(recipe: Recipe, teacher: Levels, student: Levels) -> list[PathwayGroup]:
    mid = recipe.schemes.reviewkd.mid
    options = {} if mid is None else {"mid": mid}
    # Published for maps: of tokens those on the grid are compared.
    beside_grid = {"prefix": False} if any(level.prefix for level in teacher) else {}
    return [
        PathwayGroup(
            connections="same",
            transform="review",
            transform_options=options,
            distance="hcl",
            distance_options=beside_grid,
        )
    ]


def _pkd_groups(recipe: Recipe, teacher: Levels, student: Levels) -> list[PathwayGroup]:
    shapes = [{info.number: info.shape for info in levels} for levels in (teacher, student)]
    joints: dict[str, list[list[int]]] = {}
    for i, j in equally_deep(teacher, student, "map"):
        joints.setdefault("identity" if shapes[0][i] == shapes[1][j] else "conv1", []).append([i, j])
    if not joints:
        raise RecipeError([Problem("scheme pkd", "no level is a map in both networks; set levels to maps")])
    return [PathwayGroup(connections=pairs, transform=transform, distance="pkd") for transform, pairs in joints.items()]


def _deit_groups(recipe: Recipe, teacher: Levels, student: Levels) -> list[PathwayGroup]:
    return [PathwayGroup(connections="same", transform="identity", distance="hard-label")]


def _reviewkd_kd_groups(recipe: Recipe, teacher: Levels, student: Levels) -> list[PathwayGroup]:
    schemes = recipe.schemes
    (review,), (kd,) = _reviewkd_groups(recipe, teacher, student), _kd_groups(recipe, teacher, student)
    return [
        review.model_copy(update={"weight": schemes.reviewkd.weight}),
        kd.model_copy(update={"weight": schemes.kd.weight}),
    ]


def _reviewkd_rows(recipe: Recipe, num_pathways: int) -> list[tuple[float, float]]:
    return _warmed_up(recipe.schemes.reviewkd.weight, recipe)


def _warmed_up(weight: float, recipe: Recipe) -> list[tuple[float, float]]:
    warmup = recipe.schemes.reviewkd.warmup
    return [(0.0, 0.0), (warmup, weight), (1.0, weight)] if warmup else _constant(weight)


def _has_positions(levels: Levels, number: int) -> bool:
    return any(info.number == number and info.shape[1:] != (1, 1) for info in levels)


SCHEMES: dict[str, Scheme] = {
    "plain": Scheme(lambda recipe, _: _constant(0.0), teaches=False),
    "uniform": Scheme(_uniform_rows),
    "kd": Scheme(lambda recipe, _: _constant(recipe.schemes.kd.weight), _kd_groups, on_logits=True),
    "hint": Scheme(lambda recipe, _: _constant(recipe.schemes.hint.weight), _hint_groups),
    "attention-transfer": Scheme(
        lambda recipe, _: _constant(recipe.schemes.attention_transfer.weight), _attention_groups
    ),
    "reviewkd": Scheme(_reviewkd_rows, _reviewkd_groups),
    # Each group has its own weight, as a factor; the warm-up is ReviewKD's, of both.
    "reviewkd+kd": Scheme(lambda recipe, _: _warmed_up(1.0, recipe), _reviewkd_kd_groups, on_logits=True),
    "pkd": Scheme(lambda recipe, _: _constant(recipe.schemes.pkd.weight), _pkd_groups),
    # DeiT halves both losses; here both are whole, which Adam and the like do not see.
    "deit": Scheme(
        lambda recipe, _: _constant(recipe.schemes.deit.weight), _deit_groups, levels=(LOGITS, DISTILLATION_LOGITS)
    ),
}
