"""distpro inspect: what it prints of processes, folders and recipes, and the plots it draws."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from distpro_cli.process.cost import Part
from distpro_cli.process.file import load_process, save_process
from distpro_cli.recipe.shipped import shipped_processes
from tests.conftest import Run
from tests.process.examples import make_process


@pytest.fixture
def processes(workplace: Path) -> Path:
    folder = workplace / "found"
    for seed in (0, 1):
        save_process(make_process(seed=seed), folder / f"{'ab'[seed]}.safetensors")
    return folder


def test_json_holds_what_the_contract_names(distpro: Run, processes: Path) -> None:
    result = distpro("inspect", processes / "a.safetensors", "--json")
    assert result.status == 0 and result.err == ""
    process, shown = make_process(), result.json
    assert (shown["format"], shown["version"], shown["rows"]) == ("distpro-process", 1, 21)
    assert [p["id"] for p in shown["pathways"]] == [p.id for p in process.pathways]
    first = shown["pathways"][1]
    assert (first["teacher_level"], first["student_level"]) == (2, 1)
    assert (first["transform"], first["distance"]) == ("conv2", "hcl")
    for key, value in {"start": process.at(0), "middle": process.at(0.5), "end": process.at(1)}.items():
        assert first[key] == pytest.approx(float(value[1]), rel=1e-5)
    assert first["mean"] == pytest.approx(process.mean[1])
    assert sum(p["share"] for p in shown["pathways"]) == pytest.approx(1)
    assert set(shown["remaining_percent"]) == {"0.3", "0.5", "0.6", "0.7"}
    scaled = (process.alpha - process.alpha.min()) / np.ptp(process.alpha)
    assert shown["remaining_percent"]["0.5"] == pytest.approx(100 * (scaled >= 0.5).mean())


def test_the_table_shows_every_pathway_in_eighty_columns(
    distpro: Run, processes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(processes)
    result = distpro("inspect", "a.safetensors")
    assert result.status == 0
    for pathway in make_process().pathways:
        assert f"\n{pathway.id} " in result.out
    assert "█" in result.out and "0.7:" in result.out
    assert max(map(len, result.out.splitlines())) <= 80
    assert "\x1b" not in result.out


def test_several_side_by_side(distpro: Run, processes: Path) -> None:
    result = distpro("inspect", processes / "a.safetensors", processes / "b.safetensors")
    assert result.status == 0
    assert "a.safetensors" in result.out and "b.safetensors" in result.out and "4-4" in result.out
    many = distpro("inspect", processes / "a.safetensors", processes / "b.safetensors", "--json").json
    assert [Path(p["path"]).name for p in many["processes"]] == ["a.safetensors", "b.safetensors"]


def test_a_folder_lists_its_processes_and_names_the_broken_one(distpro: Run, processes: Path) -> None:
    (processes / "broken.safetensors").write_bytes(b"nothing")
    result = distpro("inspect", processes)
    assert result.status == 0
    assert "a.safetensors" in result.out and "broken.safetensors" in result.out
    alone = distpro("inspect", processes / "broken.safetensors")
    assert alone.status == 2 and "truncated" in alone.err


def test_nothing_lists_what_ships(distpro: Run) -> None:
    result = distpro("inspect")
    assert result.status == 0
    assert "quickstart" in result.out and "imagenet/resnet34-resnet18" in result.out


def test_a_recipe_shows_its_pathways_and_touches_no_data(distpro: Run) -> None:
    result = distpro("inspect", "cifar10/wrn_16_2-wrn_10_1", "--json")
    assert result.status == 0, result.err
    shown = result.json
    assert shown["totals"]["pathways"] == len(shown["pathways"]) == 9
    assert shown["teacher"]["parameters"] == 691_674
    table = distpro("inspect", "cifar10/wrn_16_2-wrn_10_1").out
    assert "4-4" in table and "conv2" in table and "shared review" in table and "multiply-adds" in table


def test_each_shipped_process_is_listed_once(distpro: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = shipped_processes()
    assert shipped

    def listed() -> list[str]:
        return [entry["path"] for entry in distpro("inspect", "--json").json["processes"]]

    assert listed() == list(shipped)
    # Copies in processes/, as a checkout has them beside an installed package.
    copies = [workplace / "processes" / f"{name}.safetensors" for name in shipped]
    for copy, original in zip(copies, shipped.values(), strict=True):
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(original.read_bytes())
    assert listed() == [f"processes/{name}.safetensors" for name in shipped]
    # A process of one's own under a shipped name is another process.
    save_process(make_process(), copies[0], force=True)
    assert sorted(listed()) == sorted([*(f"processes/{name}.safetensors" for name in shipped), next(iter(shipped))])
    folder = next(iter(shipped.values())).parents[2]
    if (folder / "pyproject.toml").is_file():
        monkeypatch.chdir(folder)
        assert listed() == [f"processes/{name}.safetensors" for name in shipped]


def test_overrides_apply_to_every_recipe(distpro: Run, workplace: Path) -> None:
    same = "pathways.0.connections=same"
    assert distpro("inspect", "tiny.yaml", "--json").json["totals"]["pathways"] == 10
    assert distpro("inspect", "tiny.yaml", same, "student.name=wrn_10_2", "--json").json["totals"]["pathways"] == 4
    (workplace / "a=b.yaml").write_text((workplace / "tiny.yaml").read_text())  # a path, since it exists
    both = distpro("inspect", same, "tiny.yaml", "a=b.yaml", "--json").json["recipes"]
    assert [(recipe["path"], recipe["totals"]["pathways"]) for recipe in both] == [("tiny.yaml", 4), ("a=b.yaml", 4)]
    wrong = distpro("inspect", "tiny.yaml", "pathways.0.connection=same")
    assert wrong.status == 2 and "connections" in wrong.err and "Traceback" not in wrong.err


def test_a_recipe_shows_what_is_tapped(distpro: Run, workplace: Path) -> None:
    before = [f"{side}.feature=before-activation" for side in ("teacher", "student")]
    levels = distpro("inspect", "tiny.yaml", *before, "--json").json["student"]["levels"]
    assert levels[0]["point"] == "output of block2.layer.0.bn1"
    shown, plain = distpro("inspect", "tiny.yaml", *before).out, distpro("inspect", "tiny.yaml").out
    assert "tapped" in shown and "output of" in shown and "tapped" not in plain
    assert max(map(len, shown.splitlines())) <= 80


FUNCTIONAL = """
import torch.nn.functional as F
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.stage = Stage()
        self.head = nn.Linear(4, num_classes)

    def forward(self, x):
        return self.head(self.stage(x).mean((2, 3)))

