"""Ends a comparison: which method to use, and what the loss of its runs was made of."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from distpro_cli.process.file import load_process
from distpro_cli.process.fitting import fit
from distpro_cli.process.library import measured_unit
from distpro_cli.report.formula import loss_formula, make_terms
from distpro_cli.report.verdict import choose
from distpro_cli.runs.folder import RunFolder
from distpro_cli.workflows.methods import Method
from distpro_cli.workflows.session import Session

UNNAMED = "task loss"
NOTHING: dict[str, Any] = {
    "method": None,
    "over": None,
    "difference": None,
    "interval": None,
    "sure": None,
    "over_student": None,
    "within_chance": [],
    "comparisons": 0,
    "formula": None,
    "sentence": "No method came to its end, so none can be recommended.",
}


def give_verdict(session: Session, methods: Sequence[Method], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns what `Choice.values` does, with the formula of the chosen method's loss.

    Args:
        session: Of the comparison.
        methods: What was compared.
        rows: As `summarize_method` returns them, in the same order.

    Raises:
        DistproError: a finished run cannot be read.
    """
    choice = choose(rows, session.task.metric)
    if choice is None:
        return dict(NOTHING)
    method = next(method for method, row in zip(methods, rows, strict=True) if row is choice.method)
    return choice.values(formula_of(session, method, choice.method))


def formula_of(session: Session, method: Method, row: Mapping[str, Any]) -> str:
    """Returns the formula of the loss that a method's runs minimised, over all seeds.

    Args:
        session: Of the comparison.
        method: What drove the runs.
        row: As `summarize_method` returns it.

    Raises:
        DistproError: a finished run cannot be read.
    """
    folders = [RunFolder(Path(path), resuming=True) for path in row["run_dirs"]]
    parts = task_parts(folders[0].metrics)
    if not row["pathways_used"]:
        return loss_formula(parts, [])
    pair, process = method.set_up(session, folders[0])
    found = [process] if method.online is None else [load_process(folder.process) for folder in folders]
    dropping = {"threshold": method.dropping.threshold, "keep": method.dropping.keep}
    unit = None if method.online else measured_unit(session.recipe.distill, process)
    driving = found if unit is None else [one.in_units() for one in found]
    schedules = [fit(one, pair.infos).schedule(**dropping) for one in driving]
    options = [full_options(pair.pathways.distances[k], info.distance_options) for k, info in enumerate(pair.infos)]
    return loss_formula(parts, make_terms(pair.infos, options, schedules), unit)


def task_parts(metrics: Path) -> list[str]:
    """Returns what the task calls the parts of its loss, from the first row of a metrics file that names them."""
    try:
        lines = metrics.read_text(encoding="utf-8").splitlines()
    except OSError:
        return [UNNAMED]
    rows = (json.loads(line) for line in lines)
    return next((list(row["losses"]) for row in rows if row.get("losses")), [UNNAMED])


def full_options(module: nn.Module | Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of a distance: those given, and the numbers that it takes by default."""
    parameters = inspect.signature(type(module)).parameters.values()
    numbers = {p.name: p.default for p in parameters if isinstance(p.default, int | float)}
    defaults = {name: value for name, value in numbers.items() if not isinstance(value, bool)}
    return {**defaults, **given}
