"""What ships: recipes, their headers, paths with variables, and the wheel that carries them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import jsonschema
import pytest

from distpro_cli.errors import DistproError
from distpro_cli.files import expand_path
from distpro_cli.recipe.load import dump_recipe, load_recipe, parse_recipe
from distpro_cli.recipe.reference import json_schema
from distpro_cli.recipe.schema import Recipe, Search
from distpro_cli.recipe.shipped import shipped_processes, shipped_recipes
from distpro_cli.recipe.strict_yaml import read_yaml

ROOT = Path(__file__).parent.parent.parent
EXPECTED = {"quickstart", "cifar10/wrn_16_2-wrn_10_1", "cifar10/wrn_40_2-wrn_16_2"} | {
    "cifar100/wrn_40_2-wrn_16_2",
    "cifar100/resnet32x4-resnet8x4",
    "imagenet/resnet34-resnet18",
    "imagenet/resnet50-mobilenetv2",
}


def test_the_promised_recipes_ship() -> None:
    assert set(shipped_recipes()) >= EXPECTED
    assert len(shipped_recipes()) == len(list((ROOT / "recipes").rglob("*.yaml")))


def test_processes_are_named_by_their_path() -> None:
    for name, path in shipped_processes().items():
        assert path.as_posix().endswith(f"processes/{name}.safetensors")


@pytest.mark.parametrize("name", shipped_recipes())
class TestEveryRecipe:
    """What holds for each shipped recipe."""

    def test_it_loads_and_round_trips(self, name: str) -> None:
        recipe = load_recipe(name)
        assert parse_recipe(dump_recipe(recipe)) == recipe
        assert recipe.teacher.weights is not None or recipe.teacher.train is not None

    def test_it_fits_the_json_schema(self, name: str) -> None:
        value = read_yaml(shipped_recipes()[name].read_text(encoding="utf-8")).value
        jsonschema.Draft202012Validator(json.loads(json_schema())).validate(value)

    def test_its_header_has_the_command_and_the_schema(self, name: str) -> None:
        path = shipped_recipes()[name]
        text = path.read_text(encoding="utf-8")
        assert re.search(rf"^#   (\w+=\S+ )?distpro search {re.escape(name)}$", text, re.MULTILINE)
        schema = re.match(r"# yaml-language-server: \$schema=(\S+)\n", text)
        assert schema is not None
        assert (path.parent / schema[1]).resolve() == ROOT / "docs" / "recipe.schema.json"


def test_a_search_by_a_shipped_recipe_has_the_defaults() -> None:
    for name in (n for n in shipped_recipes() if "wrn" in n or "resnet20" in n):
        recipe = load_recipe(name)
        assert recipe.pathways is None
        assert recipe.search == Search(epochs=recipe.search.epochs)


@pytest.mark.parametrize("name", [name for name in shipped_recipes() if name.startswith("imagenet/resnet")])
def test_an_imagenet_pair_needs_few_lines(name: str) -> None:
    lines = shipped_recipes()[name].read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if not line.startswith("#")]) <= 15


def test_the_papers_settings() -> None:
    recipe = load_recipe("imagenet/resnet50-mobilenetv2")
    training = recipe.distill
    assert (training.epochs, training.batch_size) == (100, 256)
    assert (training.optimizer.lr, training.optimizer.weight_decay) == (0.1, 1e-4)
    assert training.schedule.milestones == [0.3, 0.6, 0.9]
    shuffle = load_recipe("cifar100/resnet32x4-shufflenet_v1")
    assert shuffle.distill.optimizer.lr == 0.02
    assert shuffle.distill.epochs == 240
    assert shuffle.teacher.train is not None
    assert shuffle.teacher.train.optimizer.lr == 0.1
    resnet20 = load_recipe("cifar100/resnet56-resnet20")
    assert resnet20.schemes.reviewkd.weight == 0.6
    assert round(resnet20.schemes.reviewkd.warmup * 240) == 20
    assert (recipe.schemes.reviewkd.weight, recipe.schemes.reviewkd.mid) == (8, 256)


class TestPaths:
    """Paths as recipes write them."""

    def test_variables_and_home(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PLACE", "/data")
        monkeypatch.setenv("HOME", "/home/me")
        assert expand_path("$PLACE/a") == Path("/data/a")
        assert expand_path("${PLACE}2/a") == Path("/data2/a")
        assert expand_path("~/a") == Path("/home/me/a")
        assert expand_path("plain") == Path("plain")

    @pytest.mark.parametrize("value", [None, ""])
    def test_an_unset_variable_is_named(self, monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
        monkeypatch.delenv("NOWHERE", raising=False)
        if value is not None:
            monkeypatch.setenv("NOWHERE", value)
        with pytest.raises(DistproError, match=r"\$NOWHERE is not set in the environment; set it, as in"):
            expand_path("$NOWHERE/a")


def test_the_wheel_carries_recipes_and_processes(tmp_path: Path) -> None:
    setuptools = pytest.importorskip("setuptools")
    if int(setuptools.__version__.split(".")[0]) < 77:
        pytest.skip("setuptools before 77 cannot build this project")
    source = tmp_path / "source"
    junk = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("distpro_cli", "recipes"):
        shutil.copytree(ROOT / name, source / name, ignore=junk)
    for name in ("pyproject.toml", "setup.py", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    (source / "README.md").write_text("distpro")
    (source / "processes" / "cifar10").mkdir(parents=True)
    (source / "processes" / "cifar10" / "a-b.safetensors").write_bytes(b"")
    code = f"from setuptools import build_meta; print(build_meta.build_wheel({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(tmp_path / done.stdout.splitlines()[-1]) as wheel:
        names = set(wheel.namelist())
    assert {f"distpro_cli/recipes/{name}.yaml" for name in shipped_recipes()} <= names
    assert "distpro_cli/processes/cifar10/a-b.safetensors" in names
    assert "distpro_cli/tasks/images/digits/digits.npz" in names


def test_schema_defaults_are_themselves_allowed() -> None:
    recipe = Recipe.model_validate({"data": {}, "teacher": {"name": "a"}, "student": {"name": "b"}})
    assert Recipe.model_validate(recipe.model_dump()) == recipe
