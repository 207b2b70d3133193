"""distpro compare through the real command line: the contract, kept runs, interruptions, wrong input."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from distpro_cli.costs.step_costs import step_parts
from distpro_cli.process.cost import Part
from distpro_cli.process.file import load_process
from distpro_cli.training import loop
from distpro_cli.workflows import pairs
from tests.commands.test_trust import wait_for
from tests.conftest import Result, Run, start_distpro

ONE = ["--seeds", "1", "--quiet", "--json"]
TWO = ["--seeds", "2", "--quiet", "--json"]


def runs_of(workplace: Path) -> dict[str, float]:
    """Returns when the runs were finished, by folder."""
    root = workplace / "runs" / "compare-tiny"
    return {summary.parent.name: summary.stat().st_mtime_ns for summary in root.glob("*/summary.json")}


def test_the_contract(distpro: Run, workplace: Path, process: Path) -> None:
    methods = "student,kd,uniform,reviewkd,hint,attention-transfer,process,process-mean"
    short = ["distill.epochs=1", "-p", process, "--methods", methods, "--thresholds", "0.3"]
    result = distpro("compare", "tiny.yaml", *short, *TWO)
    assert result.status == 0, result.err
    summary = result.json
    names = [*methods.split(",")[:-1], "process threshold 0.3", "process-mean"]
    assert [method["name"] for method in summary["methods"]] == names
    check_verdict(summary)
    assert summary["teacher"]["name"] == "wrn_10_1" and 0 <= summary["teacher"]["top1"] <= 100
    for method in summary["methods"]:
        for key in ("top1_last", "top1_best"):
            assert set(method[key]) == {"mean", "std", "values"} and len(method[key]["values"]) == 2
        assert method["seconds"] > 0 and method["device_seconds"] > 0
        assert (method["difference"] is None) == (method["name"] == "student")
    by_name = {method["name"]: method for method in summary["methods"]}
    assert by_name["student"]["remaining_percent"] == 0
    assert by_name["process"]["remaining_percent"] == 100
    assert 0 < by_name["process threshold 0.3"]["remaining_percent"] <= 100
    assert by_name["uniform"]["search_seconds"] == 0
    assert by_name["process"]["search_estimated"] and by_name["process"]["search_seconds"] > 0
    folder = workplace / "runs" / "compare-tiny"
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert (folder / "comparison.png").stat().st_size > 5000
    assert (folder / "comparison.md").read_text().count("\n|") == 2 + len(names)


def check_verdict(summary: dict[str, Any]) -> None:
    """Against the rows and scipy; all figures of the tiny recipe are within chance of each other with two seeds."""
    verdict, rows = summary["verdict"], {method["name"]: method["top1_last"] for method in summary["methods"]}
    assert set(verdict) == {
        *("method", "over", "difference", "interval", "sure", "over_student", "within_chance", "comparisons"),
        *("formula", "sentence"),
    }
    own, other = rows[verdict["method"]], rows[verdict["over"]]
    assert verdict["difference"] == pytest.approx(own["mean"] - other["mean"])
    differences = np.subtract(own["values"], other["values"])
    level, scale = 1 - 0.05 / verdict["comparisons"], stats.sem(differences)
    expected = stats.t.interval(level, 1, differences.mean(), scale) if scale else (differences.mean(),) * 2
    assert verdict["interval"] == pytest.approx(list(expected))
    assert verdict["formula"].startswith("cross_entropy") and verdict["formula"] in verdict["sentence"]


def test_the_terminal_and_the_markdown_end_with_the_verdict(distpro: Run, workplace: Path) -> None:
    arguments = ["compare", "tiny.yaml", "--methods", "kd,hint", "schemes.kd.weight=2", "-q"]
    values = distpro(*arguments, *ONE[:2], "--json").json["verdict"]
    assert values["sure"] == "one seed: no telling how sure" and values["interval"] is None
    formulas = {"kd": "cross_entropy + 2 × kl(5-5; temperature=4.0)", "hint": "cross_entropy + 1 × mse(2-2; conv1)"}
    assert values["formula"] == formulas[values["method"]]
    text = distpro(*arguments, *ONE[:2]).out
    assert text.splitlines()[-1] == values["sentence"]
    assert (workplace / "runs" / "compare-tiny" / "comparison.md").read_text().endswith(f"\n\n{values['sentence']}\n")


@pytest.mark.parametrize(
    ("method", "overrides", "formula"),
    [
        ("student", [], "cross_entropy"),
        ("kd", ["schemes.kd.temperature=2"], "cross_entropy + 1 × kl(5-5; temperature=2.0)"),
        ("uniform", ["schemes.uniform.weight=0.5"], "cross_entropy + 0.5 × Σ hcl(10 pathways; conv1)"),
        (
            "uniform",
            ["pathways=[{connections: [[2, 2]], transform: conv1, distance: mse}, "
             "{connections: [[5, 5]], transform: identity, distance: kl}]", "schemes.uniform.weight=3"],
            "cross_entropy + 3 × mse(2-2; conv1) + 3 × kl(5-5; temperature=4.0)",
        ),
        (
            "reviewkd",
            ["schemes.reviewkd.warmup=0.5", "schemes.reviewkd.weight=4"],
            "cross_entropy + [0 to 4, mean 3] × Σ hcl(1-1, 2-2, 3-3, 4-4; review)",
        ),
    ],
)  # fmt: skip
def test_the_formula_is_what_was_computed(distpro: Run, method: str, overrides: list[str], formula: str) -> None:
    result = distpro("compare", "tiny.yaml", *overrides, "--epochs", 1, "--methods", method, *ONE)
    assert result.status == 0, result.err
    assert result.json["verdict"]["formula"] == formula
    assert result.json["verdict"]["over"] is None


def test_the_formula_of_a_process_has_the_range_of_its_weights(distpro: Run, process: Path) -> None:
    weights = load_process(process).weights
    result = distpro("compare", "tiny.yaml", "-p", process, "--epochs", 1, "--methods", "process", *ONE)
    found = result.json["verdict"]["formula"]
    assert found.startswith(f"cross_entropy + [{weights.min():.3g} to {weights.max():.3g}, mean ")
    assert found.endswith("] × Σ hcl(10 pathways; conv1)")
    online = distpro("compare", "tiny.yaml", "--epochs", 1, "--methods", "random", *TWO).json
    tables = [load_process(Path(run) / "process.safetensors").weights for run in online["methods"][0]["run_dirs"]]
    low, high = min(table.min() for table in tables), max(table.max() for table in tables)
    assert f"[{low:.3g} to {high:.3g}, mean " in online["verdict"]["formula"]


def test_the_formula_says_what_a_run_measures_itself(distpro: Run) -> None:
    scaled = ["search.scale=loss", "search.epochs=1"]
    assert distpro("search", "tiny.yaml", *scaled, "-o", "scaled.safetensors", "-q").status == 0
    weights = load_process("scaled.safetensors").scaled_weights
    given = ["compare", "tiny.yaml", "-p", "scaled.safetensors", "--epochs", 1, "--methods", "process", *ONE]
    found = distpro(*given).json["verdict"]["formula"]
    assert found.startswith(f"cross_entropy + [{weights.min():.3g} to {weights.max():.3g}, mean ")
    assert found.endswith("] × Σ hcl(10 pathways; conv1) / mean")
    recorded = distpro(*given, "distill.scale=recorded", "--run-dir", "recorded").json["verdict"]["formula"]
    assert f" to {load_process('scaled.safetensors').weights.max():.3g}, mean " in recorded and "/" not in recorded


def test_where_every_method_diverges_none_is_recommended(distpro: Run) -> None:
    result = distpro("compare", "tiny.yaml", "--methods", "uniform", "schemes.uniform.weight=1e30", *ONE)
    assert (
        result.status == 2
        and "uniform, seed 0: student wrn_10_1: step 1" in result.err
        and "Traceback" not in result.err
    )
    assert result.json["verdict"]["method"] is None
    assert result.json["verdict"]["sentence"] == "No method came to its end, so none can be recommended."


def test_processes_with_different_pathways_run_on_their_own(distpro: Run, workplace: Path, process: Path) -> None:
    chain = "{connections: [[1, 1], [2, 2], [3, 3]], transform: review, distance: hcl}"
    groups = f"pathways=[{chain}, {{connections: [[5, 5]], transform: identity, distance: kl}}]"
    short = ["search.epochs=1", "distill.epochs=1"]
    assert distpro("search", "tiny.yaml", groups, *short, "-o", "other.safetensors", "-q").status == 0
    both = ["-p", process, "-p", "other.safetensors", "--methods", "process,uniform", *ONE]
    result = distpro("compare", "tiny.yaml", *short, *both)
    assert result.status == 0, result.err
    rows = {method["name"]: method for method in result.json["methods"]}
    assert {name: row["pathways_used"] for name, row in rows.items()} == {
        "process:p": 10, "process:other": 4, "uniform": 10
    }  # fmt: skip
    for name, file, more in (("process:p", process, []), ("process:other", "other.safetensors", [groups])):
        alone = distpro("transfer", "tiny.yaml", *short, *more, "-p", file, "-q", "--json", "--run-dir", f"runs/{file}")
        assert alone.json["student"]["top1_last"] == rows[name]["top1_last"]["values"][0]


def test_a_search_by_a_rule_is_not_taken_for_a_hypergradient(distpro: Run, workplace: Path) -> None:
    found, short = {}, ["search.epochs=1", "distill.epochs=1"]
    for method in ("random", "share"):
        file = f"{method}.safetensors"
        options = [f"search.method={method}", "-o", file, "--run-dir", method]
        assert distpro("search", "tiny.yaml", *short, *options, "-q").status == 0
        (row,) = distpro("compare", "tiny.yaml", *short, "-p", file, "--methods", "process", *ONE).json["methods"]
        found[method] = row["search_seconds"] / row["seconds"]
        assert row["search_estimated"]
        assert row["search_device_seconds"] / row["device_seconds"] == pytest.approx(found[method])
    assert found["random"] == pytest.approx(1)  # as many steps, each a plain one
    assert 1 < found["share"] < 1.5


def test_costs_of_a_step_are_found_once_per_pair(distpro: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def count(*arguments: Any) -> tuple[Part, ...]:
        asked.append(arguments)
        return step_parts(*arguments)

    monkeypatch.setattr(pairs, "step_parts", count)
    short = ["distill.epochs=1", "search.interval=2"]
    result = distpro("compare", "tiny.yaml", *short, "--methods", "student,uniform,kd,random", *TWO)
    assert result.status == 0, result.err
    assert len(asked) == 2  # the recipe's pathways, and those of kd
    parts = [load_process(path).parts for path in Path("runs/compare-tiny").glob("uniform-*/process.safetensors")]
    assert len(parts) == 2 and parts[0] == parts[1] != ()


def test_runs_are_those_of_the_other_commands(distpro: Run, process: Path) -> None:
    compared = distpro("compare", "tiny.yaml", "-p", process, "--methods", "student,kd,process", "--keep", "0.5", *TWO)
    values = {method["name"]: method["top1_last"]["values"] for method in compared.json["methods"]}
    alone = distpro("train", "tiny.yaml", "--network", "student", "--seed", "1", "-q", "--json").json
    kd = distpro("transfer", "tiny.yaml", "-p", "kd", "--seed", "1", "-q", "--json").json
    half = distpro("transfer", "tiny.yaml", "-p", process, "--keep", "0.5", "--seed", "1", "-q", "--json").json
    for name, summary in (("student", alone), ("kd", kd), ("process keep 0.5", half)):
        assert values[name][1] == summary["student"]["top1_last"]


def test_only_what_is_missing_runs(distpro: Run, workplace: Path) -> None:
    def compare(methods: str, seeds: int, *more: str) -> Result:
        result = distpro("compare", "tiny.yaml", *more, "--methods", methods, "--seeds", seeds, "-q", "--json")
        assert result.status == 0, result.err
        return result

    first = compare("student,uniform", 1).json
    before = runs_of(workplace)
    assert len(before) == 2
    second = compare("student,uniform,kd", 2).json
    after = runs_of(workplace)
    assert len(after) == 6
    assert {name: after[name] for name in before} == before
    assert second["methods"][0]["top1_last"]["values"][:1] == first["methods"][0]["top1_last"]["values"]
    compare("student,uniform", 1, "distill.optimizer.lr=0.02")
    assert len(runs_of(workplace)) == 8  # another learning rate is another run
    compare("student,uniform", 1, "search.alpha_lr=0.5")
    assert len(runs_of(workplace)) == 8
    forced = distpro("compare", "tiny.yaml", "--methods", "student", "--seeds", "1", "--force", *ONE[2:])
    assert forced.status == 0 and len(runs_of(workplace)) == 1


def test_an_interrupted_run_resumes_and_ends_the_same(
    distpro: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["compare", "tiny.yaml", "--methods", "student,uniform"]
    whole = distpro(*arguments, "--run-dir", "whole", *ONE).json
    original = loop.Trainer._train_step

    def stop(self: loop.Trainer, batch: object) -> None:
        original(self, batch)  # type: ignore[arg-type]
        self.interruption.pending = "uniform, seed 0" in self.plan.title and self.progress.step == 3

    with monkeypatch.context() as patched:
        patched.setattr(loop.Trainer, "_train_step", stop)
        stopped = distpro(*arguments, "--run-dir", "part", *ONE)
    assert stopped.status == 130 and stopped.out == ""
    assert "--run-dir part --resume" in stopped.err
    steps: list[int] = []

    def count(self: loop.Trainer, batch: object) -> None:
        steps.append(self.progress.step)
        original(self, batch)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(loop.Trainer, "_train_step", count)
        resumed = distpro(*arguments, "--run-dir", "part", "--resume", *ONE)
    assert resumed.status == 0, resumed.err
    assert steps[0] == 3  # the student's run is kept, that of the uniform weights resumes where it stopped
    for mine, theirs in zip(resumed.json["methods"], whole["methods"], strict=True):
        assert mine["top1_last"] == theirs["top1_last"]


def test_kill_and_run_again(distpro: Run, workplace: Path) -> None:
    arguments = ["compare", "tiny.yaml", "checkpoint_seconds=0.01", "--methods", "student,uniform", *ONE]
    killed = start_distpro(*arguments)
    wait_for(workplace / "runs", killed)
    while not (done := list((workplace / "runs").glob("*/*/checkpoint.pt"))):
        time.sleep(0.02)
    killed.kill()
    killed.communicate()
    done[0].write_bytes(done[0].read_bytes()[:100])  # and the disk was damaged
    result = distpro(*arguments)
    assert result.status == 0, result.err
    fresh = distpro(*arguments, "--run-dir", "fresh").json
    assert [m["top1_last"] for m in result.json["methods"]] == [m["top1_last"] for m in fresh["methods"]]


def test_a_signal_ends_with_130(workplace: Path) -> None:
    started = start_distpro("compare", "tiny.yaml", "--methods", "student", "--epochs", "500", "--run-dir", "c")
    wait_for(workplace / "c", started)
    while not list((workplace / "c").glob("*/checkpoint.pt")):
        time.sleep(0.02)
    started.send_signal(signal.SIGINT)
    _, errors = started.communicate(timeout=60)
    assert started.returncode == 130, errors
    assert "resume with: distpro compare tiny.yaml --methods student --epochs 500 --run-dir c --resume" in errors


def test_without_a_process_it_searches_one_and_keeps_it(distpro: Run, workplace: Path) -> None:
    arguments = ["compare", "tiny.yaml", "--methods", "process,process-mean", *ONE]
    first = distpro(*arguments)
    assert first.status == 0, first.err
    process, averaged = first.json["methods"]
    assert process["search_seconds"] == averaged["search_seconds"] > 0 and not process["search_estimated"]
    (found,) = (workplace / "runs" / "compare-tiny").glob("search-*/process.safetensors")
    stamp = found.stat().st_mtime_ns
    assert distpro(*arguments).json["methods"] == first.json["methods"]
    assert found.stat().st_mtime_ns == stamp
    assert distpro("inspect", found.parent).status == 0


def test_runs_are_found_where_they_were_moved_to(distpro: Run, workplace: Path) -> None:
    arguments = ["compare", "tiny.yaml", "--methods", "student,uniform", *ONE]
    assert distpro(*arguments, "--run-dir", "before").status == 0
    (workplace / "before").rename(workplace / "after")
    moved = distpro(*arguments, "--run-dir", "after")
    assert moved.status == 0, moved.err
    assert all(path.startswith("after") for method in moved.json["methods"] for path in method["run_dirs"])


def test_worse_than_the_student_is_said_and_explained(distpro: Run) -> None:
    """A hint of a large weight, from a teacher that has learnt next to nothing."""
    options = ["schemes.hint.weight=100", "distill.clip_grad=1", "--epochs", "12", "--methods", "student,hint"]
    result = distpro("compare", "tiny.yaml", *options, "--seeds", "2", "--quiet")
    assert result.status == 0, result.err
    assert "hint did worse than the student alone (-" in result.out
    assert "is no better than the student alone" in result.out
    assert "% of the loss, mean over the run" in result.out
    assert "gradient" in result.out


def test_several_processes_have_names_of_their_own(distpro: Run, workplace: Path, process: Path) -> None:
    (workplace / "other").mkdir()
    (workplace / "other" / "p.safetensors").write_bytes((workplace / process).read_bytes())
    result = distpro("compare", "tiny.yaml", "-p", process, "-p", "other/p.safetensors", "--methods", "process", *ONE)
    names = [method["name"] for method in result.json["methods"]]
    assert names == ["process:p", "process:p-2"]
    assert len(runs_of(workplace)) == 1  # both are the same, so one run serves both


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--methods", "student,reviewdk"], "there is no 'reviewdk' (did you mean 'reviewkd'?)"),
        (["--methods", "student,student"], "'student' is given twice"),
        (["--methods", ","], "--methods names none"),
        (["--methods", "process", "--thresholds", "0.3,1.5"], "--thresholds: '1.5' is not a number from 0 to 1"),
        (["--methods", "process", "--keep", "0"], "--keep: '0' is not a number above 0, up to 1"),
        (["--methods", "process", "--keep", "half"], "--keep: 'half'"),
        (
            ["--methods", "student", "--thresholds", "0.3"],
            "--thresholds applies only to processes, and --methods names none",
        ),
        (["--process", "nowhere.safetensors"], "nowhere.safetensors: no such file"),
        (["--plot", "plot.jpg"], "the suffix is '.jpg'"),
        (["--json", "--markdown"], "exclude each other"),
        (["--epochs", "0"], "--epochs"),
        (["data.name=folder", "data.root=nowhere"], "'nowhere' does not exist"),
        (["--methods", "student,hint", "schemes.hint.level=9"], "schemes.hint.level: 9 is no level"),
    ],
)
def test_wrong_input_is_found_before_the_first_run(
    distpro: Run, workplace: Path, arguments: list[str], expected: str
) -> None:
    result = distpro("compare", "tiny.yaml", *arguments)
    assert result.status == 2, result.err
    assert expected in result.err and "Traceback" not in result.err
    assert not (workplace / "runs").exists()


@pytest.mark.parametrize("left", ['{"student": ', '{"student": {}}'])
def test_a_damaged_run_is_made_again(distpro: Run, workplace: Path, left: str) -> None:
    arguments = ["compare", "tiny.yaml", "--methods", "student", *ONE]
    first = distpro(*arguments).json
    folder = Path(first["methods"][0]["run_dirs"][0])
    (folder / "summary.json").write_text(left)
    (folder / "checkpoint.pt").write_bytes((folder / "checkpoint.pt").read_bytes()[:2000])
    again = distpro(*arguments)
    assert again.status == 0, again.err
    assert again.json["methods"][0]["top1_last"] == first["methods"][0]["top1_last"]


def test_a_mistake_costs_no_run_even_with_force(distpro: Run, workplace: Path) -> None:
    arguments = ["compare", "tiny.yaml", "--methods", "student", "--seeds", "1", "-q"]
    assert distpro(*arguments).status == 0
    before = runs_of(workplace)
    assert distpro(*arguments, "--force", "student.name=wrn_11_1").status == 2
    assert runs_of(workplace) == before
    assert distpro(*arguments, "--force").status == 0
    assert runs_of(workplace).keys() == before.keys() and runs_of(workplace) != before


def test_a_plot_is_replaced_when_resuming_and_never_by_accident(distpro: Run, workplace: Path) -> None:
    arguments = ["compare", "tiny.yaml", "--methods", "student", "--seeds", "1", "-q", "--plot", "plot.svg"]
    assert distpro(*arguments).status == 0
    drawn = (workplace / "plot.svg").read_bytes()
    (workplace / "plot.svg").write_text("somebody's own")
    refused = distpro(*arguments)
    assert refused.status == 2 and "plot.svg: exists already; --resume replaces it" in refused.err
    assert (workplace / "plot.svg").read_text() == "somebody's own"
    assert distpro(*arguments, "--resume").status == 0
    assert (workplace / "plot.svg").read_bytes() == drawn


def test_a_method_that_diverges_stops_no_other(distpro: Run) -> None:
    methods = ["--methods", "uniform,student", "schemes.uniform.weight=1e30"]
    result = distpro("compare", "tiny.yaml", *methods, *ONE)
    assert result.status == 2
    assert "error: uniform, seed 0: student wrn_10_1: step 1: the" in result.err and "Traceback" not in result.err
    assert [method["name"] for method in result.json["methods"]] == ["student"]
    assert [one["name"] for one in result.json["diverged"]] == ["uniform"]


def test_uniform_weights_stand_on_the_pathways_of_the_process(distpro: Run, workplace: Path, process: Path) -> None:
    recipe = (workplace / "tiny.yaml").read_text()
    start, end = recipe.index("pathways:"), recipe.index("search:")
    (workplace / "bare.yaml").write_text(recipe[:start] + recipe[end:])
    options = ["-p", process, "--methods", "process,uniform", "--seeds", "1", "--run-dir", "runs/both", "-q", "--json"]
    own, bare = (distpro("compare", f"{name}.yaml", *options).json["methods"] for name in ("tiny", "bare"))
    assert [method["run_dirs"] for method in own] == [method["run_dirs"] for method in bare]


def test_a_process_of_another_pair_is_found_before_the_first_run(distpro: Run, workplace: Path, process: Path) -> None:
    other = "pathways=[{connections: same}]"
    result = distpro("compare", "tiny.yaml", other, "-p", process, "--methods", "student,process")
    assert result.status == 2
    assert "process: the process does not fit this pair" in result.err
    assert not runs_of(workplace)
