"""A run's key moves with all that determines the run, and with nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from distpro_cli.process.process import Process
from distpro_cli.recipe.load import load_recipe
from distpro_cli.report.progress import Reporter
from distpro_cli.runs import identity
from distpro_cli.runs.signals import Interruption
from distpro_cli.tasks.images import folders
from distpro_cli.workflows.session import Session, Surroundings
from distpro_cli.workflows.transfer import set_up

AROUND = Surroundings(torch.device("cpu"), Reporter(), Interruption())


def key(*overrides: str, seed: int = 0, source: Process | str = "uniform", **dropping: float) -> str:
    folders._open.cache_clear()  # a process opens a folder once
    session = Session(load_recipe("tiny.yaml", overrides), AROUND)
    pair, process = set_up(session, source)
    assert pair.pathways is not None
    driven = process if process.weights.any() else None
    return identity.transfer_key(session, seed, driven, pair.pathways.infos, dict(dropping))


@pytest.mark.parametrize(
    "override",
    ["data.workers=1", "data.cache=true", "search.epochs=9", "search.alpha_lr=0.5", "schemes.kd.weight=3", "seed=4"],
)
def test_what_does_not_matter(workplace: Path, override: str) -> None:
    assert key(override) == key()


@pytest.mark.parametrize(
    "override",
    [
        "distill.epochs=3",
        "distill.optimizer.lr=0.1",
        "data.train_images=150",
        "data.subset_seed=1",
        "precision=bfloat16",
        "student.name=wrn_10_2",
        "teacher.train.epochs=2",
        "teacher.seed=1",
        "teacher.feature=before-activation",
        "search.weight=2",  # what the uniform weights are
    ],
)
def test_what_matters(workplace: Path, override: str) -> None:
    assert key(override) != key()


def test_seed_process_and_dropping_matter(workplace: Path) -> None:
    assert len({key(), key(seed=1), key(keep=0.5), key(keep=0.6), key(source="kd"), key(source="plain")}) == 6


def test_the_student_alone_is_the_same_whatever_the_teacher(workplace: Path) -> None:
    assert key("teacher.train.epochs=2", source="plain") == key(source="plain")
    assert key("pathways=[{connections: same}]", source="plain") == key(source="plain")


def write_images(root: Path, value: int) -> None:
    for split in ("train", "test"):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for i in range(4):
                pixels = np.full((16, 16, 3), value + i, np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")


def test_changed_images_matter(workplace: Path) -> None:
    data: tuple[Any, ...] = ("data.name=folder", "data.root=images", "data.num_classes=2", "data.train_images=null")
    data = (*data, "data.test_images=null")
    write_images(workplace / "images", 10)
    before = key(*data)
    assert key(*data) == before
    Image.fromarray(np.full((20, 20, 3), 99, np.uint8)).save(workplace / "images" / "test" / "a" / "0.png")
    assert key(*data) != before


def test_a_users_file_matters(workplace: Path) -> None:
    (workplace / "own.py").write_text(
        "from distpro_cli.pathways.transforms import register_transform\n"
        "from distpro_cli.pathways.transforms.convolutions import OneConvolution\n\n\n"
        "class Own(OneConvolution):\n    pass\n"
    )
    own = "pathways=[{transform: 'own.py:Own'}]"
    before = key(own)
    with (workplace / "own.py").open("a") as file:
        file.write("# changed\n")
    assert key(own) != before
