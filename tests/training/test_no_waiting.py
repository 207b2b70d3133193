"""A step makes the device wait for nothing: it runs on `meta`, a device from which no value can be read."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from distpro_cli.process.schedule import Schedule
from distpro_cli.report.progress import Reporter
from distpro_cli.runs.context import RunContext
from distpro_cli.runs.signals import Interruption
from distpro_cli.training.step import StepLosses
from distpro_cli.training.weights import ScheduledWeights
from distpro_cli.workflows.pairs import build_pair
from distpro_cli.workflows.search import searched_weights
from distpro_cli.workflows.session import Session
from tests.helpers import digits_recipe

META = torch.device("meta")
FROM_PYTHON = {"tensor", "new_tensor", "as_tensor", "asarray", "from_numpy"}
OPTIMIZERS = "torch/optim/"  # their counters of steps lie in main memory, which makes nothing wait


@dataclass
class Traffic:
    """What crossed between the device and main memory, and what was made in main memory."""

    crossed: list[str] = field(default_factory=list)
    made_here: list[str] = field(default_factory=list)


class _Operations(TorchDispatchMode):
    def __init__(self, traffic: Traffic) -> None:
        super().__init__()
        self.traffic = traffic

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if func is torch.ops.aten._local_scalar_dense.default and given[0].device == META:
            self.traffic.crossed.append("read a number")
            return 1.0
        out = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        name = str(func).split(".")[1]
        if len({tensor.device for tensor in (*given, *made)}) > 1:
            self.traffic.crossed.append(name)
        if not given and any(leaf.device != META for leaf in made):
            self.traffic.made_here.append(name)
        return out


class _Calls(TorchFunctionMode):
    def __init__(self, traffic: Traffic) -> None:
        super().__init__()
        self.traffic = traffic

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in FROM_PYTHON and OPTIMIZERS not in sys._getframe(1).f_code.co_filename:
            self.traffic.made_here.append(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def watched() -> Iterator[Traffic]:
    traffic = Traffic()
    with _Operations(traffic), _Calls(traffic):
        yield traffic


@pytest.mark.parametrize(
    ("what", "name"),
    [
        (lambda there: there.new_tensor([1.0]), "new_tensor"),
        (lambda there: torch.tensor([1.0], device=META), "tensor"),
        (lambda there: torch.tensor(1.0), "tensor"),
        (lambda there: torch.zeros(3), "zeros"),
        (lambda there: torch.zeros(3).to(META), "_to_copy"),
        (lambda there: there.copy_(torch.zeros(2)), "copy_"),
        (lambda there: bool(there.sum() > 0), "read a number"),
        (lambda there: there.sum().item(), "read a number"),
    ],
)
def test_traffic_is_seen(what: Any, name: str) -> None:
    there = torch.ones(2, device=META)
    with watched() as traffic:
        what(there)
        there.new_full((1,), 2.0) + there * 3.0
    assert name in traffic.crossed + traffic.made_here
    assert "new_full" not in traffic.made_here


@pytest.mark.parametrize(
    "overrides",
    [
        ("pathways=[{connections: same}]",),
        (
            "pathways=[{connections: same, transform: review}, {connections: [[2, 1]], distance: mse}]",
            "distill={optimizer: {name: adamw, lr: 0.001}, clip_grad: 1.0, batch_size: 4, micro_batch_size: 2}",
            "search.scale=gradient",
        ),
    ],
)
def test_a_step_reads_nothing_and_makes_nothing_in_main_memory(
    overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    if "search.scale=gradient" in overrides:  # as on CUDA, where float32 is rounded
        monkeypatch.setattr("distpro_cli.training.hypergradients.cheap.rounds_float32", lambda device: True)
    settings = ("teacher={name: wrn_10_1, train: {}}", "distill.batch_size=4", "search.interval=2")
    recipe = digits_recipe(*settings, *overrides)
    session = Session(recipe, RunContext(META, Reporter(), Interruption()), outer_share=0.5)
    pair = build_pair(session)
    training = recipe.search_training
    distiller = session.distiller(pair, training)
    inner, outer = (next(session.batches(part, 4, 1)(0)) for part in ("train", "outer"))
    searched = searched_weights(session, distiller, training)
    searched.outer_batches = lambda _: repeat(outer)
    ones = np.ones((2, len(pair.infos)), dtype=np.float32)
    schedule = Schedule(np.array([0.0, 1.0], dtype=np.float32), ones, ones > 0, ones.astype(float), 0.0)
    pair.student.train()
    searched.step(inner, 0)  # makes buffers
    for weights in (searched, ScheduledWeights(distiller, schedule, total_steps=10)):
        for step in (1, 2):  # the second moves alpha
            with watched() as traffic:
                weights.step(inner, step)
            assert traffic == Traffic()


def test_a_look_at_losses_is_one_copy() -> None:
    parts = {"cross_entropy": torch.tensor(0.1), "token": torch.tensor(0.5, dtype=torch.bfloat16)}
    losses = StepLosses(parts, torch.tensor(0.6), {3: torch.tensor(2.0)}, {"top1": torch.tensor(12.5)})
    read = losses.read()
    assert [value.item() for value in read.tensors()] == [value.item() for value in losses.tensors()]
    assert len({value.untyped_storage().data_ptr() for value in read.tensors()}) == 1
    assert (list(read.parts), list(read.distances), list(read.scores)) == (list(parts), [3], ["top1"])
