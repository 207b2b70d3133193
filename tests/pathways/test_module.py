"""Pathways as a module: what is off does not run, and everything trains."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from distpro_cli.pathways.connections import resolve_pathways
from distpro_cli.pathways.module import Pathways
from distpro_cli.recipe.schema import PathwayGroup
from tests.pathways.levels import feature, levels

TEACHER = levels((8, 16, 16), (16, 8, 8), (32,), logits=10)
STUDENT = levels((4, 16, 16), (8, 8, 8), (16,), logits=10)
GROUPS = [
    PathwayGroup(connections="lower", transform="conv2"),
    PathwayGroup(connections="same", transform="identity", distance="kl"),
]


@pytest.fixture
def pathways() -> Pathways:
    return Pathways(resolve_pathways(GROUPS, TEACHER, STUDENT))


@pytest.fixture
def features() -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    student = {info.number: feature(info, 4).requires_grad_() for info in STUDENT}
    return student, {info.number: feature(info, 4, seed=1) for info in TEACHER}


def test_only_active_pathways_run(
    pathways: Pathways, features: tuple[dict[int, Tensor], dict[int, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    transformed: Counter[int] = Counter()
    measured: Counter[int] = Counter()
    for k, transform in enumerate(pathways.transforms):
        transform.register_forward_hook(lambda *_, k=k: transformed.update([k]))
        distance = pathways.distances[k]
        monkeypatch.setattr(
            distance,
            "measure",
            lambda *given, k=k, plain=distance.measure: (measured.update([k]), plain(*given))[1],
        )
    student, teacher = features
    losses = pathways(student, {2: teacher[2], 4: teacher[4]}, [1, 6])  # 2-1 and the logits
    assert list(losses) == [1, 6]
    assert transformed == measured == Counter({1: 1, 6: 1})
    assert pathways(student, {}, []) == {}


def test_losses_are_those_of_the_pathways_alone(
    pathways: Pathways, features: tuple[dict[int, Tensor], dict[int, Tensor]]
) -> None:
    student, teacher = features
    losses = pathways(student, teacher, range(7))
    for k, info in enumerate(pathways.infos):
        alone = pathways.distance(k, student[info.student.number], teacher[info.teacher.number])
        assert alone.dtype == torch.float32 and alone.ndim == 0
        assert torch.equal(alone, losses[k])
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is not None for p in pathways.parameters())
    assert all(f.grad is not None for f in student.values())


def test_every_pathway_has_a_block_of_its_own(pathways: Pathways) -> None:
    owners = Counter(id(p) for transform in pathways.transforms for p in transform.parameters())
    assert owners and set(owners.values()) == {1}


def test_same_random_state_same_blocks() -> None:
    infos = resolve_pathways(GROUPS, TEACHER, STUDENT)
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(Pathways(infos).state_dict())
    assert all(torch.equal(one, other) for one, other in zip(states[0].values(), states[1].values(), strict=True))
