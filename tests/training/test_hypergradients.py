"""The three ways to the hypergradient agree, train the student alike, and leave running statistics alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

import distpro_cli.training.hypergradients as hypergradient_module
from distpro_cli.networks.build import build_network
from distpro_cli.pathways.connections import resolve_pathways
from distpro_cli.pathways.module import Pathways
from distpro_cli.recipe.schema import Data, Network, PathwayGroup
from distpro_cli.tasks.classification.data import ClassificationData
from distpro_cli.tasks.classification.task import task_loss
from distpro_cli.training.hypergradients import BILEVEL_STEPS, outer_gradient
from distpro_cli.training.step import Batch, Pair, Stepper

DATA = Data(name="digits", image_size=32, workers=0)


OWN_BLOCKS = (PathwayGroup(), PathwayGroup(connections="same", transform="conv1", distance="mse"))
# Pathways that share a chain, beside others that do not; two chains, since their widths differ.
SHARED_BLOCKS = (
    PathwayGroup(connections="same", transform="review"),
    PathwayGroup(connections="lower", transform="review", transform_options={"mid": 8}, distance="mse"),
    PathwayGroup(connections=[[3, 1], [4, 4]], transform="conv1"),
)


def make_stepper(
    seed: int = 0,
    *,
    groups: Sequence[PathwayGroup] = OWN_BLOCKS,
    momentum: float = 0.0,
    precision: str = "float32",
) -> Stepper:
    torch.manual_seed(seed)
    student = build_network(Network(name="wrn_10_1"), DATA)
    teacher = build_network(Network(name="wrn_16_1"), DATA).eval().requires_grad_(False)
    pathways = Pathways(resolve_pathways(list(groups), teacher.levels, student.levels))
    pair = Pair(student, teacher, pathways)
    parameters = [p for module in pair.trained_modules() for p in module.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=momentum)
    return Stepper(pair, optimizer, task_loss, device=torch.device("cpu"), precision=precision)


def batches(seed: int = 1) -> tuple[Batch, Batch]:
    generator = torch.Generator().manual_seed(seed)
    made = [
        Batch(torch.rand(16, 3, 32, 32, generator=generator), torch.randint(0, 10, (16,), generator=generator))
        for _ in range(2)
    ]
    return made[0], made[1]


def weights(stepper: Stepper) -> Tensor:
    assert stepper.pair.pathways is not None
    return torch.linspace(0.2, 1.5, len(stepper.pair.pathways.infos))


def in_float64(stepper: Stepper) -> Stepper:
    """The task loss of the engine is float32; here it is torch's own."""
    assert stepper.pair.teacher is not None and stepper.pair.pathways is not None
    for module in (stepper.pair.student, stepper.pair.teacher, stepper.pair.pathways):
        module.double()
    stepper.pair.student.train()
    stepper.task_loss = cross_entropy
    return stepper


def batch_in_float64(batch: Batch) -> Batch:
    return Batch(batch.images_bchw.double(), batch.targets)


def hypergradient(name: str, *, steps: int = 3, **kinds: object) -> tuple[Tensor, Stepper]:
    stepper = make_stepper(**kinds)  # type: ignore[arg-type]
    stepper.pair.student.train()
    inner, outer = batches()
    for step in range(steps):
        stepper.plain(inner, weights(stepper), step)
    return BILEVEL_STEPS[name](stepper)(inner, outer, weights(stepper), steps)[2], stepper


every_kind_of_block = pytest.mark.parametrize(
    "groups", [pytest.param(OWN_BLOCKS, id="own"), pytest.param(SHARED_BLOCKS, id="shared")]
)


@every_kind_of_block
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_cheap_is_the_exact_hypergradient(groups: Sequence[PathwayGroup], momentum: float) -> None:
    cheap, _ = hypergradient("cheap", groups=groups, momentum=momentum)
    exact, _ = hypergradient("exact", groups=groups, momentum=momentum)
    assert cosine_similarity(cheap, exact, dim=0) > 0.999


