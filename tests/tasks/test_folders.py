"""Folders and archives as strangers make them: what is an image, of which class it is, what is left out and said."""

from __future__ import annotations

import os
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision.datasets import ImageFolder

from distpro_cli.errors import DistproError
from distpro_cli.tasks.images import folders
from distpro_cli.tasks.images.data import ImageData
from distpro_cli.tasks.images.folders import open_folder
from distpro_cli.tasks.images.listing import image_endings, natural_key, without_wrapping
from distpro_cli.tasks.images.sources import Source
from tests.tasks.conftest import folder_data, random_image, write_folder

TAR_KINDS = {".tar": "w", ".tar.gz": "w:gz", ".tgz": "w:gz", ".tar.bz2": "w:bz2", ".tar.xz": "w:xz"}


def pack(folder: Path, archive: Path, under: str = "") -> Path:
    """Packs all files of a folder into an archive, as `tar` and `zip` do, below the folder `under`."""
    ending = next(e for e in (*sorted(TAR_KINDS, key=len, reverse=True), ".zip") if archive.name.endswith(e))
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = [(Path(under) / path.relative_to(folder)).as_posix() for path in files]
    if ending == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
            for path, name in zip(files, names, strict=True):
                opened.write(path, name)
        return archive
    with tarfile.open(archive, TAR_KINDS[ending]) as tar:  # type: ignore[call-overload]
        for path, name in zip(files, names, strict=True):
            tar.add(path, name)
    return archive


def classes(source: Source) -> dict[str, int]:
    counts = np.bincount(source.targets, minlength=len(source.class_names))
    return dict(zip(source.class_names, counts.tolist(), strict=True))


@pytest.fixture
def nested(tmp_path: Path) -> Path:
    """train/ with cats indoors and outdoors, dogs outdoors and in no folder of their own."""
    write_folder(tmp_path / "train" / "cat", {"indoor": 3, "outdoor": 2})
    write_folder(tmp_path / "train" / "dog", {"outdoor": 4})
    random_image(9).save(tmp_path / "train" / "dog" / "9.png")
    return tmp_path


def test_the_class_is_the_first_folder_as_in_torchvision(nested: Path) -> None:
    source, reference = open_folder(str(nested), "train"), ImageFolder(nested / "train")
    assert classes(source) == {"cat": 5, "dog": 5}
    assert list(source.class_names) == reference.classes
    of_paths = dict(reference.samples)
    assert {source.label(i): source.targets[i] for i in range(len(source))} == of_paths


@pytest.mark.parametrize("under", ["", "train", "a/b/train"])
@pytest.mark.parametrize("ending", [*TAR_KINDS, ".zip"])
def test_an_archive_shows_what_its_folder_does(nested: Path, tmp_path: Path, ending: str, under: str) -> None:
    (tmp_path / "packed").mkdir()
    pack(nested / "train", tmp_path / "packed" / f"train{ending}", under)
    folder, packed = open_folder(str(nested), "train"), open_folder(str(tmp_path / "packed"), "train")
    assert packed.class_names == folder.class_names and packed.targets.tolist() == folder.targets.tolist()
    for index in range(len(folder)):
        assert np.array_equal(packed.load(index), folder.load(index))
    assert (packed.identity == folder.identity) == (under == "")


@pytest.mark.parametrize("ending", [".tar", ".tgz", ".zip"])
@pytest.mark.parametrize("under", ["", "pets"])
def test_one_archive_may_hold_all_splits(image_root: Path, tmp_path_factory: Any, ending: str, under: str) -> None:
    root = pack(image_root, tmp_path_factory.mktemp("one") / f"pets{ending}", under)
    for split, counts in (("train", {"a": 24, "b": 12, "c": 6}), (None, {"a": 4, "b": 4, "c": 4})):
        packed, folder = open_folder(str(root), split), open_folder(str(image_root), split)
        assert classes(packed) == counts
        assert all(np.array_equal(packed.load(i), folder.load(i)) for i in range(0, len(folder), 5))
    moved = shutil.copy(root, root.parent / f"moved{ending}")
    assert open_folder(str(moved), "train").identity == open_folder(str(root), "train").identity
    with pytest.raises(DistproError, match=r"has no 'tset', as a folder \(did you mean 'test'\?\); it holds: test, tr"):
        open_folder(str(root), "tset")


def test_an_archive_with_a_class_called_train_is_the_train_split(tmp_path: Path) -> None:
    write_folder(tmp_path / "vehicles", {"bus": 2, "test": 1, "train": 3})
    root = pack(tmp_path / "vehicles", tmp_path / "vehicles.zip")
    assert classes(open_folder(str(root), "train")) == {"bus": 2, "test": 1, "train": 3}


