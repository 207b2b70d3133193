"""Loss, scores, metric, mixing, and what is asked of a network."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from distpro_cli.errors import DistproError
from distpro_cli.randomness import derived_seed
from distpro_cli.recipe.schema import Data, Recipe, Training
from distpro_cli.tasks.classification import Classification, mix
from distpro_cli.tasks.task import Batch

DIGITS = {"data": {"name": "digits"}, "teacher": {"name": "wrn_10_1"}, "student": {"name": "wrn_10_1"}, "seed": 3}
LOGITS = torch.randn(6, 7, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([0, 1, 2, 3, 6, 5])


def classification(**training: float) -> Classification:
    return Classification(Recipe.model_validate(DIGITS), Training.model_validate(training))


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    losses = classification(label_smoothing=smoothing).losses(logits, targets)
    assert set(losses) == {"cross_entropy"}
    return losses["cross_entropy"]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_the_cross_entropy_smoothed_as_the_training_says(smoothing: float) -> None:
    logits, targets = LOGITS.double().numpy(), TARGETS.numpy()
    log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    wanted = np.full((6, 7), smoothing / 7)
    wanted[np.arange(6), targets] += 1 - smoothing
    expected = -(wanted * log_probabilities).sum(1).mean()
    hard = cross_entropy(LOGITS, TARGETS, smoothing)
    soft = cross_entropy(LOGITS, torch.nn.functional.one_hot(TARGETS, 7).float(), smoothing)
    assert math.isclose(hard.item(), expected, rel_tol=1e-5)
    assert math.isclose(soft.item(), expected, rel_tol=1e-5)


def test_evaluation_counts_over_all_batches() -> None:
    images = LOGITS[:, :, None, None]
    batches = [Batch(images[:4], TARGETS[:4]), Batch(images[4:], TARGETS[4:])]
    result = classification().evaluate(lambda batch: batch.flatten(1), batches)
    order = LOGITS.argsort(dim=1, descending=True)
    assert result["images"] == 6
    assert math.isclose(result["top1"], 100 * (order[:, 0] == TARGETS).float().mean().item(), rel_tol=1e-6)
    in_five = (order[:, :5] == TARGETS[:, None]).any(1)
    assert math.isclose(result["top5"], 100 * in_five.float().mean().item(), rel_tol=1e-6)
    assert math.isclose(result["loss"], cross_entropy(LOGITS, TARGETS).item(), rel_tol=1e-5)


def test_few_classes_have_no_top5() -> None:
    batches = [Batch(torch.eye(3)[:, :, None, None], torch.tensor([0, 1, 0]))]
    result = classification().evaluate(lambda batch: batch.flatten(1), batches)
    assert set(result) == {"top1", "loss", "images"}
    assert math.isclose(result["top1"], 200 / 3)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
@pytest.mark.parametrize("count", [1, 6, 7])
def test_mixing_replays_by_seed_and_gives_probabilities(mixup: float, cutmix: float, count: int) -> None:
    images, targets = torch.rand(count, 3, 8, 8), torch.arange(count) % 5
    before = images.clone()
    first, again, other = (mix(images, targets, mixup, cutmix, 5, seed) for seed in (3, 3, 4))
    assert torch.equal(images, before)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert first[0].shape == images.shape
    assert first[1].shape == (count, 5)
    assert torch.allclose(first[1].sum(1), torch.ones(count))
    assert count == 1 or not torch.equal(first[0], other[0])
    assert torch.equal(first[0][6:], images[6:])


def test_mixup_weighs_images_and_targets_alike() -> None:
    images = torch.eye(4)[:, :, None, None].expand(4, 4, 2, 2)
    mixed, targets = mix(images, torch.arange(4), 1.0, 0.0, 4, seed=0)
    assert torch.allclose(mixed[:, :, 0, 0], targets, atol=1e-6)


def test_augment_mixes_with_the_draws_of_seed_and_step() -> None:
    images, targets = torch.rand(6, 3, 8, 8), torch.arange(6)
    mixed = classification(mixup=0.8).augment(Batch(images, targets), step=5)
    draws = np.random.RandomState(derived_seed(3, "mixing", 5) & 0xFFFFFFFF)
    draws.rand()  # timm: whether this batch is mixed at all
    share = float(draws.beta(0.8, 0.8))
    assert torch.allclose(mixed.images_bchw, share * images + (1 - share) * images.flip(0), atol=1e-6)
    one_hot = torch.eye(10)[:6]
    assert torch.allclose(mixed.targets, share * one_hot + (1 - share) * one_hot.flip(0), atol=1e-6)


def test_without_mixing_a_batch_stays_as_it_is() -> None:
    batch = Batch(torch.rand(4, 3, 8, 8), torch.arange(4))
    assert classification().augment(batch, 0) is batch


def test_of_mixed_targets_the_larger_part_counts_as_correct() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
    mixed = torch.tensor([[0.6, 0.4, 0.0], [0.0, 0.7, 0.3]])
    assert classification().scores(logits, mixed)["top1"] == 50.0
    assert classification().scores(logits, torch.tensor([0, 2]))["top1"] == 100.0


def test_a_network_is_asked_for_the_classes_of_the_recipe() -> None:
    task = classification()
    assert task.network_options(Data(name="torch/cifar100")) == {"num_classes": 100}
    task.check_output("own", torch.zeros(2, 10), Data(name="digits"))


@pytest.mark.parametrize(
    ("output", "text"),
    [
        (
            torch.zeros(2, 7),
            r"network own: it returns logits of 7 classes, data.num_classes is 10; let its constructor",
        ),
        (torch.zeros(2, 10, 4), r"network own: it returns a tensor of shape \[2, 10, 4\]; classification needs logits"),
        ((torch.zeros(2, 10),), r"network own: it returns a tuple with the parts 0; .* a tensor \[batch, classes\]"),
    ],
)
def test_outputs_that_are_no_logits_are_explained(output: Any, text: str) -> None:
    with pytest.raises(DistproError, match=text):
        classification().check_output("own", output, Data(name="digits"))
