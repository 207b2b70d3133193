"""`KEY=VALUE` on top of a recipe."""

from __future__ import annotations

import pytest

from distpro_cli.errors import RecipeError
from distpro_cli.recipe.load import parse_recipe
from distpro_cli.recipe.schema import Recipe

SHORT = "data: {name: digits}\nteacher: {name: wrn_16_2}\nstudent: {name: wrn_10_1}\n"


def overridden(*overrides: str, text: str = SHORT) -> Recipe:
    """Returns the short recipe with `overrides`."""
    return parse_recipe(text, overrides)


def test_values_are_yaml() -> None:
    recipe = overridden(
        "distill.optimizer.lr=3e-4",
        "channels_last=false",
        "data.root=$HOME/images",
        "teacher.name=nets/mine.py:Net",
        "search.alpha_betas=[0.9, 0.99]",
        "distill.optimizer.options={betas: [0.9, 0.95]}",
        "student.weights=",
        "data.test_split='1'",
    )
    assert recipe.distill.optimizer.lr == 3e-4
    assert recipe.channels_last is False
    assert recipe.data.root == "$HOME/images"
    assert recipe.teacher.name == "nets/mine.py:Net"
    assert recipe.search.alpha_betas == [0.9, 0.99]
    assert recipe.distill.optimizer.options == {"betas": [0.9, 0.95]}
    assert recipe.student.weights is None
    assert recipe.data.test_split == "1"


def test_missing_sections_are_made() -> None:
    assert overridden("teacher.train.optimizer.lr=0.2").teacher.train is not None
    assert overridden("search.epochs=2", text=SHORT + "search:\n").search.epochs == 2


def test_list_items_by_index() -> None:
    text = SHORT + "pathways: [{connections: all, transform: conv1}]\n"
    recipe = overridden("pathways.0.connections=same", "pathways.1.distance=mse", text=text)
    assert recipe.pathways is not None
    assert [group.connections for group in recipe.pathways] == ["same", "lower"]
    assert [group.transform for group in recipe.pathways] == ["conv1", "auto"]
    assert recipe.pathways[1].distance == "mse"


def test_items_of_a_list_that_has_its_default() -> None:
    recipe = overridden("pathways.0.connections=same", "search.alpha_betas.0=0.9")
    assert recipe.pathways is not None
    assert recipe.pathways[0].connections == "same"
    assert recipe.search.alpha_betas == [0.9, 0.999]
    # The schema's own default stays what it was.
    assert overridden().search.alpha_betas == [0.5, 0.999]
    assert overridden().pathways is None


def test_the_last_one_wins_and_fixes_the_file() -> None:
    recipe = overridden("seed=1", "seed=2", "search.epochs=5", text=SHORT + "search: {epochs: many}\n")
    assert recipe.seed == 2
    assert recipe.search.epochs == 5


def test_a_section_replaced_as_a_whole() -> None:
    with pytest.raises(RecipeError) as caught:
        overridden("teacher={nme: x}")
    lines = str(caught.value).splitlines()
    assert all(line.startswith("teacher={nme: x}: teacher.") for line in lines)
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("search.epochs", "an override is KEY=VALUE"),
        ("=3", "an override is KEY=VALUE"),
        ("search..epochs=3", "an override is KEY=VALUE"),
        ("search.epochs=[", "value not YAML"),
        ("search.epochs=!!set {}", "tag '!!set' is not allowed"),
        ("serch.epochs=3", "unknown key (did you mean 'search'?)"),
        ("search.epoch=3", "unknown key (did you mean 'epochs'?)"),
        ("teacher.name.first=3", "teacher.name is a single value and has no key 'first'"),
        ("pathways.first.distance=mse", "pathways is a list; found 'first', allowed: an index from 0 to 1"),
        ("pathways.7.distance=mse", "found '7', allowed: an index from 0 to 1"),
        ("search.epochs=0", "search.epochs: found 0; allowed: a whole number > 0"),
        ("search.epochs=1" + "0" * 5000, "too many digits"),
    ],
)
def test_a_wrong_override_is_named(override: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        overridden(override, text=SHORT + "pathways: [{}]\n")
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(override[:40])
    assert message in line
