"""Loss, metric, mixing and the registry."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from distpro_cli.errors import DistproError
from distpro_cli.tasks.classification.mixing import Mixing
from distpro_cli.tasks.classification.task import Classification, evaluate, task_loss
from distpro_cli.tasks.registry import find_task, register_task, task_names

LOGITS = torch.randn(6, 7, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([0, 1, 2, 3, 6, 5])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_the_cross_entropy(smoothing: float) -> None:
    logits, targets = LOGITS.double().numpy(), TARGETS.numpy()
    log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    wanted = np.full((6, 7), smoothing / 7)
    wanted[np.arange(6), targets] += 1 - smoothing
    expected = -(wanted * log_probabilities).sum(1).mean()
    hard = task_loss(LOGITS, TARGETS, smoothing)
    soft = task_loss(LOGITS, torch.nn.functional.one_hot(TARGETS, 7).float(), smoothing)
    assert math.isclose(hard.item(), expected, rel_tol=1e-5)
    assert math.isclose(soft.item(), expected, rel_tol=1e-5)


def test_loss_is_float32_in_mixed_precision() -> None:
    loss = task_loss(LOGITS.bfloat16(), TARGETS)
    assert loss.dtype == torch.float32
    assert loss.shape == ()


def test_evaluation_counts_over_all_batches() -> None:
    images = LOGITS[:, :, None, None]
    batches = [(images[:4], TARGETS[:4]), (images[4:], TARGETS[4:])]
    result = evaluate(lambda batch: batch.flatten(1), batches)
    order = LOGITS.argsort(dim=1, descending=True)
    assert result["images"] == 6
    assert math.isclose(result["top1"], 100 * (order[:, 0] == TARGETS).float().mean().item(), rel_tol=1e-6)
    in_five = (order[:, :5] == TARGETS[:, None]).any(1)
    assert math.isclose(result["top5"], 100 * in_five.float().mean().item(), rel_tol=1e-6)
    assert math.isclose(result["loss"], task_loss(LOGITS, TARGETS).item(), rel_tol=1e-5)


def test_few_classes_have_no_top5() -> None:
    result = evaluate(lambda batch: batch.flatten(1), [(torch.eye(3)[:, :, None, None], torch.tensor([0, 1, 0]))])
    assert set(result) == {"top1", "loss", "images"}
    assert math.isclose(result["top1"], 200 / 3)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
@pytest.mark.parametrize("count", [1, 6, 7])
def test_mixing_replays_by_step_and_leaves_global_states(mixup: float, cutmix: float, count: int) -> None:
    images, targets = torch.rand(count, 3, 8, 8), torch.arange(count) % 5
    before = images.clone()
    mixing = Mixing(mixup, cutmix, num_classes=5, seed=1)
    np.random.seed(0)
    state = torch.get_rng_state()
    drawn = np.random.rand()
    np.random.seed(0)
    first, again, other = mixing(images, targets, 3), mixing(images, targets, 3), mixing(images, targets, 4)
    assert np.random.rand() == drawn
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images, before)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert first[0].shape == images.shape
    assert first[1].shape == (count, 5)
    assert torch.allclose(first[1].sum(1), torch.ones(count))
    assert count == 1 or not torch.equal(first[0], other[0])


def test_mixup_weighs_images_and_targets_alike() -> None:
    images = torch.eye(4)[:, :, None, None].expand(4, 4, 2, 2)
    mixed, targets = Mixing(1.0, 0.0, num_classes=4, seed=0)(images, torch.arange(4), 0)
    assert torch.allclose(mixed[:, :, 0, 0], targets, atol=1e-6)


def test_no_mixing_leaves_batch_and_class_numbers() -> None:
    images, targets = torch.rand(4, 3, 8, 8), torch.arange(4)
    mixing = Mixing(0.0, 0.0, num_classes=4, seed=0)
    assert not mixing.active
    assert mixing(images, targets, 0)[0] is images
    assert mixing(images, targets, 0)[1] is targets


def test_tasks_are_found_by_name() -> None:
    assert find_task("classification") is Classification
    assert "classification" in task_names()
    with pytest.raises(DistproError, match=r"did you mean 'classification'\?.*there are: classification"):
        find_task("clasification")


def test_a_task_registers_with_one_decorator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distpro_cli.tasks.registry._TASKS", {})

    @register_task("nothing")
    class Nothing: ...

    assert find_task("nothing") is Nothing
