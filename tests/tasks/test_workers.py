"""Processes that all parts of a run share, and the memory through which they hand batches over."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distpro_cli.tasks.images import workers as workers_module
from distpro_cli.tasks.images.data import ImageData
from distpro_cli.tasks.images.handover import SMALL_BYTES
from distpro_cli.tasks.images.listing import Names
from distpro_cli.tasks.images.workers import AHEAD, Workers, empty_batch
from distpro_cli.tasks.task import Batch, StoredBatch, as_floats
from tests.tasks.conftest import folder_data
from tests.tasks.test_data import same

LARGE = SMALL_BYTES + 3


class OddError(Exception):
    """Cannot be made from what its message says."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def filled(job: int) -> tuple[Tensor, dict[str, Any]]:
    """Makes a batch in a slot, a view of it, small and large tensors of several types, nested."""
    batch = empty_batch(3, 8, LARGE // 8).fill_(job)
    generator = torch.Generator().manual_seed(job)
    others: dict[str, Any] = {
        "again": batch.permute(0, 2, 1),
        "part": batch[1:],
        "small": torch.full((2,), job),
        "half": torch.full((2, 2), float(job), dtype=torch.bfloat16),
        "large": [torch.rand(LARGE, generator=generator), torch.rand(7, LARGE, generator=generator).T],
        "process": os.getpid(),
    }
    return batch, others


def failing(job: int) -> int:
    if job == 3:
        raise KeyError("no three")
    if job == 5:
        raise OddError(1, 2)
    return job


def children() -> set[int | None]:
    return {process.pid for process in multiprocessing.active_children()}


def test_what_comes_from_a_process_is_what_is_made_here() -> None:
    held = []
    for job, (batch, others) in enumerate(Workers(2).stream(filled, range(9))):
        own_batch, own_others = filled(job)
        assert others.pop("process") != own_others.pop("process")
        assert torch.equal(batch, own_batch) and batch.data_ptr() == others["again"].data_ptr()
        for name in ("again", "part", "small", "half"):
            assert torch.equal(others[name], own_others[name]) and others[name].dtype == own_others[name].dtype
        for found, own in zip(others["large"], own_others["large"], strict=True):
            assert torch.equal(found, own)
        held.append((job, batch))
    assert all((batch == job).all() for job, batch in held)  # none was written over
    assert not children()


@pytest.mark.skipif(sys.platform != "linux", reason="slots are Linux's")
def test_memory_is_used_again() -> None:
    workers = Workers(1)
    stream = workers.stream(filled, range(60))
    for job, (batch, _) in enumerate(stream):
        assert (batch == job).all()
        if job == 50:
            (process,) = workers._processes
            # Three tensors of two sizes, of the jobs under way, of that in work and of this one.
            assert len(process.seen._slots) <= 4 * (AHEAD + 2)
            numbers = set(process.seen._slots)
        elif job == 58:
            assert set(process.seen._slots) == numbers


def test_without_slots_torch_hands_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "HAS_SLOTS", False)
    for job, (batch, others) in enumerate(Workers(1).stream(filled, range(3))):
        assert torch.equal(batch, filled(job)[0]) and torch.equal(others["large"][0], filled(job)[1]["large"][0])
    assert not children()


def test_streams_share_processes_and_the_last_one_ends_them() -> None:
    workers = Workers(2)
    first, second = (workers.stream(filled, range(8), [filled]) for _ in range(2))
    third = workers.stream(failing, range(3))  # the processes are told of it when it comes
    assert not children()
    next(first)
    started = children()
    assert len(started) == 2
    assert {next(second)[1]["process"], next(second)[1]["process"]} <= started
    assert list(third) == [0, 1, 2]
    assert len(list(first)) == 7
    assert children() == started
    second.close()  # type: ignore[attr-defined]
    assert not children()
    assert len(list(workers.stream(filled, range(2)))) == 2  # and new ones start


