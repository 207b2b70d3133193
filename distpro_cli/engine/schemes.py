"""Fixed schemes as processes, so that they run, are saved and are shown like any other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from distpro_cli.engine.alpha import NORMALIZATIONS
from distpro_cli.process.pathway import PathwayInfo
from distpro_cli.process.process import Process
from distpro_cli.recipe.load import dump_recipe
from distpro_cli.recipe.schema import Recipe

Scheme = Callable[[Recipe, Sequence[PathwayInfo]], Process]


def uniform(recipe: Recipe, infos: Sequence[PathwayInfo]) -> Process:
    """Returns the process that never moves: every pathway keeps the weight that a search starts from."""
    spec = recipe.search
    start_k = torch.full((len(infos),), float(spec.alpha_start))
    weights_k = NORMALIZATIONS[spec.normalization](start_k, spec.weight, spec.bias).tolist()
    return Process.constant(infos, weights_k, dump_recipe(recipe), recipe.seed)


SCHEMES: dict[str, Scheme] = {"uniform": uniform}
