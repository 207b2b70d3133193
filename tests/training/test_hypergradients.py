"""The three ways to the hypergradient agree, train the student alike, and leave running statistics alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

from distpro_cli.errors import DistproError
from distpro_cli.networks.build import build_network
from distpro_cli.pathways.connections import resolve_pathways
from distpro_cli.pathways.module import Pathways
from distpro_cli.recipe.schema import PathwayGroup
from distpro_cli.tasks.task import Batch, Task, find_task
from distpro_cli.training.hypergradients import HYPERGRADIENTS, make_hypergradient
from distpro_cli.training.hypergradients.base import outer_gradient
from distpro_cli.training.step import Distiller, Pair
from tests.helpers import CPU, classification, digits_recipe

RECIPE = digits_recipe()

OWN_BLOCKS = (PathwayGroup(), PathwayGroup(connections="same", transform="conv1", distance="mse"))
# Pathways that share a chain, beside others that do not; two chains, since their widths differ.
SHARED_BLOCKS = (
    PathwayGroup(connections="same", transform="review"),
    PathwayGroup(connections="lower", transform="review", transform_options={"mid": 8}, distance="mse"),
    PathwayGroup(connections=[[3, 1], [4, 4]], transform="conv1"),
)


class InFloat64(find_task("classification")):  # type: ignore[misc]
    """The task's own loss is float32; this one is torch's."""

    def losses(self, output: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"cross_entropy": cross_entropy(output, targets)}


def make_distiller(
    seed: int = 0,
    *,
    groups: Sequence[PathwayGroup] = OWN_BLOCKS,
    momentum: float = 0.0,
    precision: str = "float32",
    task: Task | None = None,
) -> Distiller:
    torch.manual_seed(seed)
    task = task or classification()
    student = build_network(RECIPE.student, RECIPE.data, task)
    teacher = build_network(RECIPE.teacher, RECIPE.data, task).eval().requires_grad_(False)
    pair = Pair(student.train(), teacher, Pathways(resolve_pathways(list(groups), teacher.levels, student.levels)))
    parameters = [p for module in pair.modules().values() for p in module.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=momentum)
    return Distiller(pair, optimizer, task, device=CPU, precision=precision)


def batches(seed: int = 1) -> tuple[Batch, Batch]:
    generator = torch.Generator().manual_seed(seed)
    made = [
        Batch(torch.rand(16, 3, 32, 32, generator=generator), torch.randint(0, 10, (16,), generator=generator))
        for _ in range(2)
    ]
    return made[0], made[1]


def weights(distiller: Distiller) -> Tensor:
    return torch.linspace(0.2, 1.5, len(distiller.trained.infos))


def in_float64(groups: Sequence[PathwayGroup] = OWN_BLOCKS) -> Distiller:
    distiller = make_distiller(groups=groups, task=InFloat64(RECIPE, RECIPE.distill))
    for module in (distiller.student, distiller.teacher, distiller.pathways):
        module.double()
    return distiller


def batch_in_float64(batch: Batch) -> Batch:
    return Batch(batch.images_bchw.double(), batch.targets)


def hypergradient(
    name: str, *, steps: int = 3, groups: Sequence[PathwayGroup] = OWN_BLOCKS, momentum: float = 0.0
) -> tuple[Tensor, Distiller]:
    distiller = make_distiller(groups=groups, momentum=momentum)
    inner, outer = batches()
    for step in range(steps):
        distiller.step(inner, weights(distiller), step)
    return make_hypergradient(name, distiller).step(inner, outer, weights(distiller), steps)[2], distiller


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
def test_cheap_converges_to_the_exact_hypergradient_in_float64(groups: Sequence[PathwayGroup]) -> None:
    results = []
    for name, options in (("cheap", {"shift_length": 1e-7}), ("exact", {})):
        distiller, (inner, outer) = in_float64(groups), map(batch_in_float64, batches())
        moved = weights(distiller).double()
        distiller.step(inner, moved, 0)
        results.append(make_hypergradient(name, distiller, options).step(inner, outer, moved, 1)[2])
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3 * results[1].abs().max().item())


@every_kind_of_block
def test_central_difference_points_the_same_way(groups: Sequence[PathwayGroup]) -> None:
    central, _ = hypergradient("central-difference", groups=groups)
    exact, _ = hypergradient("exact", groups=groups)
    assert cosine_similarity(central, exact, dim=0) > 0.99


def test_cheap_in_bfloat16_stays_close_to_exact_in_float32() -> None:
    """On real images: with random labels the hypergradient is all noise, in bfloat16 other noise."""
    digits = list(classification().data(RECIPE.data, 0).train_batches(64, 22))
    trained = make_distiller()
    for step, batch in enumerate(digits[:-2]):
        trained.step(batch, weights(trained), step)
    found = []
    for name, precision in (("exact", "float32"), ("cheap", "bfloat16")):
        distiller = copy.deepcopy(trained)
        distiller.precision = precision
        inner, outer = digits[-2:]
        found.append(make_hypergradient(name, distiller).step(inner, outer, weights(distiller), 20)[2])
    assert cosine_similarity(*found, dim=0) > 0.99


def test_exact_is_the_derivative_of_the_outer_loss_after_a_step() -> None:
    """Independent check: move one weight a little, repeat the step, and look at the outer loss in float64."""
    exact, _ = hypergradient("exact", steps=0)
    inner, outer = batches()

    def outer_loss(k: int, change: float) -> float:
        distiller = in_float64()
        moved = weights(distiller).double()
        moved[k] += change
        distiller.step(batch_in_float64(inner), moved, 0)
        return outer_gradient(distiller, batch_in_float64(outer), 0)[0].task.item()

    for k in (0, 4, exact.numel() - 1):
        derivative = (outer_loss(k, 1e-2) - outer_loss(k, -1e-2)) / 2e-2
        assert exact[k].item() == pytest.approx(derivative, rel=0.05, abs=0.02 * exact.abs().max().item())


@every_kind_of_block
@pytest.mark.parametrize("name", HYPERGRADIENTS.names())
def test_a_search_step_trains_the_student_as_a_plain_step_does(name: str, groups: Sequence[PathwayGroup]) -> None:
    """Weights, transform blocks and running statistics: neither the outer batch nor a shifted forward is seen."""
    _, searched = hypergradient(name, groups=groups, momentum=0.9)
    plain = make_distiller(groups=groups, momentum=0.9)
    inner, _ = batches()
    for step in range(4):
        plain.step(inner, weights(plain), step)
    for mine, theirs in zip(searched.trained.modules().values(), plain.trained.modules().values(), strict=True):
        for key, value in mine.state_dict().items():
            if name == "exact":  # autograd through the whole graph sums in another order
                torch.testing.assert_close(value, theirs.state_dict()[key], rtol=1e-4, atol=1e-5, msg=key)
            else:
                assert torch.equal(value, theirs.state_dict()[key]), key


@every_kind_of_block
def test_a_plain_step_is_the_gradient_of_the_weighted_sum(groups: Sequence[PathwayGroup]) -> None:
    """Against autograd through the whole graph at once, in float64; pathways that are off take no part."""
    distiller, (inner, _) = in_float64(groups), map(batch_in_float64, batches())
    values = weights(distiller).tolist()
    values[1] = 0.0
    reference = copy.deepcopy(distiller)
    distiller.backward(inner, values, 0)
    active = [k for k, value in enumerate(values) if value]
    teacher = reference.teacher_features(inner, active)
    output, own = reference.student_forward(inner, reference.pathways.student_levels(active), 0)
    _, total = reference.task_loss(output, inner.targets)
    for k, distance in reference.pathways(own, teacher, active).items():
        total = total + values[k] * distance
    total.backward()
    for ours, theirs in zip(distiller.trained.modules().values(), reference.trained.modules().values(), strict=True):
        expected = dict(theirs.named_parameters())
        for key, parameter in ours.named_parameters():
            if expected[key].grad is None:
                assert parameter.grad is None, key
            else:
                wanted = expected[key].grad
                # Distances are float32 whatever comes in.
                torch.testing.assert_close(parameter.grad, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


def test_the_teacher_is_never_touched() -> None:
    before = {k: v.clone() for k, v in make_distiller().teacher.state_dict().items()}
    _, distiller = hypergradient("cheap")
    assert not distiller.teacher.training
    assert all(torch.equal(before[k], v) for k, v in distiller.teacher.state_dict().items())
    assert all(p.grad is None for p in distiller.teacher.parameters())


def test_options_are_checked() -> None:
    with pytest.raises(DistproError, match=r"has no option 'shift' \(did you mean 'shift_length'\?\)"):
        make_hypergradient("cheap", make_distiller(), {"shift": 1})
    with pytest.raises(DistproError, match="'shift_length' is -1; it must be a number above 0"):
        make_hypergradient("central-difference", make_distiller(), {"shift_length": -1})