@pytest.mark.parametrize(
    ("first", "error", "match"), [(0, KeyError, "no three"), (4, RuntimeError, "OddError: 1 and 2")]
)
def test_errors_arrive_with_where_they_were_raised(first: int, error: type[Exception], match: str) -> None:
    stream = Workers(2).stream(failing, range(first, 9))
    with pytest.raises(error, match=match) as caught:
        list(stream)
    assert "in failing" in str(caught.value.__cause__)
    assert not children()


def test_train_outer_and_test_batches_come_from_the_same_processes(image_root: Path) -> None:
    alone = ImageData(folder_data(image_root), 0, 0.5)
    data = ImageData(folder_data(image_root, workers=2), 0, 0.5)
    train, outer = data.train_batches(4, 20), data.outer_batches(4, 20)
    found: list[Batch] = [*islice(train, 3)]
    started = children()
    assert len(started) == 2
    found += [*islice(outer, 3), *data.test_batches(4), *islice(train, 3), *islice(outer, 3)]
    assert children() == started
    own_train, own_outer = list(alone.train_batches(4, 6)), list(alone.outer_batches(4, 6))
    assert same(found, [*own_train[:3], *own_outer[:3], *alone.test_batches(4), *own_train[3:], *own_outer[3:]])
    train.close()  # type: ignore[attr-defined]
    assert children() == started
    outer.close()  # type: ignore[attr-defined]
    assert not children()


def test_stored_images_become_the_nearest_floats() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    stored = StoredBatch(torch.from_numpy(values).permute(0, 3, 1, 2), [torch.ones(1)], ((16, 8),))
    expected = torch.from_numpy((values.astype(np.float64) / 255).astype(np.float32)).permute(0, 3, 1, 2)
    assert torch.equal(as_floats(stored.stored_bchw), expected)
    for memory_format in (torch.channels_last, torch.contiguous_format):
        moved = stored.to(torch.device("cpu"), memory_format)
        assert torch.equal(moved.images_bchw, expected)
        assert moved.images_bchw.is_contiguous(memory_format=memory_format)
        assert (moved.sizes, moved.targets) == (stored.sizes, stored.targets)
    assert stored.images_bchw.is_contiguous() and torch.equal(stored.images_bchw, expected)
    other = stored.with_targets(3)
    assert isinstance(other, StoredBatch) and other.targets == 3 and torch.equal(other.images_bchw, expected)
    assert torch.equal(Batch(expected, 1).with_targets(2).images_bchw, expected)


def test_names_are_those_that_were_packed() -> None:
    texts = ["a/1.png", "", "ü/\udcff.jpg", "last"]
    names = Names(texts)
    assert list(names) == texts and len(names) == 4
    assert [names[-1], names[np.int64(2)], list(names[1:3])] == ["last", texts[2], texts[1:3]]  # type: ignore[call-overload]
    with pytest.raises(IndexError):
        names[4]
    assert list(Names(())) == []


def test_a_batch_is_begun_before_the_one_in_front_of_it_is_given_out() -> None:
    from distpro_cli.training.prefetch import on_device

    events: list[str] = []

    class Beside:
        def prepare(self, prepare: Any, step: int, batch: Batch) -> Any:
            events.append(f"begin {step}")
            prepared = prepare(step, batch)

            def hand_over() -> Batch:
                events.append(f"hand over {step}")
                return prepared

            return hand_over

    def numbered() -> Iterator[tuple[int, Batch]]:
        for step in range(3, 6):
            yield step, Batch(torch.full((1,), float(step)), step)

    def double(step: int, batch: Batch) -> Batch:
        return Batch(batch.images_bchw * 2, step)

    for stream in (Beside(), None):
        found = []
        for batch in on_device(numbered(), double, stream):
            found.append((batch.images_bchw.item(), batch.targets))
            events.append(f"step {batch.targets}")
        assert found == [(6.0, 3), (8.0, 4), (10.0, 5)]
    order = ["begin 3", "begin 4", "hand over 3", "step 3", "begin 5", "hand over 4", "step 4", "hand over 5", "step 5"]
    assert events[:-3] == order
