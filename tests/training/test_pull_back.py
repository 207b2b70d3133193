"""The way back through the optimiser: against finite differences of the real step, in float64."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from timm.optim import create_optimizer_v2
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

from distpro_cli.networks.build import build_network
from distpro_cli.pathways.connections import resolve_pathways
from distpro_cli.pathways.module import Pathways
from distpro_cli.recipe.load import parse_recipe
from distpro_cli.recipe.schema import Optimizer
from distpro_cli.tasks.task import Batch, find_task
from distpro_cli.training.hypergradients import make_hypergradient
from distpro_cli.training.hypergradients.base import outer_gradient
from distpro_cli.training.optimiser import make_optimizer
from distpro_cli.training.pull_back import inner_product, missing_pull_back, pull_back
from distpro_cli.training.step import Distiller, Pair
from tests.helpers import CPU

CNN = """\
data: {name: digits, image_size: 16, workers: 0}
teacher: {name: wrn_10_1}
student: {name: wrn_10_1}
pathways:
- {connections: [[2, 1], [3, 3]], transform: conv1}
- {connections: [[1, 1], [3, 2]], transform: review, transform_options: {mid: 8}}
"""
VIT = """\
data: {name: digits, image_size: 16, workers: 0}
teacher: {name: vit_tiny_patch16_224, options: {depth: 2, embed_dim: 36, num_heads: 3, patch_size: 4}}
student:
  name: vit_tiny_patch16_224
  options: {depth: 2, embed_dim: 24, num_heads: 2, patch_size: 4, drop_rate: 0.1, proj_drop_rate: 0.1,
            drop_path_rate: 0.2}
