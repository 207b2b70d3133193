"""The tasks there are, by the name a recipe gives them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

from distpro_cli.errors import DistproError, nearest

_TASKS: dict[str, type] = {}


def register_task(name: str) -> Callable[[type], type]:
    """Class decorator: makes a task known under `name` (the recipe's `task`)."""

    def register(task: type) -> type:
        _TASKS[name] = task
        return task

    return register


def task_names() -> list[str]:
    """Returns the names of all tasks, sorted; imports the modules of this package that register them."""
    package = importlib.import_module("distpro_cli.tasks")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"distpro_cli.tasks.{module.name}")
    return sorted(_TASKS)


def find_task(name: str) -> type:
    """Returns the class registered under `name`.

    Raises:
        DistproError: There is no such task; the message lists those there are.
    """
    if name not in _TASKS:
        names = task_names()
        if name not in _TASKS:
            allowed = ", ".join(names)
            raise DistproError(f"task: '{name}' is not a task{nearest(name, names)}; there are: {allowed}")
    return _TASKS[name]