def test_a_tar_of_tars_and_a_folder_of_tars_are_classes_by_tar(tmp_path: Path) -> None:
    (tmp_path / "packed" / "train").mkdir(parents=True)
    (tmp_path / "inner").mkdir()
    for name, count in {"n1": 3, "n2": 2}.items():
        write_folder(tmp_path / name, {"": count})
        pack(tmp_path / name, tmp_path / "packed" / "train" / f"{name}.tar")
        shutil.copy(tmp_path / "packed" / "train" / f"{name}.tar", tmp_path / "inner")
    write_folder(tmp_path / "n3", {"indoor": 1})
    random_image(0).save(tmp_path / "n3" / "0.png")
    pack(tmp_path / "n3", tmp_path / "packed" / "train" / "n3.zip")
    source = open_folder(str(tmp_path / "packed"), "train")
    assert classes(source) == {"n1": 3, "n2": 2, "n3": 2}
    assert all(source.load(index).shape == (32, 32, 3) for index in range(7))
    pack(tmp_path / "inner", tmp_path / "val.tar")
    tar_of_tars = open_folder(str(tmp_path), "val")
    assert classes(tar_of_tars) == {"n1": 3, "n2": 2}
    assert {tar_of_tars.load(i).tobytes() for i in range(5)} <= {source.load(i).tobytes() for i in range(7)}


def test_hidden_files_are_left_out_and_counted(nested: Path, tmp_path: Path) -> None:
    train = nested / "train"
    (train / "cat" / "._0.png").write_bytes(b"of macOS")
    (train / ".ipynb_checkpoints").mkdir()
    random_image(0).save(train / ".ipynb_checkpoints" / "0.png")
    (train / "__MACOSX").mkdir()
    random_image(0).save(train / "__MACOSX" / "0.png")
    for name in ("notes.txt", "more.TXT", "LICENSE", "video.mp4", "film.mpeg", "table.h5"):
        (train / name).write_bytes(b"")
    counts = {"hidden": 3, ".txt": 2, ".h5": 1, ".mp4": 1, ".mpeg": 1, "without ending": 1}
    assert dict(open_folder(str(nested), "train").skipped) == counts
    for ending in (".tar", ".zip"):
        source = open_folder(str(pack(train, tmp_path / f"other{ending}")), "train")
        assert dict(source.skipped) == counts and classes(source) == {"cat": 5, "dog": 5}
    data = ImageData(folder_data(nested, test_on="held-out", num_classes=2), 0)
    assert data.found == (
        "10 train images in 2 classes (5 each); skipped in train: 3 hidden, 2 .txt, 1 .h5, 1 .mp4, 2 more kinds"
    )


@pytest.mark.parametrize("ending", [".webp", ".bmp", ".tif", ".gif", ".jp2", ".ppm", ".JPEG", ".tga"])
def test_all_that_pillow_reads_is_an_image(tmp_path: Path, ending: str) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    random_image(0).save(tmp_path / "train" / "a" / f"0{ending}")
    source = open_folder(str(tmp_path), "train")
    assert len(source) == 1 and source.load(0).shape == (32, 32, 3) and source.skipped == ()


def test_what_pillow_only_names_or_another_program_reads_is_no_image() -> None:
    assert {".jpg", ".jpeg", ".png"} < image_endings()
    assert not {".mpg", ".h5", ".hdf", ".grib", ".bufr", ".wmf", ".eps", ".ps", ".pdf"} & image_endings()


def test_counts_are_terse() -> None:
    def said(*counts: int) -> str:
        source = folders.FolderSource(
            "here",
            np.repeat(np.arange(len(counts)), counts),
            np.repeat(np.arange(len(counts)), counts),
            tuple("abcdefghij"[: len(counts)]),
            paths=(),
        )
        return source.found("train")

    assert said(2000, 1000) == "3,000 train images in 2 classes (a 2,000, b 1,000)"
    assert said(7, 7, 7) == "21 train images in 3 classes (7 each)"
    assert said(*range(1, 11)) == "55 train images in 10 classes (1 to 10 each)"
    assert said(4) == "4 train images in 1 class (4 each)"


def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    write_folder(tmp_path / "elsewhere", {"a": 2})
    write_folder(tmp_path / "train", {"b": 1})
    (tmp_path / "train" / "a").symlink_to(tmp_path / "elsewhere" / "a")
    (tmp_path / "train" / "b" / "again").symlink_to(tmp_path / "train")
    (tmp_path / "train" / "b" / "here").symlink_to(".")
    assert classes(open_folder(str(tmp_path), "train")) == {"a": 2, "b": 1}


