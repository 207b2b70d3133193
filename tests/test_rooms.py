"""The rooms of the house: imports go one way, and only tasks know what is learnt."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "distpro_cli"
# From the roof to the ground: a room imports from those after it, never from those before.
ROOMS = [
    "commands",
    "workflows",
    "training",
    "runs",
    "costs",
    "pathways",
    "networks",
    "tasks",
    "report",
    "process",
    "recipe",
]
GROUND = {"errors", "files", "image_size", "metric", "randomness", "registry", "user_code", "versions", "world"}
ROOF = {"__init__", "__main__", "cli"}
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if "build" not in path.parts)


def room_of(module: str) -> str:
    """Returns the room of `distpro_cli.room.file`, or the file's own name on the ground floor."""
    return module.split(".")[1] if "." in module else "__init__"


def imported(file: str) -> set[str]:
    """Returns the modules of the package that a file imports anywhere, for types too."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "distpro_cli":
            found.add(node.module or "")
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "distpro_cli"}
    return found


def height(room: str) -> int:
    if room in GROUND:
        return 0
    return len(ROOMS) - ROOMS.index(room) if room in ROOMS else len(ROOMS) + 1


def test_every_file_lies_in_a_room() -> None:
    assert {file.split("/")[0].removesuffix(".py") for file in FILES} == {*ROOMS, *GROUND, *ROOF}


@pytest.mark.parametrize("file", [file for file in FILES if file.split("/")[0].removesuffix(".py") not in ROOF])
def test_imports_go_down(file: str) -> None:
    own = file.split("/")[0].removesuffix(".py")
    above = {module for module in imported(file) if height(room_of(module)) > height(own)}
    assert not above


def test_no_two_files_import_each_other() -> None:
    modules = {f"distpro_cli.{file[:-3].replace('/', '.')}".removesuffix(".__init__"): file for file in FILES}
    needs = {module: imported(file) & set(modules) - {module} for module, file in modules.items()}
    while free := [module for module, wanted in needs.items() if not wanted]:
        for module in free:
            del needs[module]
        for wanted in needs.values():
            wanted.difference_update(free)
    assert not needs


LEARNT = re.compile(r"(?i)top.?[15]\b|cross.?entropy|known_num_classes|class_names|\bclasses\b")
# Constructors of networks take timm's `num_classes`, and a recipe's keys are the user's words.
NUM_CLASSES = re.compile(r"num_classes")


@pytest.mark.parametrize("file", [file for file in FILES if not file.startswith("tasks/")])
def test_only_tasks_know_what_is_learnt(file: str) -> None:
    if file in ("recipe/data.py", "recipe/schema.py"):
        return
    text = (PACKAGE / file).read_text(encoding="utf-8")
    assert not LEARNT.findall(text)
    if not file.startswith("networks/"):
        assert not NUM_CLASSES.findall(text)
