"""What finding a process took, measured or estimated."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from distpro_cli.costs.machines import machines_or_built_in
from distpro_cli.process.cost import relative_rule_cost, relative_search_cost
from distpro_cli.process.process import Process
from distpro_cli.recipe.load import parse_recipe
from distpro_cli.recipe.schema import Recipe, Training
from distpro_cli.report.comparison import UNKNOWN_COST, SearchCost
from distpro_cli.workflows.session import Session


def estimated_search_cost(
    process: Process,
    summaries: Sequence[Mapping[str, Any]],
    training: Training,
    num_steps: int,
    session: Session,
) -> SearchCost:
    """Estimates what the search of a process from a file would take here.

    Args:
        process: From a file.
        summaries: Of runs with the whole process.
        training: Of these runs.
        num_steps: Of each.
        session: Of these runs: its device, as it was measured, and its precision tell what parts of a step cost.
    """
    if not summaries or not process.parts or "steps" not in process.measured:
        return UNKNOWN_COST
    searched = parse_recipe(process.recipe)
    num_searched = int(process.measured["steps"])
    by_step = relative_step(on_device(process, session), searched, num_searched)
    if by_step is None:
        return UNKNOWN_COST
    by_batch = searched.search_training.batch_size / training.batch_size
    factor = num_searched / num_steps * by_batch * by_step
    seconds, device = (statistics.fmean(one[key] for one in summaries) for key in ("seconds", "device_seconds"))
    return SearchCost(seconds * factor, device * factor, estimated=True)


def on_device(process: Process, session: Session) -> Process:
    """Returns the process with the costs of a run's device in its precision; as it is where that was not measured."""
    machine = machines_or_built_in(session.device.type, session.context.say_once).get(session.recipe.precision)
    return process if machine is None else process.on_machine(machine)


def relative_step(process: Process, recipe: Recipe, num_steps: int) -> float | None:
    """Returns the cost of a step of the search behind a process, over that of a plain one; None if not known.

    Args:
        process: What was found.
        recipe: Of the search.
        num_steps: Of the search.
    """
    spec, batch_size = recipe.search, recipe.search_training.batch_size
    interval, outer = spec.steps_per_update(num_steps), spec.images_per_outer_batch(batch_size) / batch_size
    if spec.method in ("random", "uncertainty", "loss"):
        return 1.0
    if spec.method == "cosine-outer" or (spec.method == "hypergradient" and spec.hypergradient == "cheap"):
        return relative_search_cost(process.parts, interval, outer)
    return None if spec.method == "hypergradient" else relative_rule_cost(process.parts, interval)
