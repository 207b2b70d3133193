"""The parts of a step: costs against sums done by hand, and which pathway needs which part."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distpro_cli.costs.complexity import without_computing
from distpro_cli.costs.operation_costs import OperationCosts
from distpro_cli.costs.step_costs import UPDATE_PASSES, step_parts
from distpro_cli.networks.build import build_network
from distpro_cli.networks.levels import TappedNetwork
from distpro_cli.pathways.connections import resolve_pathways
from distpro_cli.pathways.module import Pathways
from distpro_cli.process.cost import Part
from distpro_cli.process.machine import BUILT_IN, Machine, Work
from distpro_cli.recipe.schema import Data, Network, PathwayGroup
from tests.networks.stub import TASK

FLOAT = 4
FLOPS_PER_BYTE, BACKWARD_FACTOR = 6.0, 1.4  # of the built-in machine
SIZE, BATCH = 16, 8


def cost(num_bytes: float, flops: float = 0.0) -> float:
    return num_bytes + flops / FLOPS_PER_BYTE


def test_costs_by_hand() -> None:
    map_bchw, other = torch.zeros(2, 4, 8, 8), torch.zeros(2, 4, 8, 8)
    with OperationCosts() as spent:
        map_bchw + other
    assert spent.total == 3 * map_bchw.numel() * FLOAT
    with OperationCosts() as spent:
        map_bchw.relu_()
    assert spent.total == 2 * map_bchw.numel() * FLOAT
    with OperationCosts() as spent:
        map_bchw.flatten(1).t().detach().expand(-1, -1)[1:]
        torch.empty(100)
    assert spent.total == 0
    with OperationCosts() as spent:
        torch.zeros(3, 5) @ torch.zeros(5, 7)
    zeros = (15 + 35) * FLOAT
    assert spent.total == pytest.approx(zeros + cost((15 + 35 + 21) * FLOAT, 2 * 3 * 5 * 7))


@pytest.mark.parametrize("groups", [1, 4])
def test_a_convolution_forward_and_backward(groups: int) -> None:
    layer = nn.Conv2d(4, 8, 3, padding=1, groups=groups, bias=False)
    given = torch.zeros(2, 4, 6, 6, requires_grad=True)
    product = 2 * (2 * 8 * 36) * 9 * 4 // groups
    sizes = np.array([given.numel(), layer.weight.numel(), 2 * 8 * 36]) * FLOAT
    with OperationCosts() as forward:
        out = layer(given)
    assert forward.total == pytest.approx(cost(sizes.sum(), product))
    ones = torch.ones_like(out)
    with OperationCosts() as backward:
        out.backward(ones)
    both = cost(2 * sizes[0] + 2 * sizes[1] + sizes[2], 2 * BACKWARD_FACTOR * product)
    assert backward.total == pytest.approx(both)
    assert forward.work == Work(sizes.sum(), product, 0, 1)
    assert backward.work == Work(2 * sizes[0] + 2 * sizes[1] + sizes[2], 0, 2 * product, 1)


def test_views_run_no_kernel() -> None:
    map_bchw = torch.zeros(2, 4, 8, 8)
    with OperationCosts() as spent:
        (map_bchw.flatten(1).t()[1:] + 1).mul_(2)
    assert spent.work.operations == 2


def test_the_built_in_machine_adds_up_what_was_added_before_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Work] = []

    class Watched(Machine):
        def cost(self, work: Work) -> float:
            seen.append(work)
            return super().cost(work)

    monkeypatch.setattr("distpro_cli.costs.operation_costs.BUILT_IN", Watched())
    student = build_network(Network(name="wrn_10_1"), Data(name="digits", image_size=SIZE), TASK)
    with OperationCosts() as spent:
        output, _ = student(torch.zeros(BATCH, 3, SIZE, SIZE))
        output.square().sum().backward()
    total = 0.0
    for work in seen:
        total += work.moved_bytes + (work.flops + BACKWARD_FACTOR * work.backward_flops) / FLOPS_PER_BYTE
    assert spent.total == total > 0
    assert spent.work.operations == sum(work.moved_bytes > 0 for work in seen) > 50
    assert spent.work.backward_flops > spent.work.flops > 0


def test_a_part_holds_the_work_that_it_costs() -> None:
    parts, _ = parts_of(
        PathwayGroup(transform="conv1"),
        PathwayGroup(connections="same", transform="review", transform_options={"mid": 8}),
    )
    for part in parts.values():
        assert part.work is not None and part.work.moved_bytes > 0
        assert BUILT_IN.cost(part.work) == pytest.approx(part.cost, abs=2)  # both are rounded to whole numbers
    student = build_network(Network(name="wrn_10_1"), Data(name="digits", image_size=SIZE), TASK)
    with OperationCosts() as spent, torch.no_grad():
        student(torch.zeros(BATCH, 3, SIZE, SIZE))
    forward = parts["student forward"].work
    assert forward is not None and forward.flops == pytest.approx(spent.work.flops)
    assert parts["student update"].work == Work(UPDATE_PASSES * FLOAT * 77_850, 0, 0, 0)


def test_a_transposed_convolution() -> None:
    layer = nn.ConvTranspose2d(4, 8, 2, stride=2, bias=False)
    given = torch.zeros(2, 4, 6, 6)
    with OperationCosts() as spent, torch.no_grad():
        out = layer(given)
    moved = (given.numel() + layer.weight.numel() + out.numel()) * FLOAT
    assert spent.total == pytest.approx(cost(moved, 2 * given.numel() * 8 * 4))


def parts_of(*groups: PathwayGroup) -> tuple[dict[str, Part], Pathways]:
    data = Data(name="digits", image_size=SIZE)
    teacher = build_network(Network(name="wrn_16_2"), data, TASK)
    student = build_network(Network(name="wrn_10_1"), data, TASK)
    pathways = Pathways(resolve_pathways(groups, teacher.levels, student.levels))
    parts = step_parts(teacher, student, pathways, SIZE, BATCH)
    assert len({part.name for part in parts}) == len(parts)
    assert step_parts(teacher, student, pathways, SIZE, BATCH) == parts
    return {part.name: part for part in parts}, pathways


def test_every_part_and_whom_it_serves() -> None:
    parts, pathways = parts_of(PathwayGroup(transform="conv1"))
    ids = [info.id for info in pathways.infos]
    teacher = [f"teacher {level}" for level in (1, 2, 3, 4)]
    assert list(parts) == ["student forward", "student backward", "student update", *teacher, *ids]
    for level in (1, 2, 3, 4):
        columns = tuple(k for k, info in enumerate(pathways.infos) if info.teacher.number >= level)
        assert parts[f"teacher {level}"].pathways == columns
    assert all(parts[name].pathways == (k,) for k, name in enumerate(ids))
    assert parts["student forward"].pathways is None
    student_parameters = 77_850  # WRN-10-1 with 10 classes
    assert parts["student update"].cost == UPDATE_PASSES * FLOAT * student_parameters
    assert all(part.cost > 0 for part in parts.values())


def test_the_teachers_pieces_add_up_to_its_forward() -> None:
    parts, _ = parts_of(PathwayGroup(connections=[[1, 1], [4, 1]], transform="conv1"))
    teacher = build_network(Network(name="wrn_16_2"), Data(name="digits", image_size=SIZE), TASK).eval()
    with OperationCosts() as spent, torch.no_grad():
        teacher(torch.zeros(BATCH, 3, SIZE, SIZE), levels=[4], output=False)
    zeros = BATCH * 3 * SIZE * SIZE * FLOAT
    assert parts["teacher 1"].cost + parts["teacher 4"].cost == pytest.approx(spent.total, rel=1e-3)
    assert abs(spent.total - zeros) > 0


def test_a_shared_chain_is_cut_at_its_levels() -> None:
    parts, pathways = parts_of(PathwayGroup(connections="same", transform="review", transform_options={"mid": 16}))
    for level in (1, 2, 3, 4):
        shared = parts[f"shared 1 level {level}"]
        # Every level feeds the shallower ones.
        assert shared.pathways == tuple(k for k, info in enumerate(pathways.infos) if info.student.number <= level)
        assert shared.cost > 0
    assert parts["shared 1 level 1"].cost > parts["shared 1 level 2"].cost > parts["shared 1 level 3"].cost


def test_larger_batches_scale_all_but_the_update() -> None:
    data = Data(name="digits", image_size=SIZE)
    teacher, student = (build_network(Network(name="wrn_10_1"), data, TASK) for _ in range(2))
    pathways = Pathways(resolve_pathways([PathwayGroup(transform="conv1")], teacher.levels, student.levels))
    few, many = (step_parts(teacher, student, pathways, SIZE, batch) for batch in (64, 128))
    assert few[2].cost == many[2].cost
    assert many[0].cost == pytest.approx(2 * few[0].cost, rel=0.02)


def test_nothing_is_moved_by_looking() -> None:
    data = Data(name="digits", image_size=SIZE)
    teacher, student = (build_network(Network(name="wrn_10_1"), data, TASK) for _ in range(2))
    teacher.eval()
    pathways = Pathways(resolve_pathways([PathwayGroup(transform="conv2")], teacher.levels, student.levels))
    before = [tensor.clone() for module in (teacher, student, pathways) for tensor in module.state_dict().values()]
    random = torch.get_rng_state()
    step_parts(teacher, student, pathways, SIZE, BATCH)
    after = [tensor for module in (teacher, student, pathways) for tensor in module.state_dict().values()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert torch.equal(random, torch.get_rng_state())
    assert student.training and not teacher.training and all(p.grad is None for p in student.parameters())


class Net(nn.Module):
    """On its own it can run without values; `Looks` cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 64, 3, padding=1), nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images).mean((2, 3)))


