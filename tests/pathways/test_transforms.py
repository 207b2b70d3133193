"""The behaviour every transform block must show, on every pair of shapes it can bring together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from distpro_cli.errors import DistproError
from distpro_cli.pathways.transforms import TRANSFORMS, make_transform
from distpro_cli.process.pathway import LevelInfo
from tests.pathways.levels import feature, level

PAIRS = {
    "same size": (level(6, 8, 8), level(12, 8, 8)),
    "student larger, divides": (level(6, 16, 16), level(12, 8, 8)),
    "student larger, does not divide": (level(6, 7, 7), level(12, 4, 4)),
    "student smaller, divides": (level(6, 4, 4), level(12, 8, 8)),
    "student smaller, does not divide": (level(6, 4, 4), level(12, 7, 7)),
    "not square": (level(6, 7, 10), level(12, 4, 5)),
    "larger one way, smaller the other": (level(6, 4, 9), level(12, 6, 5)),
    "teacher narrower": (level(12, 5, 5), level(3, 5, 5)),
    "vectors": (level(6), level(12)),
    "logits": (level(10, kind="logits"), level(10, kind="logits")),
    "map to vector": (level(6, 7, 7), level(12)),
    "vector to map": (level(6), level(12, 4, 5)),
    "one cell": (level(6, 1, 1), level(12, 1, 1)),
    "tokens": (level(17, 6), level(17, 12)),
    "tokens, other grid and prefix": (level(16, 6), level(38, 12)),
    "tokens, grids that are no squares": (
        replace(level(25, 6), prefix=1, grid=(4, 6)),
        replace(level(50, 12), prefix=2, grid=(6, 8)),
    ),
    "tokens to map": (level(17, 6), level(12, 7, 7)),
    "map to tokens": (level(6, 7, 7), level(18, 12)),
    "tokens to vector": (level(17, 6), level(12)),
    "vector to tokens": (level(6), level(17, 12)),
    "gridless tokens to vector": (level(13, 6), level(12)),
}
EQUAL_SHAPES = {
    "map": (level(6, 7, 5), level(6, 7, 5)),
    "tokens": (level(17, 6), level(17, 6)),
    "gridless tokens": (level(15, 6), level(15, 6)),
    "logits": (level(10, kind="logits"), level(10, kind="logits")),
}
TRAINED = [name for name in TRANSFORMS.names() if name not in ("identity", "resize")]
CASES = [pytest.param(name, *pair, id=f"{name}: {p}") for name in TRAINED for p, pair in PAIRS.items()]
CASES += [pytest.param("identity", *pair, id=f"identity: {p}") for p, pair in EQUAL_SHAPES.items()]
every_case = pytest.mark.parametrize(("name", "student", "teacher"), CASES)


@every_case
def test_reaches_the_teachers_shape(name: str, student: LevelInfo, teacher: LevelInfo) -> None:
    transform = make_transform(name, student, teacher)
    assert transform(feature(student)).shape == (2, *teacher.shape)
    assert transform.eval()(feature(student, 1)).shape == (1, *teacher.shape)


@every_case
def test_gradient_reaches_student_and_parameters(name: str, student: LevelInfo, teacher: LevelInfo) -> None:
    transform = make_transform(name, student, teacher)
    source = feature(student, 4).requires_grad_()
    F.mse_loss(transform(source), feature(teacher, 4, seed=1)).backward()
    assert source.grad is not None and torch.isfinite(source.grad).all()
    assert source.grad.abs().sum() > 0
    for parameter in transform.parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all()


@every_case
def test_memory_format_and_repetition_change_nothing(name: str, student: LevelInfo, teacher: LevelInfo) -> None:
    transform = make_transform(name, student, teacher)
    source, target = feature(student, 4), feature(teacher, 4, seed=1)

    def run(channels_last: bool) -> tuple[torch.Tensor, torch.Tensor]:
        flows = channels_last and source.ndim == 4
        given = source.to(memory_format=torch.channels_last) if flows else source.clone()
        given.requires_grad_()
        torch.manual_seed(0)  # for dropout
        carried = transform(given)
        F.mse_loss(carried, target).backward()
        assert given.grad is not None
        return carried.detach(), given.grad

    for one, other in zip(run(False), run(False), strict=True):
        assert torch.equal(one, other)
    transform.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for one, other in zip(run(False), run(True), strict=True):
        assert torch.allclose(one, other, atol=1e-4)


@every_case
def test_runs_under_bfloat16_autocast(name: str, student: LevelInfo, teacher: LevelInfo) -> None:
    transform = make_transform(name, student, teacher)
    for dtype in (torch.float32, torch.bfloat16):
        source = feature(student, 4).to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            carried = transform(source)
        assert carried.shape == (4, *teacher.shape)
        carried.float().square().mean().backward()
        assert source.grad is not None and torch.isfinite(source.grad).all()


AS_PUBLISHED = ("review", "gated")  # whose last convolution comes after the resize


@pytest.mark.parametrize("name", [name for name in TRAINED if name not in AS_PUBLISHED])
def test_convolves_at_the_smaller_resolution(name: str) -> None:
    large, small = level(6, 16, 16), level(6, 4, 4)
    for student, teacher in ((large, small), (small, large)):
        transform = make_transform(name, student, teacher)
        seen: list[tuple[int, ...]] = []
        for layer in transform.modules():
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(tuple(given[0].shape[2:])))
        transform(feature(student))
        assert set(seen) <= {(4, 4), (1, 1)}


def test_conv1_is_pooling_then_a_normalised_linear_map() -> None:
    student, teacher = level(6, 7, 7), level(12, 4, 4)
    transform = make_transform("conv1", student, teacher)
    source = feature(student, 4)
    weight = transform.layers[0].weight[:, :, 0, 0]  # type: ignore[union-attr, index]
    mapped = torch.einsum("bchw,dc->bdhw", F.adaptive_avg_pool2d(source, 4), weight)
    mean, variance = mapped.mean((0, 2, 3), keepdim=True), mapped.var((0, 2, 3), keepdim=True, correction=0)
    assert torch.allclose(transform(source), (mapped - mean) / (variance + 1e-5).sqrt(), atol=1e-4)


class Released(nn.Module):
    """The released code's block, as its distiller.py lays out `build_feature_connector_complex`."""

    def __init__(self, student: int, teacher: int, size: tuple[int, int]) -> None:
        super().__init__()
        mid = min(512, student, teacher)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, 1, 1, bias=False) for a, b in ((student, mid), (mid, mid), (mid, teacher))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for channels in (mid, mid, teacher))
        self.gate = nn.Conv2d(mid, 1, 1, bias=False)
        self.size = size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norms[0](self.convolutions[0](x)))
        x = x * self.gate(x)
        x = F.relu(self.norms[1](self.convolutions[1](x)))
        out: torch.Tensor = self.norms[2](self.convolutions[2](F.interpolate(x, self.size, mode="nearest")))
        return out


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shapes", [((6, 8, 8), (12, 8, 8)), ((6, 4, 4), (12, 8, 8)), ((12, 5, 5), (3, 7, 7))])
def test_gated_is_the_released_block(shapes: tuple[tuple[int, ...], tuple[int, ...]], training: bool) -> None:
    student, teacher = (level(*shape) for shape in shapes)
    transform = make_transform("gated", student, teacher)
    published = Released(shapes[0][0], shapes[1][0], (shapes[1][1], shapes[1][2]))
    nn.init.uniform_(transform.first[1].bias)  # type: ignore[union-attr, index, arg-type]
    for n, layers in enumerate((transform.first, transform.second, transform.last)):
        published.convolutions[n].load_state_dict(layers[0].state_dict())  # type: ignore[union-attr, index, operator]
        published.norms[n].load_state_dict(layers[1].state_dict())  # type: ignore[union-attr, index, operator]
    published.gate.load_state_dict(transform.gate.state_dict())  # type: ignore[union-attr, arg-type]
    sources = [feature(student, 4).requires_grad_() for _ in range(2)]
    carried, expected = (
        block.train(training)(source) for block, source in zip((transform, published), sources, strict=True)
    )
    assert torch.allclose(carried, expected, atol=1e-5)
    for out in (carried, expected):
        out.square().mean().backward()
    assert torch.allclose(*(source.grad for source in sources), atol=1e-6)  # type: ignore[arg-type]
    gates = (transform.gate.weight.grad, published.gate.weight.grad)  # type: ignore[union-attr]
    assert torch.allclose(*gates, rtol=1e-4, atol=1e-6)  # type: ignore[arg-type]


