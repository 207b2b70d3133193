"""ReviewKD's transform against its published structure, written down once more without its code."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distpro_cli.errors import DistproError, RecipeError
from distpro_cli.pathways.connections import resolve_pathways
from distpro_cli.pathways.module import Pathways
from distpro_cli.pathways.transforms.review import FusionChain
from distpro_cli.process.pathway import LevelInfo
from distpro_cli.recipe.schema import PathwayGroup
from tests.pathways.levels import feature, levels

STUDENT = levels((4, 16, 16), (6, 8, 8), (10, 4, 4), (10,))
TEACHER = levels((8, 16, 16), (12, 8, 8), (20, 4, 4), (20,))
OTHER_SIZES = levels((8, 32, 32), (12, 8, 8), (20, 2, 2), (20,))
UNEVEN = levels((4, 14, 9), (6, 7, 5), (10, 3, 4), (10,))


def review(
    student: tuple[LevelInfo, ...],
    teacher: tuple[LevelInfo, ...],
    connections: str | list[list[int]] = "same",
    **options: int,
) -> Pathways:
    group = PathwayGroup.model_validate(
        {"connections": connections, "transform": "review", "transform_options": options, "distance": "hcl"}
    )
    return Pathways(resolve_pathways([group], teacher, student))


def chain_of(pathways: Pathways) -> FusionChain:
    (chain,) = pathways.shared
    assert isinstance(chain, FusionChain)
    return chain


def features_of(infos: tuple[LevelInfo, ...], seed: int = 0) -> dict[int, Tensor]:
    return {info.number: feature(info, 3, seed=seed + info.number) for info in infos}


class Published(nn.Module):
    """Attention-based fusion as the paper's figure 3 and section 3.3 describe it, one block a level, deep first."""

    def __init__(self, student: tuple[LevelInfo, ...], teacher: tuple[LevelInfo, ...], mid: int) -> None:
        super().__init__()
        self.reduce = nn.ModuleList(nn.Conv2d(info.shape[0], mid, 1, bias=False) for info in student)
        self.reduce_norm = nn.ModuleList(nn.BatchNorm2d(mid) for _ in student)
        self.attention = nn.ModuleList(nn.Conv2d(2 * mid, 2, 1) for _ in student[:-1])
        self.project = nn.ModuleList(nn.Conv2d(mid, info.shape[0], 3, padding=1, bias=False) for info in teacher)
        self.project_norm = nn.ModuleList(nn.BatchNorm2d(info.shape[0]) for info in teacher)
        self.teacher = teacher

    def take(self, pathways: Pathways) -> None:
        """Copies the weights of pathways i-i."""
        chain = chain_of(pathways)
        for n, transform in enumerate(pathways.transforms):
            fusion = chain.fusions[str(n + 1)]
            self.reduce[n].load_state_dict(fusion.own[0].state_dict())  # type: ignore[union-attr, index]
            if n < len(self.attention):
                self.attention[n].load_state_dict(fusion.weigh.state_dict())  # type: ignore[union-attr]
            self.project[n].load_state_dict(transform.layers[0].state_dict())  # type: ignore[union-attr, index]

    def forward(self, features: dict[int, Tensor]) -> dict[int, Tensor]:
        """Returns what is compared with the teacher, by level."""
        outputs, residual = {}, None
        for n in reversed(range(len(self.reduce))):
            x = features[n + 1]
            x = x[:, :, None, None] if x.ndim == 2 else x
            x = self.reduce_norm[n](self.reduce[n](x))
            if residual is not None:
                y = F.interpolate(residual, x.shape[2:], mode="nearest")
                z = torch.sigmoid(self.attention[n](torch.cat([x, y], 1)))
                x = x * z[:, 0:1] + y * z[:, 1:2]
            residual = x
            out = self.teacher[n].shape[1:] or (1, 1)
            carried = self.project_norm[n](self.project[n](F.interpolate(x, out, mode="nearest")))
            outputs[n + 1] = carried.reshape(len(carried), *self.teacher[n].shape)
        return outputs


@pytest.mark.parametrize("student", [STUDENT, UNEVEN], ids=["square", "uneven"])
@pytest.mark.parametrize("teacher", [TEACHER, OTHER_SIZES], ids=["same sizes", "other sizes"])
def test_matches_the_published_description(student: tuple[LevelInfo, ...], teacher: tuple[LevelInfo, ...]) -> None:
    pathways = review(student, teacher, mid=5)
    published = Published(student, teacher, 5)
    published.take(pathways)
    results = []
    for number in range(2):
        features = {n: f.requires_grad_() for n, f in features_of(student).items()}
        targets = features_of(teacher, seed=9)
        if number == 0:
            expected = published(features)
            total = sum(F.mse_loss(expected[n], targets[n]) for n in targets)
            weights = [*published.reduce.parameters(), *published.attention.parameters()]
        else:
            starts = pathways.starts(features, range(4))
            found = {k + 1: pathways.transforms[k](starts[pathways.start_of[k]]) for k in range(4)}
            total = sum(F.mse_loss(found[n], targets[n]) for n in targets)
            fusions = [chain_of(pathways).fusions[str(n)] for n in range(1, 5)]
            weights = [f.own[0].weight for f in fusions]  # type: ignore[union-attr, index, misc]
            weights += [p for f in fusions[:-1] for p in f.weigh.parameters()]  # type: ignore[union-attr, operator]
            for n in targets:
                assert torch.allclose(found[n], expected[n], atol=1e-5)
        assert isinstance(total, Tensor)
        total.backward()
        results.append([*[f.grad for f in features.values()], *[w.grad for w in weights]])
    for one, other in zip(*results, strict=True):
        assert one is not None and other is not None
        assert torch.allclose(one, other, atol=1e-5)


