"""Pairs across transformer families, small and with random weights: levels, alignment, inspect, a search step."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch.nn.functional import cosine_similarity

from distpro_cli.costs.complexity import recipe_report
from distpro_cli.networks.build import build_network
from distpro_cli.networks.levels import TappedNetwork
from distpro_cli.pathways.connections import resolve_pathways
from distpro_cli.pathways.defaults import groups_for
from distpro_cli.pathways.module import Pathways
from distpro_cli.recipe.schema import PathwayGroup, Recipe
from distpro_cli.tasks.task import Batch, find_task
from distpro_cli.training.hypergradients import make_hypergradient
from distpro_cli.training.optimiser import make_optimizer
from distpro_cli.training.step import Distiller, Pair
from tests.conftest import Run
from tests.helpers import CPU

SIZE = 64
PLAIN = {"patch_size": 16, "embed_dim": 24, "depth": 4, "num_heads": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", PLAIN),
    "registers": ("vit_small_patch16_dinov3", PLAIN),
    "deit": ("deit_tiny_distilled_patch16_224", {**PLAIN, "patch_size": 8}),
    "beit": ("beit_base_patch16_224", PLAIN),
    "eva": ("eva02_tiny_patch14_224", PLAIN),
    "cait": ("cait_xxs24_224", {}),
    "xcit": ("xcit_nano_12_p16_224", {}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4},
    ),
    "levit": ("levit_128s", {"embed_dim": [16, 24, 32], "num_heads": [1, 2, 2], "depth": [1, 1, 1], "key_dim": 8}),
    "hiera": ("hiera_tiny_224", {"embed_dim": 12, "num_heads": 1, "stages": [1, 1, 2, 1]}),
    "mixer": ("mixer_s32_224", {}),
    "convnext": ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}),
    "maxvit": ("maxvit_rmlp_pico_rw_256", {"embed_dim": [32, 32, 32, 64], "depths": [1, 1, 1, 1]}),
    "pvt": ("pvt_v2_b0", {"depths": [1, 1, 1, 1], "embed_dims": [8, 16, 24, 32], "num_heads": [1, 1, 2, 2]}),
    "wrn": ("wrn_10_1", {}),
}
PAIRS = [
    ("vit", "deit", "number"),
    ("registers", "deit", "number"),
    ("beit", "vit", "number"),
    ("eva", "deit", "number"),
    ("cait", "vit", "number"),
    ("xcit", "mixer", "number"),
    ("swin", "levit", "reduction"),
    ("swin", "deit", "number"),
    ("hiera", "deit", "number"),
    ("hiera", "swin", "number"),
    ("mixer", "vit", "number"),
    ("convnext", "vit", "number"),
    ("maxvit", "convnext", "number"),
    ("vit", "levit", "depth"),
    ("pvt", "levit", "reduction"),
    ("wrn", "deit", "depth"),
    ("vit", "wrn", "depth"),
]


def recipe_of(teacher: str, student: str) -> Recipe:
    sides = {
        role: {"name": FAMILIES[family][0], "options": dict(FAMILIES[family][1])}
        for role, family in (("teacher", teacher), ("student", student))
    }
    optimizer = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05}
    data = {"name": "digits", "image_size": SIZE}
    return Recipe.model_validate({**sides, "data": data, "distill": {"optimizer": optimizer}})


@pytest.mark.parametrize(("teacher", "student", "rule"), PAIRS)
def test_a_pair_is_inspected_and_takes_a_search_step(teacher: str, student: str, rule: str) -> None:
    recipe = recipe_of(teacher, student)
    torch.manual_seed(0)
    report = recipe_report(recipe)
    assert report["alignment"] == rule
    kinds = [{level["number"]: level["kind"] for level in report[side]["levels"]} for side in ("teacher", "student")]
    for row in report["pathways"]:
        sides = (kinds[0][row["teacher_level"]], kinds[1][row["student_level"]])
        expected = {"conv2", "review"} if "tokens" not in sides else {"transformer"}
        assert row["transform"] in ({"identity"} if "logits" in sides else expected)
    distiller = make_distiller(recipe)
    batches = [Batch(torch.rand(4, 3, SIZE, SIZE), torch.arange(4)) for _ in range(2)]
    weights_k = torch.ones(len(distiller.trained.infos))
    for step in range(2):  # at Adam's first step the direction is a sign, which has no slope
        distiller.step(batches[0], weights_k, step)
    losses, _, found_k = make_hypergradient("cheap", distiller).step(batches[0], batches[1], weights_k, 2)
    assert len(losses.distances) == len(weights_k) >= 6
    assert torch.isfinite(found_k).all() and found_k.abs().sum() > 0


def make_distiller(recipe: Recipe, groups: list[PathwayGroup] | None = None) -> Distiller:
    task = find_task(recipe.task)(recipe, recipe.distill)
    teacher = build_network(recipe.teacher, recipe.data, task).eval().requires_grad_(False)
    student = build_network(recipe.student, recipe.data, task).train()
    groups = groups or groups_for(recipe, task, teacher.levels, student.levels)
    pathways = Pathways(resolve_pathways(groups, teacher.levels, student.levels))
    pair = Pair(student, teacher, pathways)
    return Distiller(pair, make_optimizer(pair.modules(), recipe.distill.optimizer), task, device=CPU)


def test_the_cheap_hypergradient_is_the_exact_one_with_dropout_and_drop_path() -> None:
    recipe = recipe_of("vit", "deit")
    recipe.student.options.update(drop_path_rate=0.3, proj_drop_rate=0.2, pos_drop_rate=0.1)
    found = {}
    for name in ("cheap", "exact"):
        torch.manual_seed(0)
        distiller = make_distiller(recipe, [PathwayGroup(transform_options={"dropout": 0.3})])
        hypergradient = make_hypergradient(name, distiller)
        generator = torch.Generator().manual_seed(1)
        for step in range(3):
            images, targets = torch.rand(16, 3, SIZE, SIZE, generator=generator), torch.arange(16) % 10
            inner, outer = Batch(images[:8], targets[:8]), Batch(images[8:], targets[8:])
            weights_k = torch.linspace(0.2, 1.5, len(distiller.trained.infos))
            _, _, found[name] = hypergradient.step(inner, outer, weights_k, step)
    assert cosine_similarity(found["cheap"], found["exact"], dim=0) >= 0.999


def test_hieras_tokens_lie_row_by_row() -> None:
    name, options = FAMILIES["hiera"]
    torch.manual_seed(0)
    model = timm.create_model(name, img_size=SIZE, num_classes=10, **options).eval()
    network = TappedNetwork(model, mean=(0.5,) * 3, std=(0.5,) * 3, image_size=SIZE)
    images = torch.rand(2, 3, SIZE, SIZE)
    _, features = network(images, levels=range(1, 5))
    maps = model.forward_intermediates((images - 0.5) / 0.5, intermediates_only=True)
    for number, map_bchw in enumerate(maps, 1):
        assert network.levels[number - 1].grid == tuple(map_bchw.shape[2:])
        assert torch.equal(features[number], map_bchw.flatten(2).transpose(1, 2))


def test_patches_alone() -> None:
    recipe = recipe_of("registers", "deit")
    task = find_task(recipe.task)(recipe, recipe.distill)
    whole = build_network(recipe.teacher, recipe.data, task).eval()
    patches = build_network(recipe.teacher.model_copy(update={"tokens": "patches"}), recipe.data, task).eval()
    patches.model.load_state_dict(whole.model.state_dict())
    assert [(level.shape, level.prefix, level.grid) for level in whole.levels[:4]] == [((21, 24), 5, (4, 4))] * 4
    assert [(level.shape, level.prefix, level.grid) for level in patches.levels[:4]] == [((16, 24), 0, (4, 4))] * 4
    images = torch.rand(2, 3, SIZE, SIZE)
    assert torch.equal(patches(images, levels=[2])[1][2], whole(images, levels=[2])[1][2][:, 5:])


def test_inspect_says_how_levels_are_joined(distpro: Run) -> None:
    swin, levit = (f"{{name: {FAMILIES[family][0]}, options: {FAMILIES[family][1]}}}" for family in ("swin", "levit"))
    overrides = (f"teacher={swin}", f"student={levit}", f"data.image_size={SIZE}", "pathways=[{connections: same}]")
    found = distpro("inspect", "tiny.yaml", *overrides, "--json").json
    assert [row["id"] for row in found["pathways"]] == ["3-1", "4-2", "5-4"]
    text = distpro("inspect", "tiny.yaml", *overrides).out
    assert "levels are joined by reduction: the networks have different numbers of them" in text
