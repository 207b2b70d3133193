"""benchmarks/gpu.py: pieces are done once, what fails or is cut is not done, and a page keeps its own text."""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu")


def printing(gpu: ModuleType, text: str) -> object:
    return gpu.Piece("one", "One", ("-c", f"open('count', 'a').write('x'); print({text!r})"))


def test_a_piece_is_done_once(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    piece, deadline = printing(gpu, 'a line first\n{"ratio": 1.25, "of": {"what": 3}}'), time.time() + 600
    assert gpu.do(piece, tmp_path, deadline) and gpu.do(piece, tmp_path, deadline)
    assert Path("count").read_text() == "x"
    figures = gpu.page([piece], tmp_path, None)
    assert "| ratio | 1.25 |" in figures and "| of what | 3 |" in figures


def test_what_fails_or_has_no_time_is_not_done(gpu: ModuleType, tmp_path: Path) -> None:
    failing = gpu.Piece("fails", "Fails", ("-c", "raise SystemExit(3)"))
    assert not gpu.do(failing, tmp_path, time.time() + 600)
    assert not gpu.do(printing(gpu, "{}"), tmp_path, time.time() + 30)
    assert not list(tmp_path.glob("*.json")) and gpu.page([failing], tmp_path, None).count("Not measured.") == 1


def test_a_comparison_is_done_when_every_seed_is(gpu: ModuleType, tmp_path: Path) -> None:
    rows = [{"method": "process", "seeds": [0], "errors": []}]
    rows.append({"method": "student", "seeds": [0, 1], "errors": []})
    for whole in (False, True):
        rows[0]["errors"] = ["diverged"] if whole else []
        command = ("-c", f"print({json.dumps({'methods': rows})!r})")
        assert gpu.do(gpu.Piece("some", "Some", command, runs=4), tmp_path, time.time() + 600) is whole


def test_a_page_keeps_what_is_around_the_figures(gpu: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "gpu.md"
    page.write_text("# On a GPU\n\nBy hand.\n")
    for text in ("first", "second"):
        gpu.write_page(page, text)
    assert page.read_text() == f"# On a GPU\n\nBy hand.\n\n{gpu.BEGIN}\nsecond\n{gpu.END}"


@pytest.mark.parametrize("toy", [False, True])
def test_the_pieces_are_there(gpu: ModuleType, tmp_path: Path, toy: bool) -> None:
    found = gpu.pieces(tmp_path, toy=toy, device="cpu", seeds=5, workers=2, data="somewhere")
    assert len({piece.name for piece in found}) == len(found) == 12
    for piece in found:
        first = Path(piece.command[0])
        assert piece.command[0] in ("-m", "-c") or first.is_file() or first.name == "loader.py"
    assert str(BENCHMARKS) in sys.path
