"""Process files: exact round trips, an independent reader, equal bytes, and nothing malformed accepted."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from distpro_cli.errors import DistproError, ProcessError
from distpro_cli.process.file import load_process, save_process
from distpro_cli.process.process import Process
from tests.process.examples import make_process

DOC = Path(__file__).parents[2] / "docs" / "process-format.md"
SHIPPED = sorted((DOC.parents[1] / "processes").glob("**/*.safetensors"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_process(make_process(), tmp_path / "p.safetensors")
    return tmp_path / "p.safetensors"


def test_a_round_trip_is_exact(path: Path) -> None:
    before, after = make_process(), load_process(path)
    for name in ("progress", "weights", "alpha"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
    for name in ("pathways", "normalization", "recipe", "seed"):
        assert getattr(before, name) == getattr(after, name)
    assert dict(before.versions) == dict(after.versions) and dict(before.measured) == dict(after.measured)


def test_safetensors_reads_it(path: Path) -> None:
    tensors = load_file(path)
    assert set(tensors) == {"alpha", "progress", "weights"}
    np.testing.assert_array_equal(tensors["weights"], make_process().weights)


def test_the_documents_reader_works(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.findall(r"```python\n(.*?)```", DOC.read_text(), flags=re.S)[0]
    monkeypatch.chdir(path.parent)
    names: dict[str, Any] = {}
    exec(code, names)
    np.testing.assert_allclose(list(names["half_way"].values()), make_process().at(0.5), rtol=1e-6)


def test_equal_processes_give_equal_bytes_in_every_python(path: Path) -> None:
    code = (
        "from pathlib import Path; from distpro_cli.process.file import save_process;"
        "from tests.process.examples import make_process; save_process(make_process(), Path('again.safetensors'))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": str(DOC.parents[1])}
    subprocess.run([sys.executable, "-c", code], cwd=path.parent, env=environment, check=True)
    assert path.read_bytes() == (path.parent / "again.safetensors").read_bytes()


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_process_is_written_again_byte_for_byte(shipped: Path, tmp_path: Path) -> None:
    save_process(load_process(shipped), tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == shipped.read_bytes()


def test_an_existing_file_needs_force(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(DistproError, match="--force"):
        save_process(make_process(seed=1), path)
    assert path.read_bytes() == before
    save_process(make_process(seed=1), path, force=True)
    assert path.read_bytes() != before


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_what_was_there(path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", fail) if call == "fsync" else monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(DistproError, match="No space left on device"):
        save_process(make_process(seed=1), path, force=True)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["p.safetensors"]


def with_header(content: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def with_text(content: bytes, old: bytes, new: bytes) -> bytes:
    length = int.from_bytes(content[:8], "little")
    text = content[8 : 8 + length]
    assert old in text
    text = text.replace(old, new, 1)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def shifted(header: dict[str, Any], name: str, num_bytes: int) -> None:
    header[name]["data_offsets"] = [offset + num_bytes for offset in header[name]["data_offsets"]]


def metadata(key: str, value: str) -> Callable[[bytes], bytes]:
    return lambda content: with_header(content, lambda header: header["__metadata__"].update({key: value}))


CORRUPTIONS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda content: b"", "empty"),
    "a few bytes": (lambda content: content[:5], "truncated"),
    "half the header": (lambda content: content[:100], "truncated"),
    "no last byte": (lambda content: content[:-1], "data|bytes"),
    "one byte more": (lambda content: content + b"\0", "data|bytes"),
    "huge header": (lambda content: (2**40).to_bytes(8, "little") + content[8:], "header"),
    "text": (lambda content: b"data: {name: digits}\nteacher: {}\n", "not a process file"),
    "not JSON": (lambda content: content[:8] + b"?" + content[9:], "JSON"),
    "not UTF-8": (lambda content: content[:8] + b"\xff" + content[9:], "UTF-8|JSON"),
    "other format": (metadata("format", "weights"), "not a process"),
    "newer": (metadata("version", "3"), "newer"),
    "odd version": (metadata("version", "one"), "version"),
    "pathways no list": (metadata("pathways", "{}"), "list"),
    "pathways deep": (metadata("pathways", "[" * 100_000), "deep|JSON"),
    "fewer pathways": (metadata("pathways", "[]"), "pathway"),
    "seed": (metadata("seed", "many"), "seed"),
    "measured": (metadata("measured", '{"top1": NaN}'), "JSON|finite"),
    "no recipe": (lambda c: with_header(c, lambda h: h["__metadata__"].pop("recipe")), "lacks recipe"),
    "metadata of numbers": (lambda c: with_header(c, lambda h: h["__metadata__"].update({"seed": 3})), "strings"),
    "no weights": (lambda c: with_header(c, lambda h: h.pop("weights")), "weights"),
    "float16": (lambda c: with_header(c, lambda h: h["alpha"].update({"dtype": "F16"})), "F16|float32|F32"),
    "shape": (lambda c: with_header(c, lambda h: h["alpha"].update({"shape": [3, 3]})), "alpha"),
    "negative shape": (lambda c: with_header(c, lambda h: h["alpha"].update({"shape": [-21, -10]})), "alpha"),
    # What the reader of safetensors itself lets pass.
    "tensor twice": (lambda c: with_text(c, b'"alpha":', b'"alpha":{},"alpha":'), "'alpha' occurs twice"),
    "metadata twice": (lambda c: with_text(c, b'"seed":', b'"seed":"1","seed":'), "'seed' occurs twice"),
    "key of an entry twice": (lambda c: with_text(c, b'"dtype":', b'"dtype":"F32","dtype":'), "'dtype' occurs twice"),
    "unknown key": (lambda c: with_header(c, lambda h: h["alpha"].update({"order": "C"})), "'alpha': expected exactly"),
    "entry as a list": (
        lambda c: with_header(c, lambda h: h.update({"alpha": list(h["alpha"].values())})),
        "'alpha': expected exactly",
    ),
    "no metadata": (lambda c: with_header(c, lambda h: h.update({"__metadata__": None})), "mapping of strings"),
    "empty and huge": (
        lambda c: with_header(c, lambda h: h["alpha"].update({"shape": [0, 2**62], "data_offsets": [0, 0]})),
        "'alpha': the shape",
    ),
    # And what it refuses.
    "a gap": (lambda c: with_header(c, lambda h: shifted(h, "weights", 4)), "'weights' starts at byte"),
    "an overlap": (lambda c: with_header(c, lambda h: shifted(h, "weights", -4)), "'weights' starts at byte"),
    "odd type": (lambda c: with_header(c, lambda h: h["alpha"].update({"dtype": ["F32"] * 99})), "'alpha' is of type"),
    "huge shape": (lambda c: with_header(c, lambda h: h["alpha"].update({"shape": [2**62, 2**62]})), "alpha"),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_what_is_malformed_is_refused(path: Path, name: str) -> None:
    corrupt, message = CORRUPTIONS[name]
    path.write_bytes(corrupt(path.read_bytes()))
    with pytest.raises(ProcessError, match=message) as error:
        load_process(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": -1.0}, "negative|≥ 0|below"),
        ({"weights": np.nan}, "finite"),
        ({"alpha": np.inf}, "finite"),
        ({"progress": 0.5}, "progress"),
    ],
)
def test_impossible_values_are_refused(path: Path, change: dict[str, float], message: str) -> None:
    tensors = load_file(path)
    length = int.from_bytes(path.read_bytes()[:8], "little")
    strings = json.loads(path.read_bytes()[8 : 8 + length])["__metadata__"]
    for name, value in change.items():
        tensors[name][3] = value
    save_file(tensors, path, strings)
    with pytest.raises(ProcessError, match=message):
        load_process(path)


def test_random_damage_is_noticed_or_harmless_but_never_a_crash(path: Path) -> None:
    generator = np.random.default_rng(0)
    content = path.read_bytes()
    for _ in range(300):
        damaged = bytearray(content)
        for position in generator.integers(0, len(content), size=generator.integers(1, 6)):
            damaged[position] = generator.integers(0, 256)
        path.write_bytes(bytes(damaged))
        try:
            assert isinstance(load_process(path), Process)
        except ProcessError:
            continue


def test_a_folder_and_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ProcessError, match="folder"):
        load_process(tmp_path)
    with pytest.raises(ProcessError, match="no such file"):
        load_process(tmp_path / "none.safetensors")


def test_a_process_that_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    broken = replace(make_process(), measured={"top1": float("nan")})
    with pytest.raises(ProcessError):
        save_process(broken, tmp_path / "p.safetensors")
    assert not list(tmp_path.iterdir())
