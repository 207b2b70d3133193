"""Where the cells of a level lie: as given, or as its shape says."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from distpro_cli.process.file import load_process, save_process
from distpro_cli.process.pathway import LevelInfo, guess_grid
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


def test_a_process_file_does_not_tell_prefix_and_grid(tmp_path: Path) -> None:
    plain = make_process()
    stated = [replace(i, student=replace(i.student, prefix=5, grid=(2, 3))) for i in plain.pathways]
    save_process(plain, tmp_path / "plain.safetensors")
    save_process(replace(plain, pathways=tuple(stated)), tmp_path / "stated.safetensors")
    assert (tmp_path / "plain.safetensors").read_bytes() == (tmp_path / "stated.safetensors").read_bytes()
    assert load_process(tmp_path / "stated.safetensors").pathways == plain.pathways
