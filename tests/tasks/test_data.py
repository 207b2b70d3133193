"""Parts, order, determinism and resumption of the batches."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from distpro_cli.errors import DistproError
from distpro_cli.randomness import derived_seed
from distpro_cli.recipe.schema import Augmentation, Data
from distpro_cli.tasks.images.data import ImageData
from distpro_cli.tasks.images.digits import open_digits
from distpro_cli.tasks.images.sources import Source
from distpro_cli.tasks.task import Batch
from tests.tasks.conftest import folder_data, random_image
from tests.tasks.suite import images_of

EVERYTHING = Augmentation(crop="resized", auto_augment="rand-m9-mstd0.5-inc1", color_jitter=0.4, random_erasing=0.5)
DIGITS = Data(name="digits", image_size=32, workers=0, augment=Augmentation(crop="pad", padding=2, flip=0.0))


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.images_bchw, b.images_bchw) and torch.equal(a.targets, b.targets)
        for a, b in zip(first, second, strict=True)
    )


def part_indices(data: ImageData) -> tuple[set[int], set[int], set[int]]:
    return set(data._train.tolist()), set(data._outer.tolist()), set(data._test.tolist())


def test_digits_have_the_stated_split_and_range() -> None:
    data = ImageData(DIGITS, seed=0)
    assert (data.train_size, data.outer_size, data.test_size) == (1437, 0, 360)
    assert data.train_source.class_names == data.test_source.class_names == tuple("0123456789")
    batches = list(data.test_batches(100))
    assert [len(batch.targets) for batch in batches] == [100, 100, 100, 60]
    targets = torch.cat([batch.targets for batch in batches])
    assert targets.bincount().tolist() == [36] * 10
    images, targets = batches[0].images_bchw, batches[0].targets
    assert images.shape == (100, 3, 32, 32)
    assert images.dtype == torch.float32
    assert targets.dtype == torch.int64
    assert images.is_contiguous()
    assert images.min() == 0
    assert images.max() <= 1


@pytest.mark.parametrize("augment", [Augmentation(crop="pad"), EVERYTHING])
@pytest.mark.parametrize("cache", [False, True])
def test_batches_do_not_depend_on_workers_or_cache(image_root: Path, augment: Augmentation, cache: bool) -> None:
    expected = list(ImageData(folder_data(image_root, augment=augment), 3).train_batches(10, 9))
    for workers in (0, 2):
        spec = folder_data(image_root, augment=augment, workers=workers, cache=cache)
        data = ImageData(spec, 3)
        assert same(expected, list(data.train_batches(10, 9)))
        assert same(list(ImageData(folder_data(image_root), 0).test_batches(5)), list(data.test_batches(5)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_continues_in_the_middle_of_an_epoch(image_root: Path, workers: int) -> None:
    data = ImageData(folder_data(image_root, augment=EVERYTHING, workers=workers), 3, outer_share=0.5)
    assert data.steps_per_epoch(5) == 4
    for batches in (data.train_batches, data.outer_batches):
        whole = list(batches(5, 11))
        assert len(whole) == 11
        assert same(whole[6:], list(batches(5, 11, start_step=6)))


def test_seed_and_epoch_change_order_and_augmentation(image_root: Path) -> None:
    spec = folder_data(image_root)
    first, second = (list(ImageData(spec, seed).train_batches(42, 2)) for seed in (0, 1))
    assert not torch.equal(first[0].images_bchw, second[0].images_bchw)
    assert not torch.equal(first[0].images_bchw, first[1].images_bchw)
    plain = folder_data(image_root, augment=Augmentation(crop="none", flip=0.0))
    epochs = [batch.images_bchw for batch in ImageData(plain, 0).train_batches(42, 2)]
    sums = [images.sum((1, 2, 3)).sort().values for images in epochs]
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(sums[0], sums[1])


def test_augmentation_depends_on_seed_epoch_and_index_alone(image_root: Path) -> None:
    one, other = (
        ImageData(folder_data(image_root), 0),
        ImageData(folder_data(image_root), 0),
    )
    by_batch_of_42 = next(one.train_batches(42, 1))
    by_batch_of_6 = list(other.train_batches(6, 7))
    assert torch.equal(by_batch_of_42.images_bchw, torch.cat([batch.images_bchw for batch in by_batch_of_6]))


@pytest.mark.parametrize("workers", [0, 2])
def test_global_random_states_are_left_alone(image_root: Path, workers: int) -> None:
    data = ImageData(folder_data(image_root, augment=EVERYTHING, workers=workers), 0)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index]
    list(data.train_batches(10, 3))
    list(data.test_batches(10))
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_epochs_cover_the_part_and_batches_are_full(image_root: Path) -> None:
    spec = folder_data(image_root, augment=Augmentation(crop="none", flip=0.0))
    data = ImageData(spec, 0)
    assert data.steps_per_epoch(21) == 2
    targets = torch.cat([batch.targets for batch in data.train_batches(21, 2)])
    assert targets.bincount().tolist() == [24, 12, 6]
    assert data.steps_per_epoch(10) == 4
    assert {len(batch.targets) for batch in data.train_batches(10, 9)} == {10}
    assert data.steps_per_epoch(100) == 1
    assert [len(batch.targets) for batch in data.train_batches(100, 2)] == [42, 42]


def test_inner_and_outer_part_are_stratified_and_do_not_depend_on_the_seed(image_root: Path) -> None:
    data = ImageData(folder_data(image_root), seed=0, outer_share=1 / 3)
    train, outer, _ = part_indices(data)
    assert (data.train_size, data.outer_size) == (28, 14)
    assert not train & outer
    assert np.bincount(data.train_source.targets[sorted(outer)]).tolist() == [8, 4, 2]
    assert part_indices(ImageData(folder_data(image_root), seed=7, outer_share=1 / 3))[1] == outer
    other = ImageData(folder_data(image_root, subset_seed=1), seed=0, outer_share=1 / 3)
    assert part_indices(other)[1] != outer


def test_subsets_are_drawn_evenly(image_root: Path) -> None:
    data = ImageData(folder_data(image_root, train_images=20, test_images=6), seed=0)
    assert (data.train_size, data.test_size) == (20, 6)
    assert np.bincount(data.train_source.targets[data._train]).tolist() == [7, 7, 6]
    assert np.bincount(data.test_source.targets[data._test]).tolist() == [2, 2, 2]
    smaller = ImageData(folder_data(image_root, train_images=9), seed=0)
    assert part_indices(smaller)[0] < part_indices(data)[0]
    with pytest.raises(DistproError, match=r"data\.train_images: 43 asked for, .*train has 42"):
        ImageData(folder_data(image_root, train_images=43), seed=0)


def test_held_out_images_come_from_train_and_are_not_trained_on(image_root: Path) -> None:
    spec = folder_data(image_root, test_on="held-out", held_out=0.5, test_split="not there")
    data = ImageData(spec, seed=0, outer_share=0.5)
    train, outer, test = part_indices(data)
    assert len(test) == 21
    assert not test & (train | outer)
    assert train | outer | test == set(range(42))
    assert data.test_source is data.train_source


def test_order_and_crops_are_those_of_the_named_seeds() -> None:
    spec = Data(name="digits", image_size=8, workers=0, augment=Augmentation(crop="pad", padding=2, flip=0.5))
    data = ImageData(spec, seed=3)
    source = open_digits("train")
    (batch,) = data.train_batches(50, 31, start_step=30)
    epoch, within = divmod(30, 1437 // 50)
    order = np.random.default_rng(derived_seed(derived_seed(3, "train"), epoch)).permutation(1437)
    for row, index in enumerate(order[within * 50 : within * 50 + 50].tolist()):
        draws = random.Random(derived_seed(3, epoch, index))
        down, right = draws.randint(-2, 2), draws.randint(-2, 2)
        padded = np.pad(source.load(index), ((2, 2), (2, 2), (0, 0)))
        image = padded[2 - down : 10 - down, 2 - right : 10 - right]
        image = image[:, ::-1] if draws.random() < 0.5 else image
        assert torch.equal(batch.images_bchw[row], torch.from_numpy(image.copy()).permute(2, 0, 1) / 255)
        assert batch.targets[row] == source.targets[index]


def test_sources_without_strata_are_drawn_from_at_random() -> None:
    def open_plain(spec: Data, split: str | None) -> Source:
        source = open_digits(split or "test")
        return replace(source, targets=np.zeros((len(source), 2, 3), dtype=np.float32), strata=None)

    data = ImageData(DIGITS.model_copy(update={"train_images": 100}), 0, 0.2, open_plain)
    assert (data.train_size, data.outer_size, data.test_size) == (80, 20, 360)
    batch = next(data.outer_batches(20, 1))
    assert batch.targets.shape == (20, 2, 3) and batch.targets.dtype == torch.float32
    drawn = np.bincount(open_digits("train").targets[np.sort(np.concatenate([data._train, data._outer]))], minlength=10)
    assert drawn.sum() == 100 and len(set(drawn.tolist())) > 1


def test_stored_size_is_not_resampled(image_root: Path) -> None:
    expected = torch.stack(
        [torch.from_numpy(np.array(random_image(number))).permute(2, 0, 1) / 255 for number in range(42)]
    )
    for crop in ("none", "pad"):
        spec = folder_data(image_root, augment=Augmentation(crop=crop, flip=0.0), test_split="train")
        images = torch.cat([batch.images_bchw for batch in ImageData(spec, 0).test_batches(42)])
        assert torch.equal(images, expected)


@pytest.mark.parametrize(("inner", "outer", "interval"), [(5, 5, 1), (10, 10, 1), (4, 8, 3), (8, 42, 2), (21, 21, 1)])
def test_without_an_outer_part_no_image_of_the_train_batch_judges_it(
    image_root: Path, inner: int, outer: int, interval: int
) -> None:
    data = ImageData(folder_data(image_root, augment=Augmentation(crop="none", flip=0.0)), 0)
    assert data.outer_size == 0
    num_steps = 3 * data.steps_per_epoch(inner)
    num_moves = -(-num_steps // interval)
    train = list(data.train_batches(inner, num_steps))
    judging = list(data.outer_batches(outer, num_moves, 0, (inner, interval)))
    assert len(judging) == num_moves
    seen: Counter[bytes] = Counter()
    for move, batch in enumerate(judging):
        judges = images_of([batch])
        assert len(judges) == min(outer, 42 - inner)
        assert not judges & images_of([train[move * interval]])
        seen |= judges
    assert len(seen) > 42 // 2
    assert same(judging[2:], list(data.outer_batches(outer, num_moves, 2, (inner, interval))))


def test_outer_images_of_the_train_part_are_augmented_on_their_own(image_root: Path) -> None:
    data = ImageData(folder_data(image_root, augment=EVERYTHING), 0)
    train = images_of(data.train_batches(42, 1))
    assert not train & images_of(data.outer_batches(21, 2))


def test_one_train_batch_leaves_no_image_to_judge_it(image_root: Path) -> None:
    with pytest.raises(DistproError, match=r"search\.outer: train needs more than one batch .* 42 for a batch of 50"):
        ImageData(folder_data(image_root), 0).outer_batches(50, 1)


def test_abandoned_workers_end_with_the_iterator(image_root: Path) -> None:
    batches = ImageData(folder_data(image_root, workers=2), 0).train_batches(4, 10_000)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_worker_that_dies_is_named(image_root: Path) -> None:
    batches = ImageData(folder_data(image_root, workers=2), 0).train_batches(4, 100)
    next(batches)
    for process in multiprocessing.active_children():
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(DistproError, match=r"data\.workers: a process that loads data died.* there were 2, set fewer"):
        list(batches)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("error", [EOFError(), ConnectionResetError(104, "Connection reset by peer")])
def test_a_worker_that_dies_while_it_hands_over_a_batch_is_named(
    image_root: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    batches = ImageData(folder_data(image_root, workers=2), 0).train_batches(4, 100)
    next(batches)
    monkeypatch.setattr("multiprocessing.connection.Connection.recv", fail)
    with pytest.raises(DistproError, match=r"data\.workers: a process that loads data died.* there were 2, set fewer"):
        list(batches)
    assert not multiprocessing.active_children()


@pytest.mark.skipif("CIFAR10" not in os.environ, reason="CIFAR10 names no folder with train.tar and test.tar")
def test_cifar_is_shown_as_it_is_stored() -> None:
    spec = folder_data(Path("$CIFAR10"), num_classes=10, train_images=1000, workers=2)
    data = ImageData(spec, 0, outer_share=0.2)
    assert (data.train_size, data.outer_size, data.test_size) == (800, 200, 10_000)
    assert data.train_source.class_names[:3] == ("airplane", "automobile", "bird")
    batch = next(data.test_batches(4))
    source = data.test_source
    for row in range(4):
        assert torch.equal(batch.images_bchw[row], torch.from_numpy(source.load(row).copy()).permute(2, 0, 1) / 255)
    assert batch.targets.tolist() == [0, 0, 0, 0]
    assert sum(len(batch.targets) for batch in islice(data.train_batches(128, 6), 6)) == 768