def test_links_in_a_tar_are_counted(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", {"a": 2})
    (tmp_path / "train" / "a" / "link.png").symlink_to("0.png")
    source = open_folder(str(pack(tmp_path / "train", tmp_path / "val.tar")), "train")
    assert len(source) == 2 and source.skipped == (("links in a tar", 1),)


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".zip"])
def test_a_download_that_broke_off_is_named(image_root: Path, tmp_path: Path, ending: str) -> None:
    archive = pack(image_root / "train", tmp_path / f"val{ending}")
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size * 2 // 3])
    with pytest.raises(DistproError, match=rf"val{ending}: cannot be read as images in class folders \(.+\)$"):
        open_folder(str(tmp_path), "val")


def test_a_zip_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", {"a": 1})
    with zipfile.ZipFile(tmp_path / "val.zip", "w", zipfile.ZIP_LZMA) as opened:
        opened.write(tmp_path / "train" / "a" / "0.png", "a/0.png")
    with pytest.raises(DistproError, match=r"a/0\.png is packed by method 14, not by deflate; unpack the zip"):
        open_folder(str(tmp_path), "val")
    content = bytearray(pack(tmp_path / "train", tmp_path / "test.zip").read_bytes())
    content[content.rindex(b"PK\x01\x02") + 8] |= 1  # the flag of encryption in the directory
    (tmp_path / "test.zip").write_bytes(content)
    with pytest.raises(DistproError, match=r"a/0\.png is encrypted; unpack the zip"):
        open_folder(str(tmp_path), None)


def test_no_room_to_unpack_is_said(image_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    pack(image_root / "train", tmp_path / "val.tgz")
    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(DistproError, match=r"unpacked under .* \(No space left on device\); set TMPDIR to a folder"):
        open_folder(str(tmp_path), "val")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks into /proc")
def test_an_unpacked_tar_has_no_name(image_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "room"))
    (tmp_path / "room").mkdir()
    pack(image_root / "train", tmp_path / "val.tar.gz")
    source = open_folder(str(tmp_path), "val")
    assert source.load(0).shape == (32, 32, 3) and not list((tmp_path / "room").iterdir())
    spec = folder_data(tmp_path, train_split="val", test_on="held-out", workers=2)
    assert len(list(ImageData(spec, 0).train_batches(10, 3))) == 3  # forked workers read it too


def test_a_changed_archive_is_opened_anew(tmp_path: Path) -> None:
    for number, time in ((0, 1e9), (1, 2e9)):
        shutil.rmtree(tmp_path / "train", ignore_errors=True)
        write_folder(tmp_path / "train", {"a": 1})
        random_image(number).save(tmp_path / "train" / "a" / "0.png")
        os.utime(pack(tmp_path / "train", tmp_path / "val.tar"), (time, time))
        assert np.array_equal(open_folder(str(tmp_path), "val").load(0), np.asarray(random_image(number)))


def test_what_is_wrapped_around_everything_is_dropped() -> None:
    assert without_wrapping([("t", "a"), ("t", "b")]) == [("a",), ("b",)]
    assert without_wrapping([("t", "u", "a"), ("t", "u", "b", "c")]) == [("a",), ("b", "c")]
    assert without_wrapping([("a",), ("a", "b")]) == [("a",), ("a", "b")]
    assert without_wrapping([("a",), ("b",)]) == [("a",), ("b",)]
    assert without_wrapping([(), ("a",)]) == [(), ("a",)]
    assert without_wrapping([]) == []


def test_names_are_ordered_as_before() -> None:
    timms = pytest.importorskip("timm.utils.misc").natural_key
    names = ["img10.png", "Img2.png", "b/01.png", "b/1x.png", "n02/3_4.JPEG", "n1/x", "7", "z9z"]
    assert sorted(names, key=natural_key) == sorted(names, key=timms)
    assert natural_key("x²") == ["x²"]  # timm takes it for a number and fails


def test_an_unreadable_folder_is_named(nested: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).rstrip("/").endswith("outdoor"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DistproError, match=r"train: cannot be read as images .*Permission denied"):
        open_folder(str(nested), "train")


def test_an_image_cut_short_in_an_archive_is_named(image_root: Path, tmp_path: Path) -> None:
    archive = pack(image_root / "train", tmp_path / "val.tar")
    source = open_folder(str(tmp_path), "val")
    with archive.open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(DistproError, match=r"val\.tar: c/5\.png: not a readable image \(0 of its \d+ bytes are there"):
        source.load(len(source) - 1)


def test_what_is_no_image_is_named_without_an_address(tmp_path: Path) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "train" / "a" / "0.png").write_bytes(b"nothing")
    for root in (tmp_path, pack(tmp_path / "train", tmp_path / "val.zip")):
        with pytest.raises(DistproError, match=r"a/0\.png: not a readable image \(no format that Pillow knows\); fix"):
            open_folder(str(root), "train").load(0)
