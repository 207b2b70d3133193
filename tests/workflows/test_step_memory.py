"""The estimate of a step's memory against what benchmarks/memory.py measures, in a small form, and through inspect."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

from distpro_cli.costs.complexity import build_for_costs
from distpro_cli.recipe.schema import Recipe
from distpro_cli.training.step import Pair
from distpro_cli.workflows import step_memory as estimating
from distpro_cli.workflows.step_memory import StepMemory, memory_report, step_memory
from tests.conftest import Run
from tests.helpers import digits_recipe

SMALL = (
    "data.image_size=64",
    "teacher.options={embed_dim: 48, depth: 4, num_heads: 2}",
    "student.options={embed_dim: 24, depth: 4, num_heads: 2}",
    "teacher.levels=[0, 1, 2, 3]",
    "student.levels=[0, 1, 2, 3]",
)


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("memory")


@pytest.mark.parametrize(
    "overrides", [("precision=float32",), ("precision=bfloat16", "distill.micro_batch_size=3")], ids=["whole", "parts"]
)
def test_the_estimate_is_what_is_measured(benchmark: ModuleType, overrides: tuple[str, ...]) -> None:
    found = benchmark.measure("cpu", 8, 10, 1, [*SMALL, *overrides])
    assert all(0.85 < ratio < 1.15 for ratio in found["estimate_over_measured"].values()), found
    assert 1 < found["distil_over_plain_student"] <= found["search_over_plain_student"] < 4
    assert 0 < found["growth_per_pathway"] < 0.5
    assert found["time_long_search_over_plain_student"] > 0
    assert found["student_peak_bytes"] < found["plain_peak_bytes"] < found["search_peak_bytes"]


def test_how_many_pathways_can_be_measured(benchmark: ModuleType) -> None:
    assert benchmark.connections(6) == [[1, 1], [2, 2], [3, 3], [4, 4], [2, 1], [3, 1]]
    with pytest.raises(ValueError, match="--pathways 17: 4 to 16 can be measured"):
        benchmark.connections(17)


def built(recipe: Recipe) -> Pair:
    torch.manual_seed(0)
    teacher, student, pathways = build_for_costs(recipe)
    return Pair(student, teacher, pathways)


def estimate(*overrides: str) -> StepMemory:
    recipe = digits_recipe(*overrides)
    return step_memory(recipe, built(recipe))


def test_it_leaves_the_pair_and_the_random_state_alone() -> None:
    recipe = digits_recipe("distill.batch_size=8", "distill.ema_decay=0.9")
    pair = built(recipe)
    before = {name: tensor.clone() for name, tensor in pair.student.state_dict().items()}
    state = torch.get_rng_state()
    found = step_memory(recipe, pair)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in pair.student.state_dict().items())
    # The running average is the student once more; a search has none.
    tensors = [*pair.student.model.parameters(), *pair.student.model.buffers()]
    average = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert found.plain_bytes == found.plain_search_bytes + average


def test_many_micro_batches_are_estimated_from_few(monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ("distill.batch_size=36", "distill.micro_batch_size=4", "pathways=[{connections: same}]")
    few = estimate(*overrides)
    monkeypatch.setattr(estimating, "MOST_PARTS", 9)
    all_of_them = estimate(*overrides)
    assert few.search_bytes == pytest.approx(all_of_them.search_bytes, rel=0.02)
    assert few.distil_bytes == pytest.approx(all_of_them.distil_bytes, rel=0.02)


def test_other_methods_are_estimated_as_what_they_do() -> None:
    found = {method: estimate(f"search.method={method}", "distill.batch_size=16") for method in ("random", "cosine")}
    assert found["random"].search_bytes == found["random"].distil_bytes < found["cosine"].search_bytes


def test_inspect_shows_it(distpro: Run, workplace: Path) -> None:
    memory = distpro("inspect", "tiny.yaml", "--json").json["memory"]
    assert memory["search_bytes"] > memory["distil_bytes"] > 0
    assert memory["search_over_plain_student"] > memory["distil_over_plain_student"] > 1
    *_, line, unit = distpro("inspect", "tiny.yaml").out.splitlines()
    assert line.startswith("peak memory, estimated: search ") and unit.startswith("x: over plain training")
    assert f"({memory['distil_over_plain_student']:.2f}x)" in line and len(line) <= 80


def test_what_cannot_be_estimated_is_said(distpro: Run, workplace: Path) -> None:
    (workplace / "net.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, num_classes=10):\n"
        "        super().__init__()\n"
        "        self.body = nn.Conv2d(3, 4, 3, 2)\n"
        "        self.head = nn.Linear(4, num_classes)\n"
        "    def forward(self, x):\n"
        "        x = x * (1 + 0 * len(x.nonzero()))\n"  # a shape that depends on values
        "        return self.head(self.body(x).mean((2, 3)))\n"
    )
    found = distpro("inspect", "tiny.yaml", "student={name: 'net.py:Net', levels: [body]}", "pathways=[{}]")
    assert found.status == 0 and "memory of a step: cannot be estimated (" in found.out


def test_a_failure_of_the_estimate_is_no_error() -> None:
    recipe = digits_recipe("search.hypergradient_options={shift_length: 0}")
    assert memory_report(recipe, built(recipe)) == {"error": "option 'shift_length' is 0; it must be a number above 0"}
