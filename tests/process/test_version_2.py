"""What files of version 2 say beyond those of version 1, and how little of it is believed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distpro_cli.errors import ProcessError
from distpro_cli.process.file import load_process, save_process, to_bytes, version_of
from distpro_cli.process.process import Process
from tests.process.examples import make_level, make_process

SEARCHED = {"kappa": 10.0, "scale": "loss", "steps": 620, "data": "CIFAR10"}


def full() -> Process:
    """A process that says all."""
    tapped = [replace(make_level(n, 4, 64), feature="output" if n < 4 else None) for n in range(1, 5)]
    student = [replace(make_level(n, 4, 16), feature="before-activation" if n < 4 else None) for n in range(1, 5)]
    return replace(
        make_process(),
        teacher_levels=tuple(tapped),
        student_levels=tuple(student),
        searched=SEARCHED,
        gained={"metric": "top-1", "over_student": 3.5},
        history=("smoothed over 0.1 of the run",),
    )


def test_what_is_said_comes_back_in_equal_bytes(tmp_path: Path) -> None:
    process = full()
    assert version_of(process) == 2 and version_of(make_process()) == 1
    save_process(process, tmp_path / "p.safetensors")
    again = load_process(tmp_path / "p.safetensors")
    for name in ("searched", "gained", "history", "teacher_levels", "student_levels", "pathways"):
        assert getattr(again, name) == getattr(process, name)
    assert [level.feature for level in again.teacher_levels] == ["output"] * 3 + [None]
    assert again.pathways[0].student.feature == "before-activation"  # equality leaves it out
    assert to_bytes(again) == to_bytes(process)


@pytest.mark.parametrize("name", ["searched", "gained", "history", "teacher_levels"])
def test_each_of_them_makes_a_file_one_of_version_2(name: str) -> None:
    process = replace(make_process(), **{name: getattr(full(), name)})
    assert version_of(process) == 2


def changed(content: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header["__metadata__"])
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def edited(key: str, change: Callable[[Any], object]) -> Callable[[dict[str, Any]], object]:
    def apply(metadata: dict[str, Any]) -> None:
        value = json.loads(metadata[key])
        change(value)
        metadata[key] = json.dumps(value)

    return apply


BROKEN: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "searched": (lambda m: m.update(searched="[]"), "the metadata's searched"),
    "infinite": (lambda m: m.update(searched='{"kappa": 1e999}'), "finite|number"),
    "control characters": (lambda m: m.update(gained='{"metric": "\\u001b[2J"}'), "gained metric is"),
    "history": (lambda m: m.update(history='["ok", "a\\nb"]'), "history line 2 is"),
    "long history": (lambda m: m.update(history=json.dumps(["x"] * 1001)), "1001 history lines; at most 1000"),
    "levels": (lambda m: m.update(levels="{}"), "levels lacks student, teacher"),
    "a feature": (edited("levels", lambda v: v["teacher"][0].update(feature="x")), "feature is 'x'; allowed: output"),
    "a key": (edited("levels", lambda v: v["teacher"][0].update(odd=1)), "holds unknown keys: 'odd'"),
    "a number": (edited("levels", lambda v: v["student"].pop(0)), "the student levels are not numbered from 1 on"),
    "a count": (edited("levels", lambda v: v["student"].pop()), "do not have the count of 3"),
    "another level": (
        edited("levels", lambda v: v["teacher"][0].update(shape=[3, 2, 2])),
        "pathway 1-1: its teacher level 1 is not among the levels",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_malformed_is_refused(tmp_path: Path, name: str) -> None:
    change, message = BROKEN[name]
    (tmp_path / "p.safetensors").write_bytes(changed(to_bytes(full()), change))
    with pytest.raises(ProcessError, match=message):
        load_process(tmp_path / "p.safetensors")


def test_a_file_of_version_1_says_nothing_of_it(tmp_path: Path) -> None:
    foreign = changed(to_bytes(make_process()), lambda m: m.update(history="whatever", searched="?"))
    (tmp_path / "p.safetensors").write_bytes(foreign)
    process = load_process(tmp_path / "p.safetensors")
    assert process.history == () and process.searched == {} and version_of(process) == 1
