"""Where the cells of a level lie: as given, or as its shape says."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distpro_cli.errors import ProcessError
from distpro_cli.process.fields import decode_fields, encode_fields
from distpro_cli.process.file import load_process, save_process
from distpro_cli.process.pathway import LevelInfo, PathwayInfo, guess_grid
from distpro_cli.process.process import Process
from tests.process.examples import make_process


@pytest.mark.parametrize(
    ("num_tokens", "expected"),
    [
        (1, (0, (1, 1))),
        (196, (0, (14, 14))),
        (197, (1, (14, 14))),
        (198, (2, (14, 14))),
        (201, (5, (14, 14))),
        (38, (2, (6, 6))),
        (2, (1, (1, 1))),
        (3, (0, None)),  # two tokens before a row of one
        (15, (0, None)),
        (7 * 7 + 8, (0, None)),
        (8 * 8 + 8, (8, (8, 8))),
        (9 * 9 + 9, (0, None)),
    ],
)
def test_the_guess(num_tokens: int, expected: tuple[int, tuple[int, int] | None]) -> None:
    assert guess_grid(num_tokens) == expected


def test_the_guess_is_the_smallest_prefix_that_leaves_a_square() -> None:
    for num_tokens in range(1, 2000):
        prefix, grid = guess_grid(num_tokens)
        fitting = [p for p in range(9) if p < num_tokens and math.isqrt(num_tokens - p) ** 2 == num_tokens - p]
        allowed = [p for p in fitting if p * p <= num_tokens - p]
        assert (prefix, grid is None) == ((allowed[0], False) if allowed else (0, True))
        assert grid is None or prefix + grid[0] * grid[1] == num_tokens


@pytest.mark.parametrize(
    ("kind", "shape", "prefix", "grid"),
    [
        ("map", (64, 7, 5), 0, (7, 5)),
        ("vector", (64,), 0, (1, 1)),
        ("logits", (10,), 0, (1, 1)),
        ("tokens", (17, 64), 1, (4, 4)),
        ("tokens", (15, 64), 0, None),
    ],
)
def test_what_is_not_given_follows_from_the_shape(
    kind: str, shape: tuple[int, ...], prefix: int, grid: tuple[int, int] | None
) -> None:
    level = LevelInfo(1, 2, "stage", kind, None, shape)
    assert (level.prefix, level.grid) == (prefix, grid)


def test_what_is_given_counts() -> None:
    level = LevelInfo(1, 2, "stage", "tokens", None, (9, 64), 5, (2, 2))
    assert (level.prefix, level.grid) == (5, (2, 2))
    assert replace(level, number=2).grid == (2, 2)


@pytest.mark.parametrize(
    ("num_tokens", "image_size", "expected"),
    [
        (50, (20, 40), (0, (5, 10))),  # else one before 7×7
        (51, (20, 40), (1, (5, 10))),
        (24, (64, 96), (0, (4, 6))),
        (26, (96, 64), (2, (6, 4))),
        (8, (60, 100), (0, (2, 4))),  # cells of 32 pixels, the last ones padded
        (23, (64, 96), (0, None)),
        (50, (32, 32), (1, (7, 7))),
    ],
)
def test_the_guess_over_an_image_that_is_not_square(
    num_tokens: int, image_size: tuple[int, int], expected: tuple[int, tuple[int, int] | None]
) -> None:
    assert guess_grid(num_tokens, image_size) == expected


def token_process(level: LevelInfo) -> Process:
    return make_process(pathways=[PathwayInfo("1-1", level, level, "linear", "mse")])


@pytest.mark.parametrize("given", [{"prefix": 1, "grid": (5, 10)}, {"guess": False}, {}])
def test_a_process_file_tells_a_grid_that_does_not_follow(tmp_path: Path, given: dict[str, Any]) -> None:
    process = token_process(LevelInfo(1, 1, "blocks.0", "tokens", 4, (51, 8), **given))
    save_process(process, tmp_path / "p.safetensors")
    assert load_process(tmp_path / "p.safetensors").pathways == process.pathways
    told = json.loads(encode_fields(process)["pathways"])[0]["teacher"].keys()
    assert ({"prefix", "grid"} <= told) == bool(given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": [5, 9]}, "prefix 1 and grid [5, 9] are not those of [51, 8]"),
        ({"grid": [5]}, "prefix 1 and grid [5] are not those of"),
        ({"grid": [-5, -10]}, "grid is -5; expected a whole number from 1"),
        ({"prefix": True}, "prefix True and grid [5, 10] are not those of"),
        ({"kind": "vector"}, "are not those of"),
        ({"grid": None}, "prefix 1 and grid None are not those of"),
    ],
)
def test_a_wrong_grid_in_a_file_is_refused(change: dict[str, Any], message: str) -> None:
    fields = encode_fields(token_process(LevelInfo(1, 1, "blocks.0", "tokens", 4, (51, 8), 1, (5, 10))))
    pathways = json.loads(fields["pathways"])
    pathways[0]["teacher"] |= change
    with pytest.raises(ProcessError, match=re.escape(message)):
        decode_fields(fields | {"pathways": json.dumps(pathways)})


def test_half_a_grid_in_a_file_is_refused() -> None:
    fields = encode_fields(token_process(LevelInfo(1, 1, "blocks.0", "tokens", 4, (51, 8), 1, (5, 10))))
    pathways = json.loads(fields["pathways"])
    del pathways[0]["student"]["grid"]
    with pytest.raises(ProcessError, match="student lacks grid"):
        decode_fields(fields | {"pathways": json.dumps(pathways)})


def test_a_process_file_does_not_tell_prefix_and_grid_of_maps(tmp_path: Path) -> None:
    plain = make_process()
    stated = [replace(i, student=replace(i.student, prefix=5, grid=(2, 3))) for i in plain.pathways]
    save_process(plain, tmp_path / "plain.safetensors")
    save_process(replace(plain, pathways=tuple(stated)), tmp_path / "stated.safetensors")
    assert (tmp_path / "plain.safetensors").read_bytes() == (tmp_path / "stated.safetensors").read_bytes()
    assert load_process(tmp_path / "stated.safetensors").pathways == plain.pathways
