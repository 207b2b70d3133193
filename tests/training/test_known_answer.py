"""A toy with a known answer: a pathway that helps and one that carries noise.

The labels of the inner part are wrong for most images; the teacher knows the right class of every image. A pathway
that pulls the student's scores to its clean ones helps, one that pulls them to noise (a hash of the image) harms:
the search must raise the one and sink the other, whatever the seed.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from distpro_cli.networks.levels import TappedNetwork
from distpro_cli.pathways.connections import resolve_pathways
from distpro_cli.pathways.module import Pathways
from distpro_cli.recipe.schema import PathwayGroup, Search
from distpro_cli.tasks.task import Batch
from distpro_cli.training.alpha import AlphaOptimizer
from distpro_cli.training.hypergradients import make_hypergradient
from distpro_cli.training.step import Distiller, Pair
from tests.helpers import CPU, PAPER, classification

NUM_CLASSES, SIZE, STEPS, BATCH = 4, 4, 80, 64


class Noise(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.sin(1e4 * images.flatten(1)[:, :NUM_CLASSES]) * 4


class Teacher(nn.Module):
    """Knows the pattern of every class."""

    def __init__(self, patterns: Tensor) -> None:
        super().__init__()
        self.register_buffer("patterns", patterns)
        self.noise = Noise()
        self.clean = nn.Identity()
        self.head = nn.Linear(NUM_CLASSES, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        self.noise(images)
        scores = torch.einsum("bchw,kchw->bk", images - 0.5, self.patterns)
        one_hot = nn.functional.one_hot(scores.argmax(1), NUM_CLASSES).float() * 4
        return self.head(self.clean(one_hot))


class Student(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.head = nn.Linear(16 * SIZE * SIZE, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.trunk(images).flatten(1))


def draw(patterns: Tensor, generator: torch.Generator, wrong_share: float) -> Batch:
    classes = torch.randint(0, NUM_CLASSES, (BATCH,), generator=generator)
    images = 0.5 + 0.1 * patterns[classes] + 0.1 * torch.randn(BATCH, 3, SIZE, SIZE, generator=generator)
    wrong = torch.rand(BATCH, generator=generator) < wrong_share
    random_classes = torch.randint(0, NUM_CLASSES, (BATCH,), generator=generator)
    return Batch(images, torch.where(wrong, random_classes, classes))


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_the_search_raises_what_helps_and_sinks_noise(seed: int) -> None:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(NUM_CLASSES, 3, SIZE, SIZE, generator=generator).sign()
    plain = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "image_size": SIZE}
    teacher = TappedNetwork(Teacher(patterns), levels=["noise", "clean"], **plain).eval().requires_grad_(False)
    student = TappedNetwork(Student(), levels=["head"], **plain)
    group = PathwayGroup(connections=[[1, 1], [2, 1]], transform="identity", distance="mse")
    pathways = Pathways(resolve_pathways([group], teacher.levels, student.levels))
    pair = Pair(student.train(), teacher, pathways)
    optimizer = torch.optim.SGD([p for m in pair.modules().values() for p in m.parameters()], lr=0.05)
    distiller = Distiller(pair, optimizer, classification(), device=CPU, seed=seed)
    hypergradient = make_hypergradient("cheap", distiller)
    alpha = AlphaOptimizer(torch.ones(2), torch.ones(2), Search(**PAPER | {"alpha_lr": 0.05}), STEPS, CPU)
    start = alpha.weights()[0]
    for step in range(STEPS):
        inner, outer = draw(patterns, generator, wrong_share=0.8), draw(patterns, generator, wrong_share=0.0)
        alpha.update(hypergradient.step(inner, outer, alpha.weights(), step)[2])
    noise, clean = alpha.weights().tolist()
    assert clean > 1.2 * start
    assert noise < 0.8 * start
