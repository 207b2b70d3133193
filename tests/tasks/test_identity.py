"""The identity of data moves with what they are, and not with where they lie."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distpro_cli.errors import DistproError
from distpro_cli.recipe.schema import Data
from distpro_cli.tasks.images import folders
from distpro_cli.tasks.images.data import ImageData, open_source
from distpro_cli.tasks.images.datasets import HubSource
from distpro_cli.tasks.images.digits import open_digits
from tests.tasks.conftest import folder_data, random_image, write_folder, write_tar


def identity(root: Path, **keys: Any) -> dict[str, Any]:
    folders._open.cache_clear()  # a process opens a folder once
    return ImageData(folder_data(root, **keys), 0).identity


def test_a_copied_or_moved_folder_is_the_same(image_root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    before = identity(image_root)
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "images"
    shutil.copytree(image_root, elsewhere, copy_function=shutil.copyfile)
    for path in elsewhere.rglob("*"):
        os.utime(path, (1e9, 1e9))
    assert identity(elsewhere) == before
    moved = elsewhere.rename(elsewhere.with_name("moved"))
    assert identity(moved) == before
    assert not any(name in json.dumps(before) for name in (str(image_root), image_root.name))
    assert before["train"]["class_names"] == before["test"]["class_names"] == ["a", "b", "c"]
    assert before["train"]["images"] != before["test"]["images"]


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("change", ["size", "name", "added", "removed", "class"])
def test_a_changed_image_is_another(image_root: Path, split: str, change: str) -> None:
    before = identity(image_root)
    image = image_root / split / "b" / "0.png"
    if change == "size":
        random_image(0, (9, 9)).save(image)
    elif change == "name":
        image.rename(image.with_name("other.png"))
    elif change == "added":
        random_image(0).save(image.with_name("more.png"))
    elif change == "removed":
        image.unlink()
    else:
        image.rename(image_root / split / "c" / "b0.png")
    after = identity(image_root)
    other = {"train": "test", "test": "train"}[split]
    assert after[split] != before[split]
    assert after[other] == before[other]


def test_files_that_are_no_images_do_not_count(image_root: Path) -> None:
    before = identity(image_root)
    (image_root / "train" / "a" / "notes.txt").write_text("not an image")
    assert identity(image_root) == before


def test_tars_count_by_what_is_in_them(image_root: Path, tmp_path: Path) -> None:
    tars = [tmp_path / "first", tmp_path / "second"]
    for folder in tars:
        folder.mkdir()
        for split in ("train", "test"):
            write_tar(folder / f"{split}.tar", image_root / split)
    first = identity(tars[0])
    assert identity(tars[1]) == first
    assert first == identity(image_root)  # the same images, packed
    random_image(0, (9, 9)).save(image_root / "train" / "a" / "0.png")
    write_tar(tars[1] / "train.tar", image_root / "train")
    assert identity(tars[1])["train"] != first["train"]


def test_a_folder_of_tars_tells_its_tars_apart(tmp_path: Path) -> None:
    write_folder(tmp_path / "images", {"a": 3})
    for name in ("one", "two"):
        (tmp_path / name / "train").mkdir(parents=True)
        write_tar(tmp_path / name / "train" / f"{name}.tar", tmp_path / "images")
    one, two = (folders.open_folder(str(tmp_path / name), "train").identity for name in ("one", "two"))
    assert one["images"] != two["images"]
    (tmp_path / "two" / "train" / "two.tar").rename(tmp_path / "two" / "train" / "one.tar")
    folders._open.cache_clear()
    assert folders.open_folder(str(tmp_path / "two"), "train").identity == one


def test_a_held_out_part_is_of_the_train_split(image_root: Path) -> None:
    found = identity(image_root, test_on="held-out")
    assert found["test"] == found["train"] == identity(image_root)["train"]


def test_a_source_is_asked_once(image_root: Path) -> None:
    source = folders.open_folder(str(image_root), "train")
    before = source.identity
    shutil.rmtree(image_root / "train")
    assert source.identity == before


def test_a_file_that_is_gone_is_named(image_root: Path) -> None:
    source = folders.open_folder(str(image_root), "train")
    (image_root / "train" / "b" / "3.png").unlink()
    with pytest.raises(DistproError, match=r"train/b/3\.png: cannot be read \(No such file"):
        _ = source.identity


def test_data_sets_count_by_name_length_and_targets(image_root: Path) -> None:
    digits = open_digits("train")
    assert digits.identity["images"] == "digits, train"
    assert digits.identity != open_digits("test").identity
    targets = digits.targets.copy()
    targets[7] += 1
    assert replace(digits, targets=targets).identity["targets"] != digits.identity["targets"]
    assert replace(digits, targets=digits.targets.astype("float32")).identity != digits.identity
    torchvision = open_source(Data(name="torch/image_folder", root=str(image_root)), "train")
    assert torchvision.identity["images"] == "torch/image_folder, train, 42 images"


def test_a_hugging_face_set_in_a_folder_is_known_by_the_folders_name(image_root: Path) -> None:
    for name, known_as in ((str(image_root), image_root.name), ("owner/name", "owner/name")):
        source = HubSource(f"hfds/{name}, test", np.zeros(12), set_name=name, reader=None)
        assert source.content() == f"hfds/{known_as}, test, 12 images"
