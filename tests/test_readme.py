"""Every command and the Python of the README run, in its order, on tiny data; what it says of the tree is true."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Run

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.M | re.S)
TINY = [
    *("data.image_size=16", "data.train_images=80", "data.test_images=40", "data.workers=0"),
    *("teacher.name=wrn_10_1", "teacher.train.epochs=1", "teacher.train.batch_size=32", "student.name=wrn_10_1"),
    *("search.epochs=1", "distill.epochs=1", "distill.batch_size=32"),
]


def commands() -> list[str]:
    """Returns the command lines of the README: of blocks without a language, and inline; usage lines left out."""
    lines = [line.removeprefix("$ ") for language, text in BLOCKS if not language for line in text.splitlines()]
    lines = [part.strip() for line in lines for part in line.split("&&")]
    prose = re.sub(r"^```.*?^```", "", README, flags=re.M | re.S)
    lines += re.findall(r"`(distpro [^`]+)`", prose)
    found = [line for line in lines if line.startswith("distpro ")]
    return [line for line in dict.fromkeys(found) if not re.search(r"RECIPE|\[|…", line)]


def write_images(root: Path) -> None:
    for split in ("train", "test"):
        for name in "abcdefghij":
            (root / split / name).mkdir(parents=True)
            for i in range(9):
                pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")


def test_every_command_runs(distpro: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(workplace / "images")
    monkeypatch.setenv("CIFAR10", str(workplace / "images"))
    shutil.copytree(ROOT / "recipes", workplace / "recipes")
    shutil.copytree(ROOT / "processes" / "cifar10", workplace / "processes" / "cifar10")
    verbs = set()
    for line in commands():
        verb, *arguments = shlex.split(line)[1:]
        verbs.add(verb)
        if verb in ("search", "transfer", "train", "compare"):
            # After the recipe, if there is one: what comes later wins.
            arguments = [a for a in arguments if not re.match(r"[a-z_]+(\.[a-z_]+)+=", a)] + TINY
        if verb == "compare":
            arguments += ["--seeds", "1", "--epochs", "1"]
        result = distpro(verb, *arguments, "--force") if verb != "schema" else distpro(verb, *arguments)
        assert result.status == 0, f"{line}\n{result.err}"
    assert {"search", "transfer", "train", "compare", "inspect"} <= verbs


def test_its_usage_lines_name_every_command(distpro: Run) -> None:
    usage = set(re.findall(r"^distpro (\w+) .*(?:RECIPE|\[)", README, flags=re.M))
    help_text = distpro("--help").out
    assert usage == {"search", "transfer", "compare", "train", "inspect", "edit", "publish", "schema", "doctor"}
    assert all(verb in help_text for verb in usage)


def test_its_python_runs(workplace: Path) -> None:
    (code,) = [text for language, text in BLOCKS if language == "python"]
    loaded = 'load_recipe("quickstart", "search.epochs=10")'
    assert loaded in code
    space: dict[str, object] = {}
    exec(code.replace(loaded, f"load_recipe('quickstart', *{TINY})"), space)
    assert {method["name"] for method in space["table"]["methods"]} == {"student", "process"}  # type: ignore[index]


def test_its_installation_is_what_ci_runs() -> None:
    blocks = [text.strip() for language, text in BLOCKS if not language]
    assert blocks[0] == "pip install . && distpro search recipes/quickstart.yaml"
    assert blocks[1] == "pip install '.[test]' && pytest -n 2"
    assert blocks[1] in (ROOT / ".ci" / "run").read_text()


def test_its_recipe_is_the_shipped_one() -> None:
    (shown,) = [text for language, text in BLOCKS if language == "yaml"]
    assert shown == (ROOT / "recipes" / "imagenet" / "resnet34-resnet18.yaml").read_text()


@pytest.mark.parametrize(
    "document", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_its_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8")):
        assert link.startswith("https://") or (path.parent / link).exists(), link


def test_its_tree_is_the_tree() -> None:
    (tree,) = [text for language, text in BLOCKS if not language and text.startswith("distpro_cli/\n")]
    rooms = re.findall(r"^  (?:cli\.py, )?(\w+)/ ", tree, flags=re.M)
    folders = {path.name for path in (ROOT / "distpro_cli").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert set(rooms) == folders - {"recipes", "processes"}
    assert all((ROOT / name).is_dir() for name in re.findall(r"^(\w+)/ ", tree, flags=re.M))
