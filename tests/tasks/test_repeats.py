"""Repeated augmentation: timm's plan, other augmentations, and none of it moved by workers or resumption."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.data.distributed_sampler import RepeatAugSampler

from distpro_cli.randomness import derived_seed
from distpro_cli.recipe.load import load_recipe
from distpro_cli.recipe.schema import Augmentation
from distpro_cli.tasks.images.data import ImageData
from tests.conftest import Run
from tests.tasks.conftest import folder_data
from tests.tasks.suite import images_of
from tests.tasks.test_data import EVERYTHING, same

PLAIN = Augmentation(crop="none", flip=0.0)
SIZE, REPEATS, BATCH = 42, 3, 12


def test_an_epoch_is_planned_as_timms_sampler_does(image_root: Path) -> None:
    data = ImageData(folder_data(image_root, augment=PLAIN), 5)
    batches = list(data.train_batches(BATCH, 6, repeats=REPEATS))
    assert data.steps_per_epoch(BATCH) == 3
    for epoch in (0, 1):
        order = np.random.default_rng(derived_seed(derived_seed(5, "train"), epoch)).permutation(SIZE)
        for world in (1, 2, 4):  # its processes, each with its part of the batch
            samplers = [
                RepeatAugSampler(range(SIZE), world, rank, shuffle=False, num_repeats=REPEATS, selected_round=0)
                for rank in range(world)
            ]
            places = [list(sampler) for sampler in samplers]
            for step in range(3):
                own = BATCH // world
                drawn = [place for rank in places for place in rank[step * own : (step + 1) * own]]
                expected = Counter(data.train_source.load(index).tobytes() for index in order[drawn])
                batch = (batches[3 * epoch + step].images_bchw * 255).round().to(torch.uint8)
                found = Counter(image.permute(1, 2, 0).numpy().tobytes() for image in batch)
                assert found == expected


def test_every_repeat_has_an_augmentation_of_its_own_and_the_first_is_todays(image_root: Path) -> None:
    data = ImageData(folder_data(image_root, augment=EVERYTHING), 0)
    (repeated,) = data.train_batches(SIZE, 1, repeats=REPEATS)
    (once,) = data.train_batches(SIZE, 1)
    assert torch.equal(repeated.images_bchw[::REPEATS], once.images_bchw[: SIZE // REPEATS])
    assert torch.equal(repeated.targets, once.targets[: SIZE // REPEATS].repeat_interleave(REPEATS))
    assert len(images_of([repeated])) > SIZE * 0.9


@pytest.mark.parametrize("workers", [0, 2])
def test_neither_workers_nor_the_start_move_it(image_root: Path, workers: int) -> None:
    whole = list(ImageData(folder_data(image_root, augment=EVERYTHING), 3).train_batches(10, 9, repeats=REPEATS))
    data = ImageData(folder_data(image_root, augment=EVERYTHING, workers=workers), 3)
    assert same(whole[5:], list(data.train_batches(10, 9, 5, repeats=REPEATS)))


@pytest.mark.parametrize("size", [1, 10, 20])
def test_what_judges_is_in_no_repeat(image_root: Path, size: int) -> None:
    data = ImageData(folder_data(image_root, augment=PLAIN), 0)
    train = list(data.train_batches(size, 6, repeats=REPEATS))
    judging = list(data.outer_batches(8, 6, inner=(size, 1), repeats=REPEATS))
    for inner, outer in zip(train, judging, strict=True):
        assert len(images_of([outer])) == 8
        assert not images_of([inner]) & images_of([outer])


def test_it_is_on_in_deits_recipe() -> None:
    assert load_recipe("imagenet/vit_base-deit_tiny").distill.augment_repeats == 3


TASK = """\
from distpro_cli.tasks.classification import Classification
from distpro_cli.tasks.images.data import ImageData

class Data(ImageData):
    def train_batches(self, batch_size, num_steps, start_step=0):
        return super().train_batches(batch_size, num_steps, start_step)

class Own(Classification):
    def data(self, spec, seed, outer_share=None):
        return Data(spec, seed, outer_share)
"""


def test_bad_input(distpro: Run) -> None:
    result = distpro("train", "tiny.yaml", "distill.augment_repeats=0", "-q")
    assert result.status == 2 and "distill.augment_repeats: found 0; allowed: a whole number > 0" in result.err
    Path("own.py").write_text(TASK)
    result = distpro("train", "tiny.yaml", "task=own.py:Own", "distill.augment_repeats=2", "-q")
    assert result.status == 2, result.err
    assert "the data of this task cannot repeat images, because train_batches takes no argument repeats" in result.err
    assert distpro("train", "tiny.yaml", "task=own.py:Own", "distill.epochs=1", "-q").status == 0
