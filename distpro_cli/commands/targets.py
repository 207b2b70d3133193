"""What the paths given to a command name: process files, folders of them, recipes, things that ship."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from distpro_cli.errors import DistproError, ProcessError, nearest
from distpro_cli.process.file import NotAProcessError, load_process
from distpro_cli.process.library import HUB, is_named, load_named, named_processes
from distpro_cli.process.process import Process
from distpro_cli.recipe.shipped import shipped_processes, shipped_recipes

PROCESS_SUFFIX = ".safetensors"
RECIPE_SUFFIXES = (".yaml", ".yml")


@dataclass
class Targets:
    """What was found, in the order given.

    Attributes:
        processes: Label and process; for a file found in a folder that cannot be read, label and reason.
        files: Files of one's own behind them, by label.
        recipes: Paths or names of recipes.
    """

    processes: list[tuple[str, Process | str]] = field(default_factory=list)
    recipes: list[str] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)

    @property
    def sound(self) -> list[tuple[str, Process]]:
        """The processes that could be read."""
        return [(label, process) for label, process in self.processes if isinstance(process, Process)]


def find_targets(paths: Sequence[str]) -> Targets:
    """Finds what `paths` name: a file, a folder, a shipped recipe or a shipped process.

    Raises:
        DistproError: at least one does not exist or cannot be read; one line each.
    """
    targets, problems = Targets(), []
    for text in paths:
        try:
            _add(targets, text)
        except DistproError as error:
            problems.append(error)
    if problems:
        raise type(problems[0])(*(line for problem in problems for line in problem.lines))
    return targets


def add_folder(targets: Targets, folder: Path) -> None:
    """Adds the processes below `folder`, hidden folders left out; those that cannot be read with the reason."""
    found: list[Path] = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent) / name for name in files if name.endswith(PROCESS_SUFFIX)]
    shipped = {path.resolve() for path in shipped_processes().values()}  # in a checkout, processes/ itself
    for path in sorted(found, key=lambda path: path.with_suffix("").as_posix()):
        if path.resolve() not in shipped:
            targets.files[str(path)] = path
        try:
            targets.processes.append((str(path), load_process(path)))
        except NotAProcessError:  # a network's weights
            continue
        except ProcessError as error:
            targets.processes.append((str(path), str(error)))


def _add(targets: Targets, text: str) -> None:
    path, recipes = Path(text), shipped_recipes()
    if text.startswith(HUB):
        targets.processes.append((text, load_named(text)))
    elif path.is_dir():
        add_folder(targets, path)
    elif path.suffix.lower() in RECIPE_SUFFIXES:
        targets.recipes.append(text)
    elif os.path.lexists(path):
        targets.processes.append((text, load_process(path)))
    elif text in recipes:
        targets.recipes.append(text)
    elif is_named(text):
        targets.processes.append((text, load_named(text)))
    else:
        hint = nearest(text, [*recipes, *named_processes()])
        raise DistproError(f"{text}: no such file or folder, and no recipe or process of that name{hint}")
