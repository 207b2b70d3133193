"""A run's key moves with all that determines the run, and with nothing else."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distpro_cli.process.file import load_process
from distpro_cli.process.process import Process
from distpro_cli.recipe.load import load_recipe
from distpro_cli.runs.identity import _network, differences
from distpro_cli.tasks.images import folders
from distpro_cli.workflows.session import Session
from distpro_cli.workflows.sources import source_of
from tests.helpers import CONTEXT


@pytest.fixture(autouse=True)
def _folders_are_read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process reads a folder once; these tests change folders between two runs."""
    monkeypatch.setattr(folders, "_open", folders._open.__wrapped__)


def key(*overrides: str, seed: int = 0, source: Process | str = "uniform", **dropping: float) -> str:
    session = Session(load_recipe("tiny.yaml", overrides), CONTEXT)
    pair, process = source_of(source).set_up(session)
    driven = process if process.weights.any() else None
    return session.identity.transfer(seed, driven, pair.infos, dict(dropping))


def teacher_key(*overrides: str) -> str:
    return Session(load_recipe("tiny.yaml", overrides), CONTEXT).identity.teacher()


@pytest.mark.parametrize(
    "override",
    [
        "data.workers=1",
        "data.cache=true",
        "search.epochs=9",
        "search.alpha_lr=0.5",
        "schemes.kd.weight=3",
        "distill.scale=recorded",  # where no process has one
        "seed=4",
    ],
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
        "search.bias=2",  # what the uniform weights are
    ],
)
def test_what_matters(workplace: Path, override: str) -> None:
    assert key(override) != key()


def test_seed_process_and_dropping_matter(workplace: Path) -> None:
    assert len({key(), key(seed=1), key(keep=0.5), key(keep=0.6), key(source="kd"), key(source="plain")}) == 6


def test_the_scale_of_a_process_matters_where_a_run_measures_it(workplace: Path, process: Path) -> None:
    plain = load_process(process)
    scale = np.full_like(plain.weights, 2.0)
    scaled = replace(plain, scale=scale, searched={"teacher": "any", "scale": "loss"})
    other = replace(scaled, scale=scale * 2)
    recorded = "distill.scale=recorded"
    assert key(recorded, source=plain) == key(source=plain) == key(recorded, source=scaled)
    assert len({key(source=one) for one in (plain, scaled, other)}) == 3
    assert teacher_key(recorded) == teacher_key()


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


def on_images(root: Path, *more: str) -> tuple[str, ...]:
    keys = ("data.name=folder", f"data.root={root}", "data.num_classes=2", "data.train_images=null")
    return (*keys, "data.test_images=null", *more)


def test_images_count_by_content_and_not_by_place(workplace: Path) -> None:
    write_images(workplace / "images", 10)
    before, teacher = key(*on_images(workplace / "images")), teacher_key(*on_images(workplace / "images"))
    shutil.copytree(workplace / "images", workplace / "elsewhere", copy_function=shutil.copyfile)
    os.utime(workplace / "elsewhere" / "train" / "a" / "0.png", (1, 1))
    moved = on_images(workplace / "elsewhere", "data.workers=1")
    assert key(*moved) == before and teacher_key(*moved) == teacher
    Image.fromarray(np.zeros((17, 90, 3), np.uint8)).save(workplace / "elsewhere" / "test" / "a" / "0.png")
    assert key(*moved) != before
    assert teacher_key(*moved) == teacher  # it never sees the test images
    (workplace / "elsewhere" / "train" / "a" / "0.png").rename(workplace / "elsewhere" / "train" / "a" / "00.png")
    assert teacher_key(*moved) != teacher


def test_a_users_file_counts_by_content_and_not_by_place(workplace: Path) -> None:
    code = (
        "from distpro_cli.pathways.transforms.convolutions import OneConvolution\n\n\n"
        "class Own(OneConvolution):\n    pass\n"
    )
    for folder in ("one", "two"):
        (workplace / folder).mkdir()
        (workplace / folder / "own.py").write_text(code)

    def own(folder: str) -> str:
        return f"pathways=[{{transform: '{folder}/own.py:Own'}}]"

    before = key(own("one"))
    assert key(own("two")) == before
    with (workplace / "one" / "own.py").open("a") as file:
        file.write("# changed\n")
    assert key(own("one")) != before


def test_weights_count_by_content(workplace: Path) -> None:
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (workplace / f"{name}.safetensors").write_bytes(content)
    keys = [_network(load_recipe("tiny.yaml", [f"teacher.weights={name}.safetensors"]).teacher) for name in "abc"]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("teacher.train.epochs=2", False),
        ("teacher.seed=3", False),
        ("teacher.name=wrn_16_1", False),
        ("data.subset_seed=1", False),
        ("student.name=wrn_16_1", True),
        ("distill.epochs=9", True),
        ("data.test_images=40", True),
        ("search.weight=3", True),
    ],
)
def test_what_determines_a_teacher(workplace: Path, override: str, same: bool) -> None:
    assert (teacher_key(override) == teacher_key()) == same


def test_differences_name_the_key_and_leave_free_ones_out(workplace: Path) -> None:
    before = load_recipe("tiny.yaml")
    free = load_recipe("tiny.yaml", ["data.workers=3", "data.cache=true", "checkpoint_seconds=7"])
    assert differences(before, free) == []
    other = load_recipe("tiny.yaml", ["data.image_size=8", "data.workers=3", "search.epochs=7"])
    assert differences(before, other) == [("data.image_size", 16, 8), ("search.epochs", 2, 7)]