PAIRS = {
    "WRN-40-2 → WRN-16-2": (  # the authors' in_channels, out_channels and sizes for CIFAR-100
        levels((32, 32, 32), (64, 16, 16), (128, 8, 8), (128,)),
        levels((32, 32, 32), (64, 16, 16), (128, 8, 8), (128,)),
        128,
    ),
    "ResNet-34 → ResNet-18": (
        levels((64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7), (512,)),
        levels((64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7), (512,)),
        512,
    ),
    "ResNet-50 → wide student": (
        levels((256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7), (2048,)),
        levels((256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7), (2048,)),
        512,
    ),
}


@pytest.mark.parametrize(("student", "teacher", "mid"), PAIRS.values(), ids=PAIRS)
def test_number_of_parameters(student: tuple[LevelInfo, ...], teacher: tuple[LevelInfo, ...], mid: int) -> None:
    with torch.device("meta"):
        pathways = review(student, teacher)
    expected = sum(info.shape[0] * mid + 2 * mid for info in student)  # 1×1 convolutions, BatchNorm
    expected += (len(student) - 1) * (2 * mid * 2 + 2)  # the two maps of every level but the deepest
    expected += sum(9 * mid * info.shape[0] + 2 * info.shape[0] for info in teacher)  # 3×3 convolutions, BatchNorm
    assert sum(p.numel() for p in pathways.parameters()) == expected
    assert [info.shape[0] for info in chain_of(pathways).outputs.values()] == [mid] * len(student)


def record(pathways: Pathways) -> list[str]:
    """Returns the list to which every fusion, and every own block, writes when it runs."""
    ran: list[str] = []
    for name, fusion in chain_of(pathways).fusions.items():
        fusion.register_forward_hook(lambda *_, name=name: ran.append(f"level {name}"))
    for info, transform in zip(pathways.infos, pathways.transforms, strict=True):
        transform.register_forward_hook(lambda *_, name=info.id: ran.append(name))
    return ran


def test_fuses_from_deep_to_shallow_and_only_as_far_as_needed() -> None:
    pathways = review(STUDENT, TEACHER)
    ran = record(pathways)
    features, targets = features_of(STUDENT), features_of(TEACHER)
    pathways(features, targets, range(4))
    assert ran == ["level 4", "level 3", "level 2", "level 1", "1-1", "2-2", "3-3", "4-4"]
    ran.clear()
    assert pathways.student_levels([2]) == {3, 4} and pathways.teacher_levels([2]) == {3}
    pathways({n: features[n] for n in (3, 4)}, targets, [2])
    assert ran == ["level 4", "level 3", "3-3"]
    ran.clear()
    assert pathways.student_levels([3]) == {4}
    pathways({4: features[4]}, targets, [3])
    assert ran == ["level 4", "4-4"]
    assert pathways.student_levels([]) == set()


def test_a_deeper_level_reaches_a_shallower_output_and_not_the_other_way_round() -> None:
    pathways = review(STUDENT, TEACHER)
    features = {n: f.requires_grad_() for n, f in features_of(STUDENT).items()}
    pathways.starts(features, range(4))[0, 2].square().sum().backward()
    assert features[1].grad is None
    assert all(features[n].grad is not None and features[n].grad.abs().sum() > 0 for n in (2, 3, 4))  # type: ignore[union-attr]


@pytest.mark.parametrize("connections", ["lower", "all", [[1, 2], [4, 2], [3, 4]]])
def test_several_pathways_start_from_one_fused_level(connections: str | list[list[int]]) -> None:
    pathways = review(STUDENT, TEACHER, connections)
    ran = record(pathways)
    losses = pathways(features_of(STUDENT), features_of(TEACHER), range(len(pathways.infos)))
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in pathways.parameters())
    starts = {info.student.number for info in pathways.infos}
    assert sum(name.startswith("level") for name in ran) == len(starts)
    assert len(ran) == len(starts) + len(pathways.infos)
    assert len(pathways.shared) == 1


def test_tokens_are_fused_on_their_grid() -> None:
    student, teacher = levels((17, 6), (17, 6), (6,)), levels((5, 8), (18, 8), (8,))
    pathways = review(student, teacher, "lower")
    losses = pathways(features_of(student), features_of(teacher), range(6))
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_mid() -> None:
    assert chain_of(review(STUDENT, TEACHER)).outputs[1].shape == (10, 16, 16)
    assert chain_of(review(STUDENT, TEACHER, mid=3)).outputs[1].shape == (3, 16, 16)
    with pytest.raises(RecipeError, match="option 'mid' is 0; it must be a whole number of at least 1"):
        review(STUDENT, TEACHER, mid=0)
    with pytest.raises(DistproError, match=r"transform review has no option 'middle' \(did you mean 'mid'\?\)"):
        review(STUDENT, TEACHER, middle=3)
