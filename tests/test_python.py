"""The door from Python: light to import, the same runs as the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import distpro_cli
from distpro_cli import compare, distil, load_process, load_recipe, search
from distpro_cli.errors import DistproError
from tests.conftest import Run


def test_the_door_is_light() -> None:
    code = (
        "import sys, distpro_cli\nfrom distpro_cli import compare, distil, load_process, load_recipe, search\n"
        "loaded = {'torch', 'timm', 'numpy', 'pydantic', 'typer'} & set(sys.modules)\nassert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_process_is_read_without_torch(searched: Path) -> None:
    code = (
        f"import sys\nfrom distpro_cli import load_process\nprint(load_process({str(searched / 'p.safetensors')!r})"
        ".weights.shape)\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout == "(5, 10)\n", done.stderr


def test_everything_public_says_what_it_does() -> None:
    for name in distpro_cli.__all__:
        function = getattr(distpro_cli, name)
        assert "Args:" in function.__doc__ and "Raises:" in function.__doc__
        assert set(function.__annotations__) >= {"return"}


def test_a_search_is_that_of_the_command_line(distpro: Run, workplace: Path) -> None:
    recipe = load_recipe("tiny.yaml", "search.epochs=1", "seed=3")
    found = search(recipe, output="mine.safetensors")
    assert not list(workplace.glob("runs"))
    assert found.process.weights.shape == (found.summary["rows"], 10)
    theirs = distpro("search", "tiny.yaml", "search.epochs=1", "--seed", 3, "-o", "theirs.safetensors", "-q")
    assert theirs.status == 0, theirs.err
    assert Path("mine.safetensors").read_bytes() == Path("theirs.safetensors").read_bytes()
    np.testing.assert_array_equal(load_process("mine.safetensors").alpha, found.process.alpha)
    with pytest.raises(DistproError, match=r"mine\.safetensors exists already"):
        search(recipe, output="mine.safetensors")


def test_distilling_gives_the_student_that_the_command_line_writes(distpro: Run, process: Path) -> None:
    result = distil(load_process(process), load_recipe("tiny.yaml", "distill.epochs=1"), keep=0.5)
    theirs = distpro("transfer", "tiny.yaml", "distill.epochs=1", "-p", process, "--keep", 0.5, "-q", "--json")
    assert theirs.status == 0, theirs.err
    assert isinstance(result.student, nn.Module) and not result.student.training
    assert result.summary["student"]["top1_last"] == theirs.json["student"]["top1_last"]
    weights = load_file(theirs.json["student"]["weights"])
    assert all(torch.equal(weights[key], value) for key, value in result.student.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in result.student.modules())
    images = (torch.rand(2, 3, 16, 16) - torch.tensor(result.mean)[:, None, None]) / result.std[0]
    assert result.student(images).shape == (2, 10)


def test_a_kept_run_is_resumed_from_either_side(distpro: Run, process: Path) -> None:
    arguments = ["transfer", "tiny.yaml", "distill.epochs=1", "-p", process, "--run-dir", "run", "-q", "--json"]
    first = distpro(*arguments)
    assert first.status == 0, first.err
    again = distil(load_process(process), load_recipe("tiny.yaml", "distill.epochs=1"), run_dir="run", resume=True)
    assert again.summary["student"] == first.json["student"]
    with pytest.raises(DistproError, match="holds a run already"):
        distil(load_process(process), load_recipe("tiny.yaml"), run_dir="run")


def test_a_scheme_needs_a_recipe_and_a_process_brings_its_own(process: Path) -> None:
    with pytest.raises(DistproError, match="the scheme kd names no networks"):
        distil("kd")
    with pytest.raises(DistproError, match=r"there is no scheme 'kdd' \(did you mean 'kd'\?\)"):
        distil("kdd", load_recipe("tiny.yaml"))
    assert distil(load_process(process), device="cpu").summary["pathways_used"] == 10


def test_comparing(workplace: Path, process: Path) -> None:
    recipe = load_recipe("tiny.yaml", "distill.epochs=1")
    processes = {"mine": load_process(process)}
    table = compare(recipe, processes=processes, methods=["student", "process"], thresholds=[0.5], seeds=1)
    assert [method["name"] for method in table["methods"]] == ["student", "process", "process threshold 0.5"]
    assert table["metric"]["name"] == "top1"