class Looks(Net):
    def forward(self, images: Tensor) -> Tensor:
        assert images.max().item() < 100
        return super().forward(images)


@pytest.mark.parametrize("batch_size", [2, 96])
def test_a_network_that_needs_values_costs_the_same(batch_size: int) -> None:
    plain = {"mean": [0.5] * 3, "std": [0.5] * 3, "image_size": 8}
    group = PathwayGroup(connections="same", transform="identity")
    found = []
    for kind in (Net, Looks):
        teacher, student = (TappedNetwork(kind(), levels=["body"], **plain) for _ in range(2))
        pathways = Pathways(resolve_pathways([group], teacher.levels, student.levels))
        found.append([part.cost for part in step_parts(teacher, student, pathways, 8, batch_size)])
    # Looking reads the images once more, and the CPU copies a gradient that the meta device does not.
    assert found[1] == pytest.approx(found[0], rel=0.15)


def test_nothing_of_the_package_is_measured_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = set()

    def watched(module: nn.Module, measure: Any) -> Any:
        return without_computing(module, lambda copied, device: (devices.add(device), measure(copied, device))[1])

    monkeypatch.setattr("distpro_cli.costs.step_costs.without_computing", watched)
    parts_of(
        *(
            PathwayGroup(transform=transform, connections=[[3, 2]])
            for transform in ("conv1", "conv2", "conv3", "attention", "gated", "linear")
        ),
        PathwayGroup(transform="conv1", connections=[[3, 2]], distance="cosine"),
        PathwayGroup(transform="conv1", connections=[[3, 2]], distance="l1"),
        PathwayGroup(transform="review", connections="same"),
        PathwayGroup(transform="resize", connections=[[1, 1]], distance="attention-map"),
    )
    assert devices == {"meta"}


class Nested(Net):
    """Returns the same numbers in a dict of lists."""

    def forward(self, images: Tensor) -> Any:
        return {"scores": [super().forward(images)], "names": ["a"]}


def test_any_output_is_gone_back_from() -> None:
    plain = {"mean": [0.5] * 3, "std": [0.5] * 3, "image_size": 8}
    found = []
    for kind in (Net, Nested):
        teacher, student = (TappedNetwork(kind(), levels=["body"], **plain) for _ in range(2))
        group = PathwayGroup(connections="same", transform="identity")
        pathways = Pathways(resolve_pathways([group], teacher.levels, student.levels))
        found.append(step_parts(teacher, student, pathways, 8, BATCH))
    assert found[0] == found[1]
