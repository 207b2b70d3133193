"""Folders, tars and data sets: what is found, and what is said when it is not."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distpro_cli.errors import DistproError
from distpro_cli.recipe.schema import Data
from distpro_cli.tasks.classification import known_num_classes
from distpro_cli.tasks.images.data import ImageData, open_source
from distpro_cli.tasks.images.folders import open_folder
from tests.helpers import classification
from tests.tasks.conftest import folder_data, write_folder, write_tar


def test_tar_and_folder_show_the_same_images(image_root: Path, tmp_path: Path) -> None:
    tars = tmp_path / "tars"
    tars.mkdir()
    for split in ("train", "test"):
        write_tar(tars / f"{split}.tar", image_root / split)
    for split in ("train", None):
        folder, tar = open_folder(str(image_root), split), open_folder(str(tars), split)
        assert folder.class_names == tar.class_names == ("a", "b", "c")
        assert folder.targets.tolist() == tar.targets.tolist()
        for index in range(len(folder.targets)):
            assert np.array_equal(folder.load(index), tar.load(index))
    direct = open_folder(str(tars / "train.tar"), "train")
    assert len(direct.targets) == 42


def test_a_folder_of_tars_is_a_split_too(image_root: Path, tmp_path: Path) -> None:
    split = tmp_path / "packed" / "train"
    split.mkdir(parents=True)
    for name in ("a", "b", "c"):
        folder = tmp_path / "one" / name
        shutil.copytree(image_root / "train" / name, folder)
        write_tar(split / f"{name}.tar", folder)
    source = open_folder(str(tmp_path / "packed"), "train")
    assert source.class_names == ("a", "b", "c")
    assert np.bincount(source.targets).tolist() == [24, 12, 6]
    by_folder = open_folder(str(image_root), "train")
    pixels = {by_folder.load(index).tobytes() for index in range(42)}
    assert {source.load(index).tobytes() for index in range(42)} == pixels


def test_a_split_is_scanned_once(image_root: Path) -> None:
    assert open_folder(str(image_root), "train") is open_folder(str(image_root), "train")


def test_environment_variables_are_expanded(image_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGES", str(image_root))
    monkeypatch.delenv("NOT_SET_AT_ALL", raising=False)
    assert len(open_folder("$IMAGES", "train").targets) == 42
    with pytest.raises(DistproError, match="NOT_SET_AT_ALL"):
        open_folder("$NOT_SET_AT_ALL/images", "train")


@pytest.mark.parametrize("name", ["test", "validation", "val"])
def test_usual_names_of_the_test_split_are_found(tmp_path: Path, name: str) -> None:
    write_folder(tmp_path / name, {"a": 1, "b": 2})
    assert len(open_folder(str(tmp_path), None).targets) == 3


def test_a_missing_root_is_named_with_its_nearest(image_root: Path) -> None:
    with pytest.raises(DistproError, match=r"trian' does not exist \(did you mean 'train'\?\)"):
        open_folder(str(image_root / "trian"), "train")
    with pytest.raises(DistproError, match=r"data\.root is not set"):
        open_folder(None, "train")


def test_a_missing_split_lists_what_there_is(image_root: Path) -> None:
    with pytest.raises(DistproError, match=r"has no 'tset', .*did you mean 'test'.*it holds: test, train"):
        open_folder(str(image_root), "tset")
    shutil.rmtree(image_root / "test")
    with pytest.raises(DistproError, match=r"no 'test' or .* name another with data\.test_split.*test_on=held-out"):
        ImageData(folder_data(image_root), 0)


def test_class_folders_given_directly_are_the_train_split(image_root: Path) -> None:
    direct = image_root / "train"
    spec = folder_data(direct, test_on="held-out")
    assert ImageData(spec, 0).test_size == 4
    with pytest.raises(DistproError, match=r"data\.test_on=held-out"):
        ImageData(folder_data(direct), 0)


def test_an_empty_folder_or_tar_is_said_to_be_empty(tmp_path: Path) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    with pytest.raises(DistproError, match=r"train: no images in class folders .*\.png"):
        open_folder(str(tmp_path), "train")
    write_tar(tmp_path / "val.tar", tmp_path / "train")
    with pytest.raises(DistproError, match=r"val\.tar: no images in class folders"):
        open_folder(str(tmp_path), "val")


def test_a_broken_tar_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.tar").write_bytes(b"not a tar at all" * 100)
    with pytest.raises(DistproError, match=r"train\.tar: cannot be read"):
        open_folder(str(tmp_path), "train")


def test_images_outside_class_folders_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", {"a": 1})
    shutil.copy(tmp_path / "train" / "a" / "0.png", tmp_path / "train" / "0.png")
    with pytest.raises(DistproError, match="images are directly in it"):
        open_folder(str(tmp_path), "train")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_is_named(image_root: Path, workers: int) -> None:
    broken = image_root / "train" / "b" / "3.png"
    broken.write_bytes(broken.read_bytes()[:200])
    data = ImageData(folder_data(image_root, workers=workers), 0)
    with pytest.raises(DistproError, match=r"b/3\.png: not a readable image \(.*\); fix or remove it$"):
        list(data.train_batches(10, 20))


def test_the_class_count_must_fit_the_recipe(image_root: Path) -> None:
    with pytest.raises(DistproError, match=r"data\.num_classes: 4, but .* has 3 classes.*set data\.num_classes=3"):
        classification().data(folder_data(image_root, num_classes=4), 0)
    with pytest.raises(DistproError, match=r"1000 \(not set\), but .* has 3 classes"):
        classification().data(folder_data(image_root, num_classes=None), 0)


def test_train_and_test_need_the_same_classes(image_root: Path) -> None:
    shutil.move(image_root / "test" / "c", image_root / "test" / "d")
    with pytest.raises(DistproError, match=r"has other classes than .*without c, with d"):
        classification().data(folder_data(image_root), 0)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("digist", r"did you mean 'digits'\?"),
        ("hfids/owner/name", "is streamed"),
        ("torch/cifar10", r"data\.root is not set"),
    ],
)
def test_unusable_names_are_explained(name: str, text: str) -> None:
    with pytest.raises(DistproError, match=text):
        open_source(Data(name=name), "train")


def test_the_digits_have_two_splits() -> None:
    with pytest.raises(DistproError, match="there are: train, test"):
        open_source(Data(name="digits"), "val")


def test_an_unknown_torchvision_set_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DistproError, match="'torch/nonesuch'") as caught:
        open_source(Data(name="torch/nonesuch", root=str(tmp_path)), "train")
    assert "\n" not in str(caught.value)


def test_torchvision_folders_go_through_timm(image_root: Path) -> None:
    source = open_source(Data(name="torch/image_folder", root=str(image_root)), "train")
    assert source.class_names == ("a", "b", "c")
    folder = open_folder(str(image_root), "train")
    assert np.bincount(source.targets).tolist() == [24, 12, 6]
    assert np.array_equal(source.load(0), folder.load(0))


def test_a_hugging_face_set_goes_through_timm(image_root: Path) -> None:
    pytest.importorskip("datasets", reason="the package datasets is not installed")
    source = open_source(Data(name=f"hfds/{image_root}", root=str(image_root / "cache")), None)
    assert source.class_names == ("a", "b", "c")
    assert np.bincount(source.targets).tolist() == [4, 4, 4]
    assert source.load(0).shape == (32, 32, 3)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    Image.new(mode, (7, 5)).save(tmp_path / "train" / "a" / f"0.{'jpg' if mode == 'CMYK' else 'png'}")
    assert open_folder(str(tmp_path), "train").load(0).shape == (5, 7, 3)


def test_known_class_counts() -> None:
    names = {"digits": 10, "torch/cifar100": 100, "hfds/uoft-cs/cifar10": 10, "folder": 1000}
    assert {name: known_num_classes(Data(name=name)) for name in names} == names
    assert known_num_classes(Data(name="torch/cifar100", num_classes=7)) == 7
