"""Every shipped recipe loads, resolves its networks without downloading, and takes a step on fake data."""

from __future__ import annotations

import pytest
import torch

from distpro_cli.costs.complexity import recipe_report
from distpro_cli.networks.build import build_network
from distpro_cli.pathways.connections import resolve_pathways
from distpro_cli.pathways.defaults import ends_with_logits, groups_for
from distpro_cli.pathways.module import Pathways
from distpro_cli.recipe.load import load_recipe
from distpro_cli.recipe.shipped import shipped_recipes
from distpro_cli.tasks.task import Batch, find_task
from distpro_cli.training.hypergradients import make_hypergradient
from distpro_cli.training.optimiser import make_optimizer, make_schedule
from distpro_cli.training.step import Distiller, Pair
from tests.helpers import CPU

BATCH_SIZE = 2


def test_there_are_recipes_for_every_data_set() -> None:
    folders = {name.partition("/")[0] for name in shipped_recipes()}
    assert folders == {"quickstart", "cifar10", "cifar100", "imagenet", "coco", "bccd"}


def fake_batch(task: str, size: int) -> Batch:
    """Images of a data set's shape; of detection with true sizes, one of them without objects."""
    if task == "classification":
        return Batch(torch.rand(BATCH_SIZE, 3, size, size), torch.arange(BATCH_SIZE))
    sizes = ((size, size - 14), (size - 24, 2 * size))
    boxes = (torch.tensor([[4.0, 6.0, 40.0, 50.0], [20.0, 10.0, 45.0, 30.0]]), torch.zeros(0, 4))
    targets = [
        {
            "boxes": own,
            "labels": torch.arange(1, len(own) + 1),
            "masks": torch.ones(len(own), *place, dtype=torch.uint8),
            "size": place,
        }
        for own, place in zip(boxes, sizes, strict=True)
    ]
    return Batch(torch.rand(2, 3, size, 2 * size), targets, sizes)


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_shipped_recipe_takes_a_search_step_and_a_plain_one(name: str) -> None:
    torch.manual_seed(0)
    recipe = load_recipe(name, ["student.options.regions=32"] if name.startswith("coco") else [])
    size = recipe.data.image_size if recipe.data.image_size <= 32 else 64
    data = recipe.data.model_copy(update={"image_size": size})
    training = recipe.search_training
    task = find_task(recipe.task)(recipe, training)
    options = {"logits": ends_with_logits(recipe, task), "pretrained_ok": False}
    teacher = build_network(recipe.teacher, data, task, **options).eval().requires_grad_(False)
    student = build_network(recipe.student, data, task, **options).train()
    groups = groups_for(recipe, task, teacher.levels, student.levels)
    pathways = Pathways(resolve_pathways(groups, teacher.levels, student.levels))
    pair = Pair(student, teacher, pathways)
    optimizer = make_optimizer(pair.modules(), training.optimizer)
    make_schedule(optimizer, training.schedule, total_steps=100, steps_per_epoch=10).step_update(50)
    distiller = Distiller(pair, optimizer, task, device=CPU)
    batch = fake_batch(recipe.task, size)
    weights_k = torch.ones(len(pathways.infos))
    before = [p.detach().clone() for p in student.parameters()]
    hypergradient = make_hypergradient(recipe.search.hypergradient, distiller)
    losses, outer_losses, hypergradient_k = hypergradient.step(batch, batch, weights_k, 0)
    assert len(losses.distances) == len(pathways.infos) >= 3
    assert torch.isfinite(hypergradient_k).all() and hypergradient_k.abs().sum() > 0
    assert torch.isfinite(outer_losses.task)
    losses = distiller.step(batch, [1.0] * len(pathways.infos), 1)
    assert torch.isfinite(losses.task)
    assert any(not torch.equal(old, new) for old, new in zip(before, student.parameters(), strict=True))


@pytest.mark.parametrize(
    "name", [name for name in shipped_recipes() if name.startswith("cifar") and "deit" not in name]
)
def test_every_cifar_recipe_can_be_tapped_before_the_activation(name: str) -> None:
    """Levels and pathways stay what they are."""
    overrides = [f"{side}.feature=before-activation" for side in ("teacher", "student")]
    found, usual = (recipe_report(load_recipe(name, given)) for given in (overrides, ()))
    for side in ("teacher", "student"):
        points = [level.pop("point") for level in found[side]["levels"]]
        raw = [level.pop("point") for level in usual[side]["levels"]]
        linear = found[side]["name"].startswith("mobilenet")  # bottlenecks that end in no activation
        stages = -2  # then the pooled vector and the logits
        differ = [point != before for point, before in zip(points[:stages], raw[:stages], strict=True)]
        assert differ == [not linear] * len(differ)
    assert found == usual