def test_gated_pools_a_larger_student_first_and_is_drawn_as_released() -> None:
    student, teacher = level(600, 16, 16), level(700, 4, 4)
    transform = make_transform("gated", student, teacher)
    weights = [layer.weight for layer in transform.modules() if isinstance(layer, nn.Conv2d)]
    assert [tuple(weight.shape[:2]) for weight in weights] == [(512, 600), (1, 512), (512, 512), (700, 512)]
    for weight in (weights[0], weights[2], weights[3]):
        assert weight.std().item() == pytest.approx((2 / (9 * weight.shape[0])) ** 0.5, rel=0.01)
    seen = set()
    for layer in transform.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_pre_hook(lambda _, given: seen.add(tuple(given[0].shape[2:])))
    source = feature(student)
    assert torch.allclose(
        transform(source), transform(F.avg_pool2d(source, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)), atol=1e-3
    )
    assert seen == {(4, 4)}


@pytest.mark.parametrize(("student", "teacher"), PAIRS.values(), ids=PAIRS)
def test_resize_keeps_the_channels(student: LevelInfo, teacher: LevelInfo) -> None:
    transform = make_transform("resize", student, teacher)
    resized = transform(feature(student))
    channels = 1 if teacher.kind == "map" else -1
    expected = [2, *teacher.shape]
    expected[channels] = student.shape[0] if student.kind == "map" else student.shape[-1]
    assert list(resized.shape) == expected
    assert not list(transform.parameters())


