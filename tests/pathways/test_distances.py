"""The behaviour every distance must show, and its numbers against formulas written down independently."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
import torch.nn.functional as F
from torch import Tensor

from distpro_cli.errors import DistproError
from distpro_cli.pathways.distances import DISTANCES, make_distance
from distpro_cli.process.pathway import LevelInfo
from tests.pathways.levels import level

SHAPES = {
    "map that divides": (4, 5, 8, 8),
    "map of 4": (4, 5, 4, 4),
    "map that does not divide": (4, 5, 7, 7),
    "map of 14": (3, 5, 14, 14),
    "not square": (4, 5, 8, 6),
    "high and narrow": (4, 5, 8, 2),
    "map of 3": (4, 5, 3, 3),
    "map of 2": (4, 5, 2, 2),
    "one cell": (4, 5, 1, 1),
    "tokens": (4, 17, 6),
    "vector": (4, 10),
}
MEANS_NOTHING = {
    "kl": {s for s, shape in SHAPES.items() if len(shape) != 2},
    "hard-label": {s for s, shape in SHAPES.items() if len(shape) != 2},
    "attention-map": {"vector", "one cell"},
    "relations": {"vector", "one cell"},
}
OVER_THE_BATCH = {"pkd"}  # an image alone says nothing of what it compares
CASES = [
    pytest.param(name, shape, id=f"{name}: {s}")
    for name in DISTANCES.names()
    for s, shape in SHAPES.items()
    if s not in MEANS_NOTHING.get(name, ())
]
every_case = pytest.mark.parametrize(("name", "shape"), CASES)


def pair(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """A prediction and a target of this shape."""
    generator = torch.Generator().manual_seed(len(shape) + sum(shape))
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def naive_hcl(prediction: Tensor, target: Tensor) -> Tensor:
    """ReviewKD's loss as its authors wrote it."""
    loss = F.mse_loss(prediction, target)
    if prediction.ndim != 4:
        return loss
    weight, total = 1.0, 1.0
    for size in (4, 2, 1):
        if size >= prediction.shape[2]:
            continue
        pooled = [F.adaptive_avg_pool2d(tensor, size) for tensor in (prediction, target)]
        weight /= 2
        loss = loss + F.mse_loss(*pooled) * weight
        total += weight
    return loss / total


def naive_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    if prediction.ndim == 4:
        prediction, target = prediction.permute(0, 2, 3, 1), target.permute(0, 2, 3, 1)
    return (1 - (prediction * target).sum(-1) / (prediction.norm(dim=-1) * target.norm(dim=-1))).mean()


def naive_kl(prediction: Tensor, target: Tensor) -> Tensor:
    teacher, student = torch.softmax(target / 4, 1), torch.softmax(prediction / 4, 1)
    return 16 * (teacher * (teacher.log() - student.log())).sum(1).mean()


def naive_attention_map(prediction: Tensor, target: Tensor) -> Tensor:
    if prediction.ndim == 3:  # tokens, as a map of one column
        prediction, target = (tensor.transpose(1, 2)[..., None] for tensor in (prediction, target))
    strength = [torch.einsum("bchw,bchw->bhw", tensor, tensor) for tensor in (prediction, target)]
    lengths = [(map_bhw**2).sum((1, 2), keepdim=True).sqrt() for map_bhw in strength]
    return ((strength[0] / lengths[0] - strength[1] / lengths[1]) ** 2).mean()


def naive_relations(prediction: Tensor, target: Tensor) -> Tensor:
    grams = []
    for tensor in (prediction, target):
        tokens = tensor.flatten(2) if tensor.ndim == 4 else tensor.transpose(1, 2)
        dots = torch.einsum("bcn,bcm->bnm", tokens, tokens)
        lengths = dots.diagonal(dim1=1, dim2=2).sqrt()
        grams.append(dots / lengths[:, :, None] / lengths[:, None, :])
    return (grams[0] - grams[1]).square().mean()


def naive_pkd(prediction: Tensor, target: Tensor) -> Tensor:
    channels = 1 if prediction.ndim == 4 else -1
    rows = [side.movedim(channels, 0).flatten(1) for side in (prediction, target)]
    correlations = torch.corrcoef(torch.cat(rows))[: len(rows[0]), len(rows[0]) :].diagonal()
    return (1 - correlations).mean()


