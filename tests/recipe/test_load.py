"""Loading a recipe: what is found, where, and what the user is told when something is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from distpro_cli.errors import RecipeError
from distpro_cli.recipe.load import dump_recipe, find_recipe, load_recipe, parse_recipe, recipe_name

SHORT = "data: {name: digits}\nteacher: {name: wrn_16_2}\nstudent: {name: wrn_10_1}\n"


def problems(text: str, *overrides: str) -> list[str]:
    """Returns the lines of the error that `text` with `overrides` raises."""
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, overrides, filename="r.yaml")
    return str(caught.value).splitlines()


def problem(text: str, *overrides: str) -> str:
    """Returns the one line of the error that `text` raises."""
    lines = problems(text, *overrides)
    assert len(lines) == 1, lines
    return lines[0]


def test_a_short_recipe_has_all_defaults() -> None:
    recipe = parse_recipe(SHORT)
    assert recipe.student.name == "wrn_10_1"
    assert recipe.pathways is None
    assert recipe.search.optimizer is None
    assert recipe.search.epochs == 40


def test_numbers_may_be_written_with_an_exponent() -> None:
    recipe = parse_recipe(SHORT + "distill: {optimizer: {lr: 3e-4, weight_decay: 0}}")
    assert recipe.distill.optimizer.lr == 3e-4


def test_a_dump_loads_back_equal() -> None:
    text = SHORT + (
        "pathways: [{connections: [[4, 2], [4, 4]]}, {distance_options: {a: 8, b: '1e3'}}]\n"
        "search: {schedule: {name: constant}, optimizer: {lr: 1e-5, options: {betas: [0.9, 0.99]}}}\n"
    )
    recipe = parse_recipe(text, ["teacher.levels=[0, -1, layer3, pooled]", "data.root=$HOME/a b"])
    assert parse_recipe(dump_recipe(recipe)) == recipe
    assert dump_recipe(parse_recipe(dump_recipe(recipe))) == dump_recipe(recipe)


def test_all_problems_are_told_at_once_in_the_order_of_their_lines() -> None:
    text = (
        "tsk: classification\n"
        "data: {name: digits, image_size: 1e2}\n"
        "teacher:\n"
        "  name: wrn_16_2\n"
        "  train: {epoch: 3}\n"
        "student: {}\n"
        "search:\n"
        "  normalization: softmx\n"
        "  epochs: 3\n"
        "  epochs: 4\n"
    )
    lines = problems(text, "search.alpha_lr=-1", "nonsense")
    assert [line.split(": ")[0:2] for line in lines] == [
        ["r.yaml:1", "tsk"],
        ["r.yaml:2", "data.image_size"],
        ["r.yaml:5", "teacher.train.epoch"],
        ["r.yaml:6", "student.name"],
        ["r.yaml:8", "search.normalization"],
        ["r.yaml:10", "search.epochs"],
        ["search.alpha_lr=-1", "search.alpha_lr"],
        ["nonsense", "an override is KEY=VALUE with a dotted key, such as search.epochs=5"],
    ]
    assert "did you mean 'task'?" in lines[0]
    assert "found 100.0 (write 100); allowed: a whole number > 0" in lines[1]
    assert "did you mean 'epochs'?" in lines[2]
    assert "is missing; give text" in lines[3]
    assert "found 'softmx' (did you mean 'softmax'?); allowed: one of biased-softmax, softmax" in lines[4]
    assert "found -1; allowed: a number > 0" in lines[6]


@pytest.mark.parametrize(
    ("addition", "message"),
    [
        ("pathways: [{connections: lowr}]", "pathways.0.connections: found 'lowr' (did you mean 'lower'?)"),
        ("pathways: [{connections: 3}]", "pathways.0.connections: found 3; allowed: one of lower, upper"),
        (
            "pathways: [{connections: [[5, 3], [5]]}]",
            "pathways.0.connections.1: found [5]; allowed: a list of 2",
        ),
        (
            "pathways: [{connections: [[5, 0]]}]",
            "pathways.0.connections.0.1: found 0; allowed: a whole number",
        ),
        ("pathways: [{connections: [[5, 3], [5, 3]]}]", "given more than once: [5, 3]"),
        ("pathways: [{connections: []}]", "no pair is given"),
        ("pathways: []", "pathways: found []; allowed: a list of at least 1"),
        ("pathways: {connections: all}", "pathways: found a section with connections; allowed: a list"),
        ("pathways: [3]", "pathways.0: found 3; allowed: a section with the keys connections"),
        ("channels_last: yes", "channels_last: found 'yes' (write true); allowed: true or false"),
        ("channels_last: 1", "channels_last: found 1; allowed: true or false"),
        ("task: 3", "task: found 3 (put it in quotes to make it text); allowed: text"),
        ("distill:", "leave the key out for its defaults"),
        ("distill: {lr: 0.1}", "did you mean distill.optimizer.lr?"),
        ("epochs: 3", "did you mean teacher.train.epochs or search.epochs or distill.epochs?"),
        ("distill: {optimizer: {lr: .nan}}", "distill.optimizer.lr: found nan; allowed: a number > 0"),
        ("distill: {optimizer: {lr: .inf}}", "distill.optimizer.lr: found inf"),
        ("distill: {optimizer: {options: 3}}", "found 3; allowed: a section of keys and values"),
        ("distill: {schedule: {name: step}}", "distill.schedule.name: step needs milestones"),
        ("distill: {schedule: {milestones: [0.5, 0.3]}}", "each milestone must be larger"),
        (
            "distill: {schedule: {milestones: [0.5, 1]}}",
            "milestones.1: found 1; allowed: a number > 0 and < 1",
        ),
        (
            "search: {alpha_betas: [0.5, 1.0]}",
            "search.alpha_betas.1: found 1.0; allowed: a number ≥ 0 and < 1",
        ),
        ("search: {alpha_betas: [0.5]}", "search.alpha_betas: found [0.5]; allowed: a list of 2 numbers"),
        ("search: {batch_size: 0}", "search.batch_size: found 0; allowed: a whole number > 0, or nothing"),
        ("search: {interval: !!python/name:os.system x}", "tag '!!python/name:os.system' is not allowed"),
        ("1: 2", "found the key '1'; keys are text"),
    ],
)
def test_each_mistake_is_one_line(addition: str, message: str) -> None:
    line = problem(SHORT + addition)
    assert line.startswith("r.yaml:4: ")
    assert message in line


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{}", "data.root: is missing; the data set 'folder' needs the folder"),
        ("{name: digits, mean: [0.5]}", "data.mean: is given without std; give both or none"),
        ("{name: digits, mean: [0.5], std: [0.5, 0.5]}", "data.std: has 2 values, but mean has 1"),
        ("{name: digits, mean: [0.5], std: [0]}", "data.std.0: found 0; allowed: a number > 0 and ≤ 1"),
        ("{name: digits, mean: [0.5, x], std: [1, 1]}", "data.mean.1: found 'x'"),
        ("{name: digits, augment: {scale: [1.0, 0.1]}}", "the smallest share comes first"),
    ],
)
def test_data_is_checked(data: str, message: str) -> None:
    line = problem(f"data: {data}\nteacher: {{name: a}}\nstudent: {{name: b}}\n")
    assert line.startswith("r.yaml:1: ")
    assert message in line


def test_items_of_levels_are_named() -> None:
    text = SHORT.replace("{name: wrn_10_1}", "{name: wrn_10_1, levels: [0, 1.5, true, pooled]}")
    lines = problems(text)
    assert len(lines) == 2
    assert "student.levels.1: found 1.5; allowed: a whole number or text" in lines[0]
    assert "student.levels.2: found true" in lines[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "r.yaml: is empty; a recipe is a section of keys"),
        ("# only a comment\n", "r.yaml: is empty"),
        ("- data", "r.yaml: found ['data']; a recipe is a section"),
        ("just text", "r.yaml: found 'just text'; a recipe is a section"),
        ("a: b: c", "r.yaml:1: not YAML"),
        ("!!set {a}", "r.yaml:1: tag '!!set' is not allowed"),
    ],
)
def test_what_is_no_recipe_at_all(text: str, message: str) -> None:
    assert problem(text).startswith(message)


def test_partial_sections_of_search_are_completed_from_distill() -> None:
    recipe = parse_recipe(
        SHORT
        + "distill: {optimizer: {name: adamw, lr: 1e-3, weight_decay: 0.05}, schedule: {warmup_epochs: 5}}\n"
        + "search: {optimizer: {lr: 5e-4}, schedule: {name: constant}}\n"
    )
    assert recipe.search.optimizer is not None
    assert recipe.search.optimizer.name == "adamw"
    assert recipe.search.optimizer.weight_decay == 0.05
    assert recipe.search.optimizer.lr == 5e-4
    assert recipe.search.schedule is not None
    assert recipe.search.schedule.warmup_epochs == 0


class TestFiles:
    """Which file is meant, and files that are none."""

    def test_a_file_is_loaded(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.yaml"
        path.write_text("\ufeff" + SHORT, encoding="utf-8")
        assert load_recipe(path).teacher.name == "wrn_16_2"
        assert load_recipe(str(path), ["seed=3"]).seed == 3

    def test_a_shipped_name_is_found_from_anywhere(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "quickstart").mkdir()
        assert load_recipe("quickstart").data.name == "digits"
        assert find_recipe("cifar10/wrn_16_2-wrn_10_1.yaml") == find_recipe("cifar10/wrn_16_2-wrn_10_1")

    def test_an_unknown_name_lists_what_ships(self) -> None:
        with pytest.raises(RecipeError, match="no such file and no shipped recipe") as caught:
            load_recipe("quickstrat")
        assert "did you mean 'quickstart'?" in str(caught.value)
        assert "imagenet/resnet34-resnet18" in str(caught.value)

    def test_a_folder_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.yaml").write_text(SHORT)
        with pytest.raises(RecipeError, match=r"is a folder; name a file in it, such as .*a\.yaml"):
            load_recipe(tmp_path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"a: \xff\xfe", "not UTF-8 text"),
            (b"", "is empty"),
            (b"#" * 300_000, "larger than 256 KiB"),
            (SHORT.encode("utf-16"), "not UTF-8 text"),
        ],
    )
    def test_content_that_is_no_recipe(self, tmp_path: Path, content: bytes, message: str) -> None:
        path = tmp_path / "bad.yaml"
        path.write_bytes(content)
        with pytest.raises(RecipeError, match=message) as caught:
            load_recipe(path)
        assert str(path) in str(caught.value)

    def test_names(self) -> None:
        assert recipe_name("cifar10/wrn_16_2-wrn_10_1") == "wrn_16_2-wrn_10_1"
        assert recipe_name(Path("/x/imagenet/resnet34.tv-resnet18.yaml")) == "resnet34.tv-resnet18"


def test_loading_imports_nothing_heavy() -> None:
    code = (
        "import sys; from distpro_cli.recipe.load import load_recipe; load_recipe('quickstart'); "
        "print([m for m in ('torch', 'timm', 'torchvision', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
