"""Tiny image folders and tars, and a second process to compare with."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distpro_cli.recipe.schema import Augmentation, Data

IN_ANOTHER_PROCESS = """
import json, sys
from distpro_cli.recipe.schema import Data
from tests.tasks.suite import digest, make_task
for line in sys.stdin:
    name, spec, training = json.loads(line)
    data = make_task(name, spec, training).data(Data.model_validate(spec), 0)
    print(json.dumps([data.identity, digest(data.train_batches(8, 12))]), flush=True)
"""


@pytest.fixture(scope="session")
def another_process() -> Iterator[subprocess.Popen[str]]:
    """Answers a line of task, data and training with the identity of the data and a digest of their batches."""
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield process


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_image(number: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def write_folder(folder: Path, counts: dict[str, int], size: tuple[int, int] = (32, 32)) -> Path:
    """Writes <class>/<number>.png for every class."""
    number = 0
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            random_image(number, size).save(folder / name / f"{index}.png")
            number += 1
    return folder


def write_tar(tar: Path, folder: Path) -> Path:
    """Packs a folder of class folders into an uncompressed tar."""
    with tarfile.open(tar, "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            content = path.read_bytes()
            info = tarfile.TarInfo(os.fspath(path.relative_to(folder)))
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return tar


@pytest.fixture
def image_root(tmp_path: Path) -> Path:
    """train/ with 24, 12 and 6 images of three classes, test/ with 4 of each."""
    write_folder(tmp_path / "train", {"a": 24, "b": 12, "c": 6})
    write_folder(tmp_path / "test", {"a": 4, "b": 4, "c": 4})
    return tmp_path


def folder_data(root: Path, **keys: object) -> Data:
    """A data section for a folder of three classes of 32×32 images, padded and cropped, without workers."""
    settings: dict[str, object] = {
        "root": str(root),
        "num_classes": 3,
        "image_size": 32,
        "workers": 0,
        "augment": Augmentation(crop="pad"),
    }
    return Data.model_validate(settings | keys)