NAIVE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "hcl": naive_hcl,
    "mse": lambda prediction, target: (prediction - target).square().mean(),
    "l1": lambda prediction, target: (prediction - target).abs().mean(),
    "cosine": naive_cosine,
    "attention-map": naive_attention_map,
    "kl": naive_kl,
    "relations": naive_relations,
    "pkd": naive_pkd,
    "hard-label": lambda prediction, target: F.cross_entropy(prediction, target.argmax(1)),
}


@every_case
def test_value_and_gradient_match_the_formula(name: str, shape: tuple[int, ...]) -> None:
    prediction, target = pair(shape)
    exact = prediction.double().requires_grad_()
    expected = NAIVE[name](exact, target.double())
    expected.backward()
    given = prediction.requires_grad_()
    found = make_distance(name)(given, target)
    (3 * found).backward()
    assert found.ndim == 0 and found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert given.grad is not None and exact.grad is not None
    assert torch.allclose(given.grad.double() / 3, exact.grad, rtol=1e-4, atol=1e-6 if name == "pkd" else 1e-8)


@every_case
def test_zero_at_equality_and_never_below(name: str, shape: tuple[int, ...]) -> None:
    prediction, target = pair(shape)
    distance = make_distance(name)
    assert distance(prediction, target) > 0
    if name == "hard-label":  # a label says less than the logits
        return
    equal = prediction.clone().requires_grad_()
    found = distance(equal, prediction)
    found.backward()
    assert 0 <= found.item() < 1e-6
    assert equal.grad is not None and equal.grad.abs().max() < 1e-6


@every_case
def test_finite_where_a_feature_is_dead(name: str, shape: tuple[int, ...]) -> None:
    _, target = pair(shape)
    dead = torch.zeros(shape, requires_grad=True)
    found = make_distance(name)(dead, target)
    found.backward()
    assert torch.isfinite(found)
    assert dead.grad is not None and torch.isfinite(dead.grad).all()


@every_case
def test_is_a_mean_over_the_batch(name: str, shape: tuple[int, ...]) -> None:
    prediction, target = pair(shape)
    distance = make_distance(name)
    twice = distance(torch.cat([prediction, prediction]), torch.cat([target, target]))
    assert twice.item() == pytest.approx(distance(prediction, target).item(), rel=1e-5)
    if name in OVER_THE_BATCH:
        return
    apart = [distance(prediction[n : n + 1], target[n : n + 1]).item() for n in range(len(target))]
    assert np.mean(apart) == pytest.approx(twice.item(), rel=1e-5)


@every_case
def test_float32_under_autocast_and_from_bfloat16(name: str, shape: tuple[int, ...]) -> None:
    prediction, target = (tensor.bfloat16() for tensor in pair(shape))
    expected = make_distance(name)(prediction.float(), target.float())
    prediction.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = make_distance(name)(prediction, target)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    found.backward()
    assert prediction.grad is not None and prediction.grad.dtype == torch.bfloat16


@every_case
def test_memory_format_changes_nothing(name: str, shape: tuple[int, ...]) -> None:
    if len(shape) != 4:
        pytest.skip("has one memory format")
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        prediction, target = (tensor.to(memory_format=memory_format) for tensor in pair(shape))
        prediction.requires_grad_()
        found = make_distance(name)(prediction, target)
        found.backward()
        assert prediction.grad is not None
        results.append((found.detach(), prediction.grad))
    assert torch.allclose(results[0][0], results[1][0], rtol=1e-6)
    assert torch.allclose(results[0][1], results[1][1], rtol=1e-4, atol=1e-8)


def test_hcl_accepts_strided_features() -> None:
    prediction, target = pair((4, 5, 8, 8))
    broadcast = prediction[:, :, :1, :1].clone().requires_grad_()
    found = make_distance("hcl")(broadcast.expand(-1, -1, 8, 8), target)
    assert found.item() == pytest.approx(naive_hcl(broadcast.expand(-1, -1, 8, 8), target).item(), rel=1e-5)
    found.backward()
    turned = prediction.transpose(2, 3).requires_grad_()
    make_distance("hcl")(turned, target.transpose(2, 3)).backward()