pathways: [{connections: [[1, 1], [2, 1], [2, 2]]}]
"""
PAIRS = {"cnn": CNN, "vit": VIT}
STATES = (3, 8, 16, 28, 45)  # steps before the one that is looked at
BATCH_SIZE = 16


class InFloat64(find_task("classification")):  # type: ignore[misc]
    """The task's own loss is float32; this one is torch's."""

    def losses(self, output: Tensor, targets: Any) -> dict[str, Tensor]:
        return {"cross_entropy": cross_entropy(output, targets)}


def make_distiller(text: str, optimizer: Optimizer, clip_grad: float | None = None) -> tuple[Distiller, list[Batch]]:
    recipe = parse_recipe(text)
    task = InFloat64(recipe, recipe.distill)
    torch.manual_seed(0)
    student = build_network(recipe.student, recipe.data, task)
    teacher = build_network(recipe.teacher, recipe.data, task).eval().requires_grad_(False)
    pathways = Pathways(resolve_pathways(recipe.pathways, teacher.levels, student.levels))
    pair = Pair(student.train(), teacher, pathways.train())
    made = make_optimizer(pair.modules(), optimizer)
    batches = list(task.data(recipe.data, 0).train_batches(BATCH_SIZE, STATES[-1] + 2))
    return Distiller(pair, made, task, device=CPU, clip_grad=clip_grad), batches


def weights(distiller: Distiller) -> Tensor:
    return torch.linspace(0.5, 1.5, len(distiller.trained.infos))


def in_float64(distiller: Distiller) -> Distiller:
    """Returns a copy whose networks, blocks and optimiser are float64."""
    distiller = copy.deepcopy(distiller)
    for module in (distiller.student, distiller.teacher, distiller.pathways):
        module.double()
    for state in distiller.optimizer.state.values():
        for name, value in state.items():
            if name != "step" and isinstance(value, Tensor):
                state[name] = value.double()
    return distiller


def batch_in_float64(batch: Batch) -> Batch:
    return Batch(batch.images_bchw.double(), batch.targets)


def finite_difference(distiller: Distiller, inner: Batch, outer: Batch, step: int, change: float = 1e-3) -> Tensor:
    """Returns how the outer loss changes when a weight is moved and the step is taken, weight by weight."""
    start = in_float64(distiller)
    inner, outer = batch_in_float64(inner), batch_in_float64(outer)

    def outer_loss(k: int, change: float) -> float:
        moved = copy.deepcopy(start)
        weights_k = weights(moved).double()
        weights_k[k] += change
        moved.step(inner, weights_k, step)
        return outer_gradient(moved, outer, step)[0].task.item()

    num_pathways = len(distiller.trained.infos)
    return torch.tensor([(outer_loss(k, change) - outer_loss(k, -change)) / (2 * change) for k in range(num_pathways)])


def assert_agree(found: Tensor, truth: Tensor) -> None:
    assert cosine_similarity(found, truth, dim=0) >= 0.99
    large = truth.abs() > 0.05 * truth.abs().max()
    assert torch.equal(found[large].sign(), truth[large].sign())
    assert found.norm().item() == pytest.approx(truth.norm().item(), rel=0.2)


def check_states(pair: str, optimizer: Optimizer, clip_grad: float | None, states: Sequence[int]) -> None:
    """Trains, and compares both hypergradients with the finite difference after so many steps."""
    distiller, batches = make_distiller(PAIRS[pair], optimizer, clip_grad)
    for step in range(states[-1] + 1):
        if step in states:
            inner, outer = batches[step : step + 2]
            truth = finite_difference(distiller, inner, outer, step)
            truth /= momentum_factor(distiller.optimizer.param_groups[0])
            for kind in ("cheap", "exact"):
                copied = copy.deepcopy(distiller)
                assert_agree(make_hypergradient(kind, copied).step(inner, outer, weights(copied), step)[2], truth)
        distiller.step(batches[step], weights(distiller), step)


@pytest.mark.parametrize("clip_grad", [None, 0.5])
@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(Optimizer(name="momentum", lr=0.02, momentum=0.0), id="sgd"),
        pytest.param(Optimizer(name="sgd", lr=0.02), id="nesterov"),
        pytest.param(Optimizer(name="adamw", lr=2e-3, weight_decay=0.05, no_decay=True), id="adamw"),
    ],
)
@pytest.mark.parametrize("pair", list(PAIRS))
def test_the_hypergradient_is_the_derivative_through_the_step(
    pair: str, optimizer: Optimizer, clip_grad: float | None
) -> None:
    check_states(pair, optimizer, clip_grad, STATES)


@pytest.mark.parametrize("pair", list(PAIRS))
def test_the_hypergradient_passes_lambs_own_clipping(pair: str) -> None:
    check_states(pair, Optimizer(name="lamb", lr=2e-3, weight_decay=0.05, no_decay=True), None, [8])


def random_update(name: str, **options: Any) -> tuple[torch.optim.Optimizer, list[Tensor], list[Tensor], list[Tensor]]:
    """Returns an optimiser of two groups after some steps, its parameters, the next gradients and a v, in float64."""
    generator = torch.Generator().manual_seed(0)

    def draw(scale: float) -> list[Tensor]:
        return [scale * torch.randn(shape, generator=generator).double() for shape in ((4, 3), (5,), (2, 2))]

    parameters = [p.requires_grad_() for p in draw(0.5)]
    groups = [
        {"params": parameters[:2], "weight_decay": 0.1},
        {"params": parameters[2:], "weight_decay": 0.0, "lr": 3e-3},
    ]
    optimizer = create_optimizer_v2(groups, opt=name, lr=1e-2, **options)
    for _ in range(4):
        take_step(optimizer, parameters, draw(0.1))
    return optimizer, parameters, draw(0.1), draw(1.0)


def take_step(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("momentum", {"momentum": 0.0}),
        ("momentum", {}),
        ("momentum", {"dampening": 0.3}),
        ("sgd", {}),
        ("sgd", {"foreach": True}),
        ("sgdw", {}),
        ("csgdw", {}),
        ("adam", {}),
        ("adam", {"amsgrad": True}),
        ("adam", {"fused": True, "betas": (0.5, 0.9)}),
        ("adamw", {}),
        ("adamw", {"foreach": True}),
        ("cadamw", {}),
        ("lamb", {"max_grad_norm": None}),
        ("lamb", {"max_grad_norm": None, "always_adapt": True, "bias_correction": False, "grad_averaging": False}),
        ("lambc", {"max_grad_norm": None, "eps": 2.0}),
        ("lambw", {"max_grad_norm": None, "foreach": False}),
        ("clamb", {"max_grad_norm": None}),
    ],
)
def test_the_pull_back_is_the_transpose_of_the_step(name: str, options: dict[str, Any]) -> None:
    optimizer, parameters, gradients, v = random_update(name, **options)
    assert missing_pull_back(optimizer) is None
    torch.manual_seed(0)  # whatever ran before
    directions = [torch.randn_like(p) for p in parameters]

    def outcome(shift: float) -> float:
        moved, stepped = copy.deepcopy((parameters, optimizer))
        take_step(stepped, moved, [g + shift * d for g, d in zip(gradients, directions, strict=True)])
        return inner_product(moved, v).item()

    truth = (outcome(1e-6) - outcome(-1e-6)) / 2e-6
    before = [p.detach().clone() for p in parameters]
    take_step(optimizer, parameters, gradients)
    u = pull_back(optimizer, parameters, before, gradients, v)
    left_out = momentum_factor(optimizer.param_groups[0])
    assert -1e-2 * left_out * inner_product(u, directions).item() == pytest.approx(truth, rel=1e-5)


def momentum_factor(options: Mapping[str, Any]) -> float:
    """Returns how much of a gradient goes into the step of momentum SGD at once; u is without this factor."""
    if not options.get("momentum"):
        return 1.0
    share = 1.0 - options["dampening"]
    return float(1.0 + options["momentum"] * share if options["nesterov"] else share)


def test_plain_sgd_gives_v_itself() -> None:
    optimizer, parameters, gradients, v = random_update("momentum", momentum=0.0)
    u = pull_back(optimizer, parameters[:2], parameters[:2], gradients[:2], v[:2])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(u, v[:2], strict=True))


def test_what_never_had_a_gradient_stays_finite() -> None:
    parameter = torch.zeros(3, requires_grad=True)
    for name in ("adamw", "lamb", "lion"):
        optimizer = create_optimizer_v2([parameter], opt=name, lr=1e-2)
        gradients = [torch.tensor([0.0, 0.0, 1.0])]
        take_step(optimizer, [parameter], gradients)
        u = pull_back(optimizer, [parameter], [torch.ones(3)], gradients, [torch.ones(3)])
        assert torch.isfinite(u[0]).all()
        assert pull_back(optimizer, [parameter], [torch.ones(3)], [None], [torch.ones(3)])[0].abs().sum() == 0


def test_lions_surrogate_is_the_derivative_of_the_signs_mean() -> None:
    """Against draws of what the sign is taken of: normal around the momentum, as wide as the momenta of the tensor."""
    optimizer, parameters, gradients, v = random_update("lion")
    take_step(optimizer, parameters, gradients)
    u = pull_back(optimizer, parameters, parameters, gradients, v)[0]
    momentum = optimizer.state[parameters[0]]["exp_avg"]
    width = momentum.square().mean().sqrt()
    draws = momentum + width * torch.randn(200_000, *momentum.shape)
    shift = 0.1 * width
    slope = ((draws + shift).sign() - (draws - shift).sign()).mean(0) / (2 * shift)
    torch.testing.assert_close(u, 0.1 * slope * v[0], rtol=0.05, atol=1e-3)


def test_an_unknown_optimiser_passes_as_plain_sgd_and_is_named() -> None:
    optimizer, parameters, gradients, v = random_update("adagrad")
    assert missing_pull_back(optimizer) == (
        "the hypergradient passes Adagrad as if it were plain SGD and may point elsewhere; "
        "it goes exactly through SGD, SGDW, AdamW, AdamWLegacy, Adam and Lamb, and through Lion by a surrogate"
    )
    assert torch.equal(pull_back(optimizer, parameters, parameters, gradients, v)[0], v[0])


def test_clipping_measures_student_and_transform_blocks_together() -> None:
    distiller, batches = make_distiller(CNN, Optimizer(name="momentum", lr=1.0, momentum=0, weight_decay=0), 0.1)
    before = [p.detach().clone() for p in distiller.trained_parameters]
    distiller.step(batches[0], weights(distiller), 0)
    moves = [p.detach() - old for p, old in zip(distiller.trained_parameters, before, strict=True)]
    assert torch.cat([move.flatten() for move in moves]).norm().item() == pytest.approx(0.1, rel=1e-4)