def test_resize_is_pooling_or_repetition() -> None:
    source = feature(level(3, 8, 8))
    pooled = make_transform("resize", level(3, 8, 8), level(9, 4, 4))(source)
    assert torch.allclose(pooled, F.avg_pool2d(source, 2), atol=1e-6)
    grown = make_transform("resize", level(3, 8, 8), level(9, 16, 16))(source)
    assert torch.equal(grown, source.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_prefix_tokens() -> None:
    student, teacher = level(6, 4, 4), level(17, 12)
    carried = make_transform("conv1", student, teacher)(feature(student))
    assert torch.allclose(carried[:, 0], carried[:, 1:].mean(1), atol=1e-5)
    student, teacher = level(17, 6), level(18, 12)  # a class token each, and one token more at the teacher
    transform = make_transform("linear", student, teacher)
    carried = transform(feature(student))
    assert torch.allclose(carried[:, 0], transform.layer(feature(student)[:, 0]), atol=1e-6)  # type: ignore[operator]
    assert torch.allclose(carried[:, 1], carried[:, 2:].mean(1), atol=1e-6)


def test_grids_that_are_no_squares_are_pooled_and_repeated() -> None:
    student, teacher = replace(level(25, 3), prefix=1, grid=(4, 6)), replace(level(18, 3), prefix=2, grid=(8, 2))
    source = feature(student)
    carried = make_transform("resize", student, teacher)(source)
    map_bchw = source[:, 1:].transpose(1, 2).reshape(2, 3, 4, 6)
    expected = F.interpolate(F.adaptive_avg_pool2d(map_bchw, (4, 2)), size=(8, 2), mode="nearest")
    torch.testing.assert_close(carried[:, 2:].transpose(1, 2).reshape(2, 3, 8, 2), expected)


def test_tokens_keep_their_places_on_the_way_to_a_map() -> None:
    student, teacher = level(5, 3), level(3, 2, 2)
    transform = make_transform("linear", student, teacher)
    nn.init.eye_(transform.layer.weight)  # type: ignore[union-attr, arg-type]
    nn.init.zeros_(transform.layer.bias)  # type: ignore[union-attr, arg-type]
    source = feature(student)
    carried = transform(source)
    assert torch.equal(carried[:, :, 0, 1], source[:, 2]) and torch.equal(carried[:, :, 1, 0], source[:, 3])


def test_options_set_the_inner_channels() -> None:
    student, teacher = level(6, 8, 8), level(12, 8, 8)
    transform = make_transform("conv2", student, teacher, {"mid": 5})
    assert [m.out_channels for m in transform.modules() if isinstance(m, nn.Conv2d)] == [5, 12]
    transform = make_transform("gated", student, teacher, {"mid": 5})
    assert [m.out_channels for m in transform.modules() if isinstance(m, nn.Conv2d)] == [5, 1, 5, 12]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "conv2",
            {"midd": 4},
            r"transform conv2 has no option 'midd' \(did you mean 'mid'\?\); its options: mid",
        ),
        ("conv1", {"mid": 4}, "transform conv1 has no option 'mid'; its options: none"),
        ("conv3", {"mid": 0}, "option 'mid' is 0; it must be a whole number of at least 1"),
        ("gated", {"mid": True}, "option 'mid' is True; it must be a whole number of at least 1"),
        ("gated", {"reduction": 4}, "transform gated has no option 'reduction'; its options: mid"),
        ("attention", {"reduction": 2.5}, "option 'reduction' is 2.5; it must be a whole number"),
        (
            "conv",
            {},
            r"unknown transform 'conv' \(did you mean 'conv.'\?\); there are: attention, conv1, conv2",
        ),
        ("identity", {}, "transform identity needs equal shapes; .* 6×8×8, .* 12×8×8: use conv1 or linear"),
    ],
)
def test_errors(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DistproError, match=message):
        make_transform(name, level(6, 8, 8), level(12, 8, 8), options)