def test_kl_matches_scipy() -> None:
    prediction, target = pair((4, 10))
    for temperature in (1.0, 4.0):
        teacher = scipy.special.softmax(target.double().numpy() / temperature, axis=1)
        student = scipy.special.softmax(prediction.double().numpy() / temperature, axis=1)
        expected = temperature**2 * scipy.stats.entropy(teacher, student, axis=1).mean()
        found = make_distance("kl", {"temperature": temperature})(prediction, target)
        assert found.item() == pytest.approx(expected, rel=1e-5)


def test_smooth_l1_is_quadratic_near_zero() -> None:
    distance = make_distance("l1", {"smooth": 0.5})
    prediction, target = torch.tensor([[0.2, 2.0]]), torch.zeros(1, 2)
    assert distance(prediction, target).item() == pytest.approx((0.2**2 / (2 * 0.5) + 2.0 - 0.25) / 2)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "hlc",
            {},
            r"unknown distance 'hlc' \(did you mean 'hcl'\?\); there are: attention-map, cosine, hard-label, hcl, "
            "kl, l1, mse, pkd, relations",
        ),
        ("kl", {"temp": 2}, r"distance kl has no option 'temp' \(did you mean 'temperature'\?\)"),
        ("kl", {"temperature": 0}, "option 'temperature' is 0; it must be a number above 0"),
        ("l1", {"smooth": "yes"}, "option 'smooth' is 'yes'; it must be a number above 0"),
    ],
)
def test_errors(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DistproError, match=message):
        make_distance(name, options)


def test_kl_refuses_maps() -> None:
    make_distance("kl").check(level(10, kind="logits"))
    with pytest.raises(DistproError, match="kl compares logits or vectors, but the teacher's stage1 is map of shape"):
        make_distance("kl").check(level(6, 8, 8))


MAPS = [name for name in DISTANCES.names() if "map of 4" not in MEANS_NOTHING.get(name, ())]


@pytest.mark.parametrize("name", MAPS)
def test_padding_does_not_count(name: str) -> None:
    """Whatever stands there; images are measured as they would be alone, and no gradient reaches the padding."""
    prediction, target = pair((3, 5, 8, 8))
    filled = ((1.0, 1.0), (0.74, 0.5), (1.0, 0.01))
    sizes = [(8, 8), (6, 4), (8, 1)]
    distance = make_distance(name)
    given = prediction.clone().requires_grad_()
    found = distance(given, target, filled)
    found.backward()
    spoilt_prediction, spoilt_target = prediction.clone(), target.clone()
    assert given.grad is not None
    for n, (rows, columns) in enumerate(sizes):
        for side in (spoilt_prediction, spoilt_target, given.grad):
            beyond = torch.ones(8, 8, dtype=torch.bool)
            beyond[:rows, :columns] = False
            assert side is not given.grad or not side[n, :, beyond].any()
            side[n, :, beyond] = 100.0 * torch.rand(5, int(beyond.sum()))
    assert torch.equal(distance(spoilt_prediction, spoilt_target, filled), found)
    if name == "pkd":
        rows = [
            torch.cat([side[n, :, :h, :w].flatten(1) for n, (h, w) in enumerate(sizes)], 1)
            for side in (prediction, target)
        ]
        expected = naive_pkd(*(side[None, :, :, None] for side in rows)).item()
    else:
        expected = np.mean(
            [
                NAIVE[name](*(s[n : n + 1, :, :h, :w] for s in (prediction, target))).item()
                for n, (h, w) in enumerate(sizes)
            ]
        )
    assert found.item() == pytest.approx(expected, rel=1e-5)
    whole = distance(prediction, target, ((1.0, 1.0),) * 3)
    assert whole.item() == pytest.approx(distance(prediction, target).item(), rel=1e-6)


