"""What a recipe without pathways and with a bare search gives, through the command line."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from distpro_cli.process.file import load_process
from distpro_cli.recipe.load import parse_recipe
from distpro_cli.recipe.schema import Search
from distpro_cli.workflows.search_cost import relative_step
from tests.conftest import Run

TWO_STEPS = ["pathways=", "data.train_images=80", "data.test_images=20", "search={epochs: 1}", "distill.epochs=1"]
TRANSFORMER = "{embed_dim: 24, depth: 4, num_heads: 2, patch_size: 8}"
VIT = ["name=vit_tiny_patch16_224", f"options={TRANSFORMER}"]
SAME = ["1-1", "2-2", "3-3", "4-4"]
LOWER = [(i, j) for i in range(1, 6) for j in range(1, i + 1)]


def test_the_interval_leaves_a_search_five_hundred_updates_where_it_can() -> None:
    spec = Search()
    assert [spec.steps_per_update(steps) for steps in (1, 1499, 1500, 2499, 2500, 4000, 160_000)] == [
        *(2, 2, 3, 4, 5, 8, 8)
    ]
    assert Search(interval=1).steps_per_update(160_000) == 1


def test_an_outer_batch_is_half_of_an_inner_one_rounded_up() -> None:
    assert [Search().images_per_outer_batch(size) for size in (1, 2, 65, 128)] == [1, 1, 33, 64]
    assert Search(outer_batch_size=200).images_per_outer_batch(128) == 200


def test_a_pair_of_wrns_is_searched_over_nine_pathways_and_transfers(distpro: Run) -> None:
    result = distpro("search", "tiny.yaml", *TWO_STEPS, "-o", "p.safetensors", "-q", "--json")
    assert result.status == 0, result.err
    process = load_process(Path("p.safetensors"))
    assert [pathway.id for pathway in process.pathways] == [*SAME, *(f"{one}:review+hcl" for one in SAME), "5-5"]
    assert [pathway.transform for pathway in process.pathways] == ["conv2"] * 4 + ["review"] * 4 + ["identity"]
    # Two steps, of which the first moves alpha: by lr_alpha, less the pull.
    np.testing.assert_array_equal(process.alpha[0], 1)
    np.testing.assert_array_equal(process.alpha[1], process.alpha[2])
    np.testing.assert_allclose(np.abs(process.alpha[1] - 1), 0.2 * (1 - 0.2 * 0.5), rtol=1e-3)
    assert process.scale is not None
    np.testing.assert_allclose(process.weights[0] / process.scale[0], 9 * 10 / 10, rtol=1e-5)
    transferred = distpro("transfer", "-p", "p.safetensors", "-q", "--json")
    assert transferred.status == 0 and transferred.json["pathways_used"] == 9, transferred.err
    uniform = distpro("transfer", "tiny.yaml", *TWO_STEPS, "-p", "uniform", "-q", "--json", "--run-dir", "u")
    assert uniform.status == 0, uniform.err
    assert load_process(Path("u/process.safetensors")).pathways == process.pathways


def test_the_estimated_cost_of_a_search_knows_interval_and_outer_batch(distpro: Run) -> None:
    assert distpro("search", "tiny.yaml", *TWO_STEPS, "-o", "p.safetensors", "-q").status == 0
    process = load_process(Path("p.safetensors"))
    recipe = parse_recipe(process.recipe)
    halved = relative_step(process, recipe, 2)
    whole = relative_step(process, parse_recipe(process.recipe, ["search.interval=1", "search.outer_batch_size=32"]), 2)
    assert halved is not None and whole is not None
    assert 1 < halved < 1 + (whole - 1) / 2
    assert relative_step(process, recipe, 4000) == pytest.approx(1 + (halved - 1) * 2 / 8)


@pytest.mark.parametrize("teacher", ["vit", "resnet"])
def test_a_pair_with_tokens_is_searched_over_lower_and_the_logits(distpro: Run, teacher: str) -> None:
    teachers = VIT if teacher == "vit" else ["name=resnet10t"]
    overrides = [*(f"teacher.{one}" for one in teachers), *(f"student.{one}" for one in VIT), *TWO_STEPS]
    result = distpro("search", "tiny.yaml", *overrides, "-o", "p.safetensors", "-q", "--json")
    assert result.status == 0, result.err
    process = load_process(Path("p.safetensors"))
    assert [pathway.connection for pathway in process.pathways] == [*LOWER, (6, 6)]
    assert process.pathways[-1].distance == "kl"
    assert np.ptp(process.alpha, axis=0).min() > 0


def test_a_task_without_logits_gets_none(distpro: Run, workplace: Path) -> None:
    shutil.copy(Path(__file__).parent.parent / "toys" / "regression.py", workplace)
    task = ["task=regression.py:Ink", *TWO_STEPS]
    result = distpro("search", "tiny.yaml", *task, "-o", "p.safetensors", "-q")
    assert result.status == 0, result.err
    assert [pathway.transform for pathway in load_process(Path("p.safetensors")).pathways] == (
        ["conv2"] * 4 + ["review"] * 4
    )


def test_listed_levels_without_logits_get_none(distpro: Run) -> None:
    shown = distpro("inspect", "tiny.yaml", "pathways=", "student.levels=[0, 1, 2, pooled]", "--json")
    assert shown.status == 0, shown.err
    assert [pathway["transform"] for pathway in shown.json["pathways"]] == ["conv2"] * 4 + ["review"] * 4
    assert [level["kind"] for level in shown.json["teacher"]["levels"]] == ["map", "map", "map", "vector"]


def test_a_rival_moves_as_often_as_a_search(distpro: Run) -> None:
    arguments = ["search", "tiny.yaml", *TWO_STEPS, "search.method=random", "search.epochs=2", "-q"]
    assert distpro(*arguments, "-o", "r.safetensors").status == 0
    weights = load_file("r.safetensors")["weights"]  # rows of 5 steps, and the end
    moved = [not np.array_equal(before, after) for before, after in pairwise(weights)]
    assert moved == [step % 2 == 0 for step in range(len(moved))]