class Stage(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)

    def forward(self, x):
        return F.relu(self.conv(x))
"""


def test_what_comes_before_a_functional_activation_is_status_2(distpro: Run, workplace: Path) -> None:
    (workplace / "net.py").write_text(FUNCTIONAL)
    own = ("student.name=net.py:Net", "student.levels=[stage, pooled]")
    assert distpro("inspect", "tiny.yaml", *own).status == 0
    result = distpro("inspect", "tiny.yaml", *own, "student.feature=before-activation")
    assert result.status == 2 and "Traceback" not in result.err
    assert "level stage: it ends in an activation that is not a module (such as F.relu)" in result.err


@pytest.mark.parametrize("paths", [[], ["a.safetensors"]])
def test_overrides_without_a_recipe_are_status_2(
    distpro: Run, processes: Path, monkeypatch: pytest.MonkeyPatch, paths: list[str]
) -> None:
    monkeypatch.chdir(processes)
    result = distpro("inspect", *paths, "search.epochs=3")
    assert result.status == 2 and result.out == ""
    assert result.err == (
        "error: search.epochs=3: an override applies only to recipes, and none is given; give a RECIPE\n"
    )


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_plots_are_pictures_and_not_overwritten(distpro: Run, processes: Path, suffix: str) -> None:
    target = processes / f"plot.{suffix}"
    assert distpro("inspect", processes / "a.safetensors", "--plot", target).status == 0
    content = target.read_bytes()
    assert content[:4] == {"png": b"\x89PNG", "svg": b"<?xm", "pdf": b"%PDF"}[suffix]
    if suffix == "svg":
        assert ElementTree.fromstring(content).tag.endswith("svg")
    again = distpro("inspect", processes / "a.safetensors", "--plot", target)
    assert again.status == 2 and "--force" in again.err
    assert distpro("inspect", processes / "a.safetensors", "--plot", target, "--force").status == 0
    assert target.read_bytes() == content


def test_a_plot_of_another_kind_is_refused(distpro: Run, processes: Path) -> None:
    result = distpro("inspect", processes / "a.safetensors", "--plot", "plot.gif")
    assert result.status == 2
    assert "png" in result.err and "svg" in result.err and "pdf" in result.err


@pytest.mark.parametrize("path", ["nowhere.safetensors", "nowhere", "tiny.yam"])
def test_what_is_not_there_is_status_2(distpro: Run, path: str) -> None:
    result = distpro("inspect", path)
    assert result.status == 2 and path in result.err and "Traceback" not in result.err


def with_parts(path: Path) -> Path:
    """The same process with a step of which the student is 30 %, the teacher 20 %, each pathway 5 %."""
    process = load_process(path)
    columns = range(len(process.pathways))
    parts = (
        Part("student forward", 10.0),
        Part("student backward", 20.0),
        Part("teacher 4", 20.0, tuple(columns)),
        *(Part(process.pathways[k].id, 5.0, (k,)) for k in columns),
    )
    save_process(replace(process, parts=parts), path, force=True)
    return path


def test_relative_cost_of_thresholds_and_shares(distpro: Run, processes: Path) -> None:
    path = with_parts(processes / "a.safetensors")
    shown = distpro("inspect", path, "--thresholds", "0,0.7", "--keep", "1,0.26", "--json").json
    assert shown["relative_cost"]["0"] == shown["keep"]["1"]["relative_cost"] == pytest.approx(1)
    assert shown["step_cost"] == pytest.approx({"student": 0.3, "teacher": 0.2, "pathways": 0.5})
    process = load_process(path)
    for schedule, found in (
        (process.schedule(threshold=0.7), shown["relative_cost"]["0.7"]),
        (process.schedule(keep=0.26), shown["keep"]["0.26"]["relative_cost"]),
    ):
        on = np.array([schedule.at((step + 0.5) / 4000) != 0 for step in range(4000)])
        simulated = 0.3 + 0.2 * on.any(axis=1).mean() + 0.05 * on.sum(axis=1).mean()
        assert found == pytest.approx(simulated, abs=2e-3)
    assert shown["keep"]["0.26"]["remaining_percent"] == pytest.approx(26, abs=0.3)


def test_the_table_shows_the_cost_or_that_it_is_not_known(
    distpro: Run, processes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    old = distpro("inspect", processes / "b.safetensors", "--keep", "0.5")
    assert "cost of a step: not in this file" in old.out
    assert distpro("inspect", processes / "b.safetensors", "--json").json["relative_cost"] is None
    path = with_parts(processes / "a.safetensors")
    new = distpro("inspect", path, "--keep", "0.5").out
    assert "cost of a step at threshold" in new and "cost of a step at keep" in new
    assert "student 30%, teacher 20%, pathways 50%" in new
    both = distpro("inspect", path, processes / "b.safetensors", "--keep", "0.5").out
    assert "keep 0.5" in both and " / -" in both
    listed = distpro("inspect", processes, "--json").json["processes"]
    assert [entry["relative_cost"] is None for entry in listed] == [False, True]


@pytest.mark.parametrize("text", ["0", "1.5", "half", "nan", ""])
def test_a_share_that_is_none_is_refused(distpro: Run, processes: Path, text: str) -> None:
    result = distpro("inspect", processes / "a.safetensors", "--keep", text)
    assert result.status == 2 and f"--keep: '{text}' is not a number above 0, up to 1" in result.err


def test_runs_write_what_their_steps_cost(distpro: Run) -> None:
    assert distpro("search", "tiny.yaml", "--output", "p.safetensors", "--quiet", "search.epochs=1").status == 0
    searched = distpro("inspect", "p.safetensors", "--json").json
    assert searched["relative_cost"]["0.3"] <= 1 and searched["step_cost"]["teacher"] > 0.05
    quick = ("--quiet", "distill.epochs=1")
    assert distpro("transfer", "tiny.yaml", "--process", "plain", "--run-dir", "plain", *quick).status == 0
    plain = distpro("inspect", "plain/process.safetensors", "--json").json
    assert plain["relative_cost"]["0.3"] == pytest.approx(plain["step_cost"]["student"])