def test_hcl_by_hand() -> None:
    """Difference d at every cell but one; the sum of weights is 1, then 1 + 1/2 + 1/4 + 1/8 or fewer."""
    hcl = make_distance("hcl")
    one_cell = torch.full((1, 1, 1, 1), 3.0)
    assert hcl(one_cell, torch.zeros(1, 1, 1, 1)).item() == pytest.approx(9.0)  # no pool below a height of 1
    for size in (7, 8):
        difference = torch.zeros(1, 1, size, size)
        difference[0, 0, 0, 0] = 1.0
        # One cell of size² differs by 1: mean square 1/size². In a pool of c cells it is 1/c, its square over the
        # l² pools 1/(c² l²); 4×4 pools of a 7×7 map overlap, but hold the corner once, with 2×2 cells; so do the
        # 2×2 pools with 4×4 cells of both sizes.
        expected = (1 / size**2 + 1 / 2 / (4**2 * 16) + 1 / 4 / (16**2 * 4) + 1 / 8 / size**4) / (1 + 7 / 8)
        assert hcl(difference, torch.zeros_like(difference)).item() == pytest.approx(expected, rel=1e-6)
    # Height 2 and width 6: only the 1×1 pool is below the height. One cell in twelve, by 2.
    narrow = torch.zeros(1, 1, 2, 6)
    narrow[0, 0, 1, 5] = 2.0
    assert hcl(narrow, torch.zeros_like(narrow)).item() == pytest.approx((4 / 12 + (2 / 12) ** 2 / 2) / 1.5, rel=1e-6)
    # Height 8 and width 4: pools are 2×1, 4×2 and 8×4 cells.
    high = torch.zeros(1, 1, 8, 4)
    high[0, 0, 7, 0] = 1.0
    parts = 1 / 32 + 1 / 2 / (2**2 * 16) + 1 / 4 / (8**2 * 4) + 1 / 8 / 32**2
    assert hcl(high, torch.zeros_like(high)).item() == pytest.approx(parts / (1 + 7 / 8), rel=1e-6)


def test_attention_maps_by_hand() -> None:
    """Squares summed over channels: student (3, 4), scaled to length 1 (3/5, 4/5); teacher (0, 2), so (0, 1)."""
    student = torch.tensor([3.0, 4.0]).sqrt().reshape(1, 1, 1, 2)
    teacher = torch.tensor([[0.0, 1.0], [0.0, 1.0]]).reshape(1, 2, 1, 2)
    found = make_distance("attention-map")(student, teacher)
    assert found.item() == pytest.approx(((3 / 5) ** 2 + (4 / 5 - 1) ** 2) / 2)


def test_attention_maps_need_positions() -> None:
    attention = make_distance("attention-map")
    attention.check(level(6, 8, 8))
    attention.check(level(17, 6))
    for nowhere in (level(6), level(6, 1, 1), level(10, kind="logits")):
        with pytest.raises(DistproError, match="attention-map compares positions, but the teacher's stage1 is"):
            attention.check(nowhere)


def test_tokens_are_compared_on_their_grid() -> None:
    prediction, target = pair((3, 2 + 36, 5))
    info = LevelInfo(1, 1, "block", "tokens", 4, (38, 5), prefix=2, grid=(6, 6))
    maps = [tensor[:, 2:].transpose(1, 2).reshape(3, 5, 6, 6) for tensor in (prediction, target)]
    on_grid, before = naive_hcl(*maps), F.mse_loss(prediction[:, :2], target[:, :2])
    for options, expected in (({}, (36 * on_grid + 2 * before) / 38), ({"prefix": False}, on_grid)):
        given = prediction.clone().requires_grad_()
        distance = make_distance("hcl", options)
        distance.fit(info)
        found = distance(given, target)
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)
        found.backward()
        assert given.grad is not None
        assert bool(given.grad[:, :2].any()) == (not options)
    for prefix, first in ((False, 2), (True, 0)):
        relations = make_distance("relations", {"prefix": prefix})
        relations.fit(info)
        expected = naive_relations(prediction[:, first:], target[:, first:])
        assert relations(prediction, target).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("shape", [(4, 5, 6, 7), (4, 17, 6), (4, 10)])
def test_the_teacher_is_normalised_by_hand(shape: tuple[int, ...]) -> None:
    prediction, target = pair(shape)
    channels = 1 if len(shape) == 4 else -1
    mean, variance = target.mean(channels, keepdim=True), target.var(channels, correction=0, keepdim=True)
    normalized = (target * 3 + 2 - (mean * 3 + 2)) / (9 * variance + 1e-5).sqrt()
    found = make_distance("mse", {"normalize": True})(prediction, target * 3 + 2)
    assert found.item() == pytest.approx((prediction - normalized).square().mean().item(), rel=1e-4)
    smooth = make_distance("l1", {"normalize": True, "smooth": 1})(prediction, target * 3 + 2)
    assert smooth.item() == pytest.approx(F.smooth_l1_loss(prediction, normalized).item(), rel=1e-4)
    with pytest.raises(DistproError, match="option 'normalize' is 1; it must be true or false"):
        make_distance("mse", {"normalize": 1})