def test_tokens_without_a_grid_cannot_meet_a_map() -> None:
    with pytest.raises(DistproError, match=r"student level 1 .* has 15 tokens, which form no grid"):
        make_transform("conv2", level(15, 6), level(12, 4, 4))


USER_FILE = """
from torch import nn
from distpro_cli.pathways.transforms import Transform, register_transform

@register_transform("users-own")
class Scaled(Transform):
    def __init__(self, student, teacher, *, factor):
        super().__init__(student, teacher)
        self.factor = factor
        self.layer = nn.Conv2d(self.in_channels, self.out_channels, 1)

    def convert(self, map_bchw):
        return self.factor * self.layer(map_bchw)
"""


def test_a_users_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TRANSFORMS, "_known", list(TRANSFORMS._known))
    file = tmp_path / "mine.py"
    file.write_text(USER_FILE)
    student, teacher = level(6, 8, 8), level(12, 4, 4)
    for name in (f"{file}:Scaled", f"{file}:users-own"):
        transform = make_transform(name, student, teacher, {"factor": 2})
        assert transform(feature(student)).shape == (2, 12, 4, 4)
    with pytest.raises(DistproError, match=r"has no class or function 'Scale' \(did you mean 'Scaled'\?\)"):
        make_transform(f"{file}:Scale", student, teacher)
    with pytest.raises(DistproError, match="needs the option 'factor'"):
        make_transform(f"{file}:Scaled", student, teacher)
    with pytest.raises(DistproError, match="there is no file"):
        make_transform(f"{tmp_path}/other.py:Scaled", student, teacher)
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(DistproError, match="cannot be imported: ZeroDivisionError"):
        make_transform(f"{tmp_path}/broken.py:Scaled", student, teacher)


def test_what_a_level_states_of_its_tokens_counts() -> None:
    """Nine tokens are no 3×3 grid where five of them are prefix tokens."""
    student = LevelInfo(1, 5, "stage1", "tokens", None, (9, 3), 5, (2, 2))
    transform = make_transform("linear", student, level(3, 2, 2))
    nn.init.eye_(transform.layer.weight)  # type: ignore[union-attr, arg-type]
    nn.init.zeros_(transform.layer.bias)  # type: ignore[union-attr, arg-type]
    source = feature(student)
    carried = transform(source)
    assert torch.equal(carried.flatten(2).transpose(1, 2), source[:, 5:])
    back = make_transform("conv1", level(3, 2, 2), student)(feature(level(3, 2, 2)))
    assert back.shape == (2, 9, 3) and torch.allclose(back[:, 4], back[:, 5:].mean(1), atol=1e-5)


SIZES = [((5, 6), (5, 6)), ((8, 6), (3, 4)), ((3, 4), (6, 9))]


@pytest.mark.parametrize(("given", "wanted"), SIZES)
@pytest.mark.parametrize("name", [name for name in TRANSFORMS.names() if name != "identity"])
def test_maps_may_change_their_size(name: str, given: tuple[int, int], wanted: tuple[int, int]) -> None:
    """A block that was made for other sizes does what one made for these does."""
    student, teacher = (level(6, 8, 8), level(6, 4, 4)), (level(6, *given), level(6, *wanted))
    torch.manual_seed(0)
    first = make_transform(name, *student).eval()
    torch.manual_seed(0)
    other = make_transform(name, *teacher).eval()
    own = feature(teacher[0])
    torch.testing.assert_close(first(own, wanted), other(own))
    assert first(own, wanted).shape[2:] == wanted
