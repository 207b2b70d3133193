"""Networks that are compiled between their taps: the same steps, the same early stops, and nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distpro_cli.networks.compiled import compile_between_taps, is_compiled
from distpro_cli.networks.levels import TappedNetwork
from distpro_cli.pathways import hcl
from distpro_cli.tasks.task import Batch
from distpro_cli.training.hypergradients import make_hypergradient
from distpro_cli.training.step import Distiller, Pair
from distpro_cli.workflows.pairs import build_pair, hasten
from distpro_cli.workflows.session import Session
from tests.helpers import CONTEXT, digits_recipe

SMALL = (
    "data.image_size=8",
    "teacher={name: wrn_10_1, train: {}, levels: [0, 1]}",
    "student={name: wrn_10_1, levels: [0, 1]}",
    "pathways=[{connections: same, transform: conv1, distance: hcl}]",
    "distill={ema_decay: 0.5, batch_size: 4, optimizer: {lr: 0.01}}",
)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Counts what is compiled, by a compiler that leaves operations as they are; none is needed on the machine."""
    runs: list[int] = []
    compile_with = torch.compile

    def as_it_is(graph: torch.fx.GraphModule, _: Any) -> Any:
        def run(*given: Tensor) -> Any:
            runs.append(1)
            return graph.forward(*given)

        return run

    monkeypatch.setattr(torch, "compile", lambda function: compile_with(function, backend=as_it_is))
    hcl._compiled.cache_clear()
    yield runs
    hcl._compiled.cache_clear()


def make(compiled: bool) -> tuple[Pair, Distiller]:
    session = Session(digits_recipe(*SMALL, f"compile={str(compiled).lower()}"), CONTEXT, 0.5)
    pair = build_pair(session)
    pair.student.train()
    pair.teacher.eval().requires_grad_(False)
    distiller = session.distiller(pair, session.recipe.distill)
    hasten(session, pair)
    return pair, distiller


def trained(pair: Pair, distiller: Distiller, inner: Batch, outer: Batch) -> list[Tensor]:
    """Returns a hypergradient, the losses of steps after it, one of which drops the deeper pathway, and all weights."""
    count = len(pair.infos)
    *_, hypergradient_k = make_hypergradient("cheap", distiller).step(inner, outer, torch.ones(count), 0)
    losses = [distiller.step(inner, weights, 1 + step).task for step, weights in enumerate(([1.0] * count, [1.0, 0.0]))]
    assert distiller.average is not None
    return [hypergradient_k, *losses, *pair.student.state_dict().values(), *distiller.average.state_dict().values()]


def test_steps_are_those_of_the_networks_as_written(graphs: list[int]) -> None:
    torch.manual_seed(0)
    inner, outer = (Batch(torch.rand(4, 3, 8, 8), torch.arange(4)) for _ in range(2))
    pair, distiller = make(compiled=True)
    assert all(is_compiled(module) for module in (pair.student, pair.teacher, pair.pathways.transforms))
    assert any(isinstance(module, nn.BatchNorm2d) for module in pair.student.modules())
    assert sum(isinstance(module, nn.BatchNorm2d) for module in pair.teacher.modules()) == 4  # behind no convolution
    assert distiller.average is not None and not is_compiled(distiller.average)
    found = trained(pair, distiller, inner, outer)
    assert graphs
    other_pair, other_distiller = make(compiled=False)
    for ours, expected in zip(found, trained(other_pair, other_distiller, inner, outer), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    runs, features = [], []
    for output in (False, True):
        graphs.clear()
        with torch.no_grad():
            features.append(pair.teacher(inner.images_bchw, levels=[1], output=output)[1][1])
        runs.append(len(graphs))
    assert torch.equal(*features) and runs[0] < runs[1]
    assert not is_compiled(pair.student.released())


def test_parts_without_taps_are_compiled(graphs: list[int]) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1),
        nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()), nn.Sequential(nn.Conv2d(4, 4, 1))),
        nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU()),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)),
    )
    tapped = TappedNetwork(network, levels=["1", "2.0"], mean=[0.0] * 3, std=[1.0] * 3, image_size=8)
    assert compile_between_taps(tapped.model) == 3
    compiled = [name for name, module in network.named_modules() if module._compiled_call_impl is not None]
    assert compiled == ["1.0", "1.1", "3"]
    assert not is_compiled(tapped.released())
