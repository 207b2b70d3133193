"""Every shipped recipe loads, resolves its networks without downloading, and takes a step on fake data."""

from __future__ import annotations

import pytest
import torch

from distpro_cli.networks.build import build_network
from distpro_cli.pathways.connections import resolve_pathways
from distpro_cli.pathways.module import Pathways
from distpro_cli.recipe.load import load_recipe
from distpro_cli.recipe.shipped import shipped_recipes
from distpro_cli.tasks.classification.data import known_num_classes
from distpro_cli.tasks.classification.task import task_loss
from distpro_cli.training.hypergradients import CheapHypergradient
from distpro_cli.training.optimiser import make_optimizer, make_schedule
from distpro_cli.training.step import Batch, Pair, Stepper
from distpro_cli.workflows.search import search_training

BATCH_SIZE = 2


def test_there_are_recipes_for_every_data_set() -> None:
    folders = {name.partition("/")[0] for name in shipped_recipes()}
    assert folders == {"quickstart", "cifar10", "cifar100", "imagenet"}


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_shipped_recipe_takes_a_search_step_and_a_plain_one(name: str) -> None:
    torch.manual_seed(0)
    recipe = load_recipe(name)
    size = recipe.data.image_size if recipe.data.image_size <= 32 else 64
    data = recipe.data.model_copy(update={"image_size": size})
    teacher = build_network(recipe.teacher, data, pretrained_ok=False).eval().requires_grad_(False)
    student = build_network(recipe.student, data, pretrained_ok=False).train()
    pathways = Pathways(resolve_pathways(recipe.pathways, teacher.levels, student.levels))
    pair = Pair(student, teacher, pathways)
    training = search_training(recipe)
    optimizer = make_optimizer(pair.trained_modules(), training.optimizer)
    make_schedule(optimizer, training.schedule, total_steps=100, steps_per_epoch=10).step_update(50)
    stepper = Stepper(pair, optimizer, task_loss, device=torch.device("cpu"))
    images = torch.rand(BATCH_SIZE, 3, size, size)
    batch = Batch(images, torch.arange(BATCH_SIZE) % known_num_classes(data))
    weights_k = torch.ones(len(pathways.infos))
    before = [p.detach().clone() for p in student.parameters()]
    losses, outer_losses, hypergradient_k = CheapHypergradient(stepper)(batch, batch, weights_k, 0)
    assert len(losses.distances) == len(pathways.infos) >= 10
    assert torch.isfinite(hypergradient_k).all() and hypergradient_k.abs().sum() > 0
    assert torch.isfinite(outer_losses.task)
    losses = stepper.plain(batch, [1.0] * len(pathways.infos), 1)
    assert torch.isfinite(losses.task)
    assert any(not torch.equal(old, new) for old, new in zip(before, student.parameters(), strict=True))
