"""Tables of processes and recipes: what they hold, at which width, in which encoding."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from distpro_cli.process.summary import sample
from distpro_cli.report.process_table import print_process_table, print_side_by_side
from distpro_cli.report.recipe_table import print_recipe_table
from distpro_cli.report.terminal import count, number, size, sparkline
from tests.process.examples import constant_process, lower_pathways, make_pathway, make_process


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (number, 0, "0"),
        (number, 0.123456, "0.123"),
        (number, 12.3456, "12.346"),
        (number, 1.2e-7, "1.2e-07"),
        (count, 0, "0"),
        (count, 812, "812"),
        (count, 12_345, "12.3 k"),
        (count, 4.56e9, "4.56 G"),
        (size, 12, "12 B"),
        (size, 1536, "1.5 KiB"),
        (size, 3 * 2**20, "3 MiB"),
    ],
)
def test_numbers_are_short(function: object, value: float, text: str) -> None:
    assert callable(function) and function(value) == text


def test_a_sparkline_goes_from_bottom_to_top() -> None:
    assert sparkline([0, 0.5, 1], 1, "utf-8") == "▁▅█"
    assert sparkline([0, 0.5, 1], 1, "ascii").isascii()
    assert sparkline([0, 0], 0, "utf-8") == "▁▁"


def test_samples_are_means_over_equal_parts() -> None:
    process = make_process(801)
    parts = process.weights[:-1].reshape(8, 100, -1).mean(axis=1)
    np.testing.assert_allclose(sample(process, 8), parts, rtol=0.05)


def test_no_id_is_cut_in_eighty_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    long = make_pathway(3, 1, transform="attention", distance="cosine", name="3-1:attention+cosine")
    process = make_process(pathways=[*lower_pathways(), long])
    print_process_table("p.safetensors", process)
    print_side_by_side([(f"{name}.safetensors", process) for name in "abcde"])
    text = capsys.readouterr().out
    assert text.count("3-1:attention+cosine ") > 2 and "transform attention, distance cosine" in text
    assert max(map(len, text.splitlines())) <= 80 and "\x1b" not in text
    assert all(f"{name}.safetensors" in text for name in "abcde")


def test_weights_that_are_all_zero_have_a_table_too(capsys: pytest.CaptureFixture[str]) -> None:
    print_process_table("zero", constant_process(lower_pathways(), 0.0))
    assert "0.0%" in capsys.readouterr().out


def test_a_scale_is_shown_in_eighty_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    long = make_pathway(3, 1, transform="attention", distance="cosine", name="3-1:attention+cosine")
    plain = make_process(pathways=[*lower_pathways(), long])
    scale_tk = np.tile(np.float32([1.5e-4 * 10**k for k in range(11)]), (len(plain.progress), 1))
    process = replace(plain, scale=scale_tk, weights=plain.weights * scale_tk)
    print_process_table("p.safetensors", process)
    print_side_by_side([("p.safetensors", process), ("q.safetensors", plain)])
    text = capsys.readouterr().out
    assert "weight / scale" in text and max(map(len, text.splitlines())) <= 80
    np.testing.assert_allclose(sample(process, 8), sample(plain, 8), rtol=1e-5)


def test_a_terminal_without_unicode_gets_ascii() -> None:
    with _stdout("ascii") as read:
        print_process_table("p", make_process())
        text = read()
    assert "@" in text and "|" not in text and "---" in text


def test_a_recipe_is_shown_with_the_costs_of_its_pathways(capsys: pytest.CaptureFixture[str]) -> None:
    level = {"number": 1, "name": "layer1", "kind": "map", "shape": (16, 32, 32), "reduction": 1}
    level["point"] = "output of layer1"
    network = {
        "name": "wrn_16_2",
        "weights": "random",
        "channels": 3,
        "parameters": 691_674,
        "multiply_adds": 101e6,
        "levels": [level],
    }
    costs = {"parameters": 4960, "multiply_adds": 4.98e6, "backward_bytes": 396_288}
    row = {"id": "1-1", "transform": "conv2", "distance": "hcl", **costs}
    row |= {"teacher_shape": (32, 32, 32), "student_shape": (16, 32, 32)}
    row |= {"teacher_reduction": 1, "student_reduction": 1}
    report = {"teacher": network, "student": network, "pathways": [row], "totals": {"pathways": 1, **costs}}
    report["alignment"] = "depth"
    report["shared"] = [{"transform": "review", "student_levels": [1, 2], **costs}]
    report["memory"] = {f"{kind}_bytes": 2**31 for kind in ("search", "distil")}
    report["memory"] |= {"search_over_plain_student": 1.251, "distil_over_plain_student": 1.2}
    print_recipe_table("tiny.yaml", report)
    text = capsys.readouterr().out
    for part in (
        "692 k parameters",
        "16x32x32 /1",
        "transform conv2, distance hcl",
        "4.96 k",
        "387 KiB",
        "shared review",
        "joined by depth",
        "search 2 GiB (1.25x), distillation 2 GiB (1.20x)",
        "levels 1, 2",
        "1 in all",
    ):
        assert part in text


@contextmanager
def _stdout(encoding: str) -> Iterator[Callable[[], str]]:
    raw = io.BytesIO()
    before, sys.stdout = sys.stdout, io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    try:
        yield lambda: raw.getvalue().decode(encoding)
    finally:
        sys.stdout = before
