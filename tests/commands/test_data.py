"""Data of strangers through the command line: what is found is said, what is odd is read or refused in one line."""

from __future__ import annotations

import os
import signal
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Run, start_distpro
from tests.tasks.conftest import random_image

RECIPE = """\
data: {root: pets, num_classes: 2, image_size: 16, workers: 0, augment: {crop: pad, flip: 0.0}}
teacher: {name: wrn_10_1, train: {epochs: 1, batch_size: 8}}
student: {name: wrn_10_1}
distill: {epochs: 1, batch_size: 8}
"""
TRAIN = ["train", "pets.yaml", "--run-dir", "run"]


@pytest.fixture
def pets(workplace: Path) -> Path:
    """pets/train and pets/test: cats indoors (webp) and outdoors (16 bits), dogs outdoors (turned), hidden files."""
    (workplace / "pets.yaml").write_text(RECIPE)
    for number, split in enumerate(("train", "test")):
        draw = np.random.default_rng(number)
        folders = [workplace / "pets" / split / name for name in ("cat/indoor", "cat/outdoor", "dog/outdoor")]
        for folder in folders:
            folder.mkdir(parents=True)
        exif = Image.Exif()
        exif[0x0112] = 6
        for index in range(6):
            random_image(index, (16, 16)).save(folders[0] / f"{index}.webp")
            deep = draw.integers(0, 65536, (16, 16), dtype=np.uint16)
            Image.fromarray(deep).save(folders[1] / f"{index}.png")
            random_image(index, (16, 20)).save(folders[2] / f"{index}.jpg", exif=exif)
            (folders[2] / f"._{index}.jpg").write_bytes(b"of macOS")
        (folders[2] / "notes.txt").write_text("no image")
    return workplace / "pets"


def test_odd_folders_are_read_and_what_was_found_is_said(distpro: Run, pets: Path) -> None:
    result = distpro(*TRAIN)
    assert result.status == 0, result.err
    assert result.err.splitlines()[0] == (
        "data: 18 train images in 2 classes (cat 12, dog 6); 18 test images in 2 classes (cat 12, dog 6); "
        "skipped in train: 6 hidden, 1 .txt; skipped in test: 6 hidden, 1 .txt"
    )
    assert distpro("train", "pets.yaml", "-q", "--run-dir", "quiet").err == ""


def test_what_was_found_is_said_once_in_a_run_of_several_sessions(distpro: Run, pets: Path) -> None:
    result = distpro("search", "pets.yaml", "search.epochs=1", "-o", "p.safetensors", "--run-dir", "run")
    assert result.status == 0, result.err
    assert result.err.count("18 train images") == 1


def test_a_zip_of_everything_trains_to_the_same_weights(distpro: Run, pets: Path, workplace: Path) -> None:
    with zipfile.ZipFile(workplace / "pets.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(pets.rglob("*")):
            packed.write(path, Path("download") / path.relative_to(workplace))
    assert distpro(*TRAIN, "-q").status == 0
    result = distpro("train", "pets.yaml", "data.root=pets.zip", "data.workers=2", "--run-dir", "zipped")
    assert result.status == 0, result.err
    assert "data: 18 train images in 2 classes (cat 12, dog 6)" in result.err
    assert (workplace / "run/student.safetensors").read_bytes() == (
        workplace / "zipped/student.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("train.tar.gz", b"\x1f\x8b no more", "train.tar.gz: cannot be read as images in class folders ("),
        ("train.zip", b"PK\x03\x04 no more", "train.zip: cannot be read as images in class folders ("),
        ("train.rar", b"Rar!", "as a folder or archive (did you mean 'train.rar'?); it holds: train.rar; name another"),
    ],
)
def test_archives_that_cannot_be_read_are_one_line(
    distpro: Run, pets: Path, workplace: Path, name: str, content: bytes, text: str
) -> None:
    (workplace / "other").mkdir()
    (workplace / "other" / name).write_bytes(content)
    result = distpro(*TRAIN, "data.root=other")
    assert result.status == 2 and text in result.err
    assert result.err.count("\n") == 1 and not (workplace / "run").exists()


def test_a_folder_of_other_files_names_them(distpro: Run, pets: Path, workplace: Path) -> None:
    (workplace / "other" / "train" / "a").mkdir(parents=True)
    for name in ("0.heic", "1.heic", "._0.png"):
        (workplace / "other" / "train" / "a" / name).write_bytes(b"")
    result = distpro(*TRAIN, "data.root=other")
    assert result.status == 2 and "no images in class folders" in result.err
    assert "(skipped: 2 .heic, 1 hidden)" in result.err and result.err.count("\n") == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_vanishes_in_a_run_is_one_line(pets: Path, workplace: Path, workers: int) -> None:
    process = start_distpro(*TRAIN, "distill.epochs=5000", f"data.workers={workers}")
    gone = pets / "train" / "cat" / "indoor" / "3.webp"
    wait_for_steps(workplace / "run" / "metrics.jsonl")
    gone.unlink()
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 2 and out == "", errors
    last = errors.splitlines()[-1]
    assert last.startswith("error: pets/train/cat/indoor/3.webp: cannot be read (No such file or directory), though")
    assert "Traceback" not in errors and errors.count("error:") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_worker_that_dies_is_one_line(pets: Path, workplace: Path) -> None:
    process = start_distpro(*TRAIN, "distill.epochs=5000", "data.workers=2")
    wait_for_steps(workplace / "run" / "metrics.jsonl")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    deadline = time.monotonic() + 60
    while not children:  # between an evaluation and the next epoch there are none
        assert time.monotonic() < deadline
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 2 and out == "", errors
    assert "error: data.workers: a process that loads data died" in errors.splitlines()[-1]
    assert "there were 2, set fewer, or data.workers=0" in errors and "Traceback" not in errors


def wait_for_steps(metrics: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not metrics.exists() or not metrics.stat().st_size:
        assert time.monotonic() < deadline, f"{metrics} never came"
        time.sleep(0.02)