@every_kind_of_block
def test_cheap_converges_to_the_exact_hypergradient_in_float64(
    groups: Sequence[PathwayGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hypergradient_module, "SHIFT_LENGTH", 1e-7)
    results = []
    for name in ("cheap", "exact"):
        stepper, (inner, outer) = in_float64(make_stepper(groups=groups)), map(batch_in_float64, batches())
        moved = weights(stepper).double()
        stepper.plain(inner, moved, 0)
        results.append(BILEVEL_STEPS[name](stepper)(inner, outer, moved, 1)[2])
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3 * results[1].abs().max().item())


@every_kind_of_block
def test_central_difference_points_the_same_way(groups: Sequence[PathwayGroup]) -> None:
    central, _ = hypergradient("central-difference", groups=groups)
    exact, _ = hypergradient("exact", groups=groups)
    assert cosine_similarity(central, exact, dim=0) > 0.99


def test_cheap_in_bfloat16_stays_close_to_exact_in_float32() -> None:
    """On real images: with random labels the hypergradient is all noise, in bfloat16 other noise."""
    digits = list(ClassificationData(DATA, 0).train_batches(64, 22))
    trained = make_stepper()
    trained.pair.student.train()
    for step, batch in enumerate(digits[:-2]):
        trained.plain(batch, weights(trained), step)
    found = []
    for name, precision in (("exact", "float32"), ("cheap", "bfloat16")):
        stepper = copy.deepcopy(trained)
        stepper.precision = precision
        found.append(BILEVEL_STEPS[name](stepper)(*digits[-2:], weights(stepper), 20)[2])
    assert cosine_similarity(*found, dim=0) > 0.99


def test_exact_is_the_derivative_of_the_outer_loss_after_a_step() -> None:
    """Independent check: move one weight a little, take the step anew, and look at the outer loss in float64."""
    exact, _ = hypergradient("exact", steps=0)
    inner, outer = batches()

    def outer_loss(k: int, change: float) -> float:
        stepper = in_float64(make_stepper())
        moved = weights(stepper).double()
        moved[k] += change
        stepper.plain(batch_in_float64(inner), moved, 0)
        return outer_gradient(stepper, batch_in_float64(outer), 0)[0].task.item()

    for k in (0, 4, exact.numel() - 1):
        derivative = (outer_loss(k, 1e-2) - outer_loss(k, -1e-2)) / 2e-2
        assert exact[k].item() == pytest.approx(derivative, rel=0.05, abs=0.02 * exact.abs().max().item())


@every_kind_of_block
@pytest.mark.parametrize("name", list(BILEVEL_STEPS))
def test_a_search_step_trains_the_student_as_a_plain_step_does(name: str, groups: Sequence[PathwayGroup]) -> None:
    """Weights, transform blocks and running statistics: neither the outer batch nor a shifted forward is seen."""
    _, searched = hypergradient(name, groups=groups, momentum=0.9)
    plain = make_stepper(groups=groups, momentum=0.9)
    plain.pair.student.train()
    inner, _ = batches()
    for step in range(4):
        plain.plain(inner, weights(plain), step)
    for mine, theirs in zip(searched.pair.trained_modules(), plain.pair.trained_modules(), strict=True):
        for key, value in mine.state_dict().items():
            torch.testing.assert_close(value, theirs.state_dict()[key], rtol=1e-4, atol=1e-5, msg=key)


def test_the_teacher_is_never_touched() -> None:
    before = {k: v.clone() for k, v in make_stepper().pair.teacher.state_dict().items()}  # type: ignore[union-attr]
    _, stepper = hypergradient("cheap")
    assert stepper.pair.teacher is not None
    assert not stepper.pair.teacher.training
    assert all(torch.equal(before[k], v) for k, v in stepper.pair.teacher.state_dict().items())
    assert all(p.grad is None for p in stepper.pair.teacher.parameters())
