"""Parts that many tests build on."""

from __future__ import annotations

from typing import Any

import torch

from distpro_cli.recipe.load import parse_recipe
from distpro_cli.recipe.schema import Recipe
from distpro_cli.report.progress import Reporter
from distpro_cli.runs.context import RunContext
from distpro_cli.runs.signals import Interruption
from distpro_cli.tasks.task import Task, find_task

CPU = torch.device("cpu")
CONTEXT = RunContext(CPU, Reporter(), Interruption())

# A search as in the paper.
PAPER: dict[str, Any] = {
    "alpha_decay": 0.0,
    "alpha_lr": 0.1,
    "alpha_memory": None,
    "lr_in_hypergradient": True,
    "weight": 1.0,
    "scale": "distance",
    "interval": 1,
}


def digits_recipe(*overrides: str) -> Recipe:
    """Returns a recipe on the digits: WRN-16-1 teaches WRN-10-1 through `lower` pathways."""
    text = "data: {name: digits, image_size: 32, workers: 0}\nteacher: {name: wrn_16_1}\nstudent: {name: wrn_10_1}\n"
    text += "pathways: [{}]\n"
    return parse_recipe(text, overrides)


def classification(*overrides: str) -> Task:
    """Returns the task of `digits_recipe` under its `distill`."""
    recipe = digits_recipe(*overrides)
    return find_task("classification")(recipe, recipe.distill)
