"""Small data, written once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tasks.detection.fake import write_split

pytest.importorskip("pycocotools", reason="detection needs pycocotools")

MIXED = [(48, 64), (64, 48), (60, 64), (64, 64), (64, 50), (40, 64)]


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 train and 8 val images of 64×64 pixels."""
    root = tmp_path_factory.mktemp("squares")
    write_split(root, "train", [(64, 64)] * 32)
    write_split(root, "val", [(64, 64)] * 8, seed=1)
    return root


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 train and 6 val images of several sizes, wide and high."""
    root = tmp_path_factory.mktemp("mixed")
    write_split(root, "train", MIXED * 2)
    write_split(root, "val", MIXED, seed=1)
    return root
