"""distpro doctor --calibrate, and who tells costs by what it kept."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distpro_cli.costs.machines import Calibration, keep_calibrations, load_calibrations
from distpro_cli.errors import DistproError
from distpro_cli.process.file import load_process, save_process, to_bytes
from distpro_cli.process.machine import Work
from distpro_cli.recipe.load import parse_recipe
from tests.conftest import Run
from tests.process.examples import RECIPE, constant_process, lower_pathways
from tests.process.test_version_2 import changed, edited
from tests.process.test_work import PARTS, working

KEPT = {"device": "a machine", "flops_per_byte": 2.0, "backward_factor": 3.0, "operation_bytes": 10.0}
ONE = ("--seeds", "1", "--json")
ERRORS = {"worst_error": 0.5, "median_error": 0.1}
BUILT_IN = "costs by built-in constants, a CPU core's in float32"
# Of PARTS, by hand: the student's, the teacher's, the pathways', where all pathways have the weight 0 only the first.
BEFORE, ON_KEPT = (300.0, 60.0, 145.0), (230.0 + 590.0, 70.0, 145.0)


@pytest.fixture
def cache(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DISTPRO_CACHE", str(workplace / "cache"))
    return workplace / "cache"


def keep(cache: Path, content: Any) -> None:
    cache.mkdir(exist_ok=True)
    (cache / "calibration.json").write_text(content if isinstance(content, str) else json.dumps(content))


def write(path: str, recipe: str = RECIPE) -> str:
    process = constant_process(lower_pathways(), 0.0)
    save_process(replace(process, parts=PARTS, recipe=recipe), Path(path))
    return path


def shares(shown: dict[str, Any]) -> list[float]:
    return [shown["step_cost"][name] for name in ("student", "teacher", "pathways")]


def test_what_is_measured_is_kept_and_used(distpro: Run, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distpro_cli.costs.calibration.REPETITIONS", 1)
    monkeypatch.setattr("distpro_cli.costs.calibration.MOST_SECONDS", 0.001)
    path = write("p.safetensors")
    before = distpro("inspect", path, "--json").json
    result = distpro("doctor", "--calibrate", "--no-test", "--device", "cpu", "--json")
    assert result.status == 0, result.err
    found = result.json["calibration"]
    assert found["kind"] == "cpu" and Path(found["file"]) == cache / "calibration.json"
    kept = load_calibrations()["cpu"]
    for precision in ("float32", "bfloat16"):
        assert found[precision]["flops_per_byte"] == kept[precision].flops_per_byte > 0
        assert 0 < found[precision]["median_error"] <= found[precision]["worst_error"]
    after = distpro("inspect", path, "--json").json
    machine = kept["float32"].machine("float32")
    student, teacher, others = (
        sum(machine.cost(part.work) for part in parts if part.work) for parts in (PARTS[:2], PARTS[2:3], PARTS[3:])
    )
    assert shares(after) == pytest.approx([one / (student + teacher + others) for one in (student, teacher, others)])
    assert shares(before) != shares(after) and after["machine"]["name"].startswith("cpu, ")
    assert list(cache.iterdir()) == [cache / "calibration.json"]


def test_it_says_in_words_what_it_measured(distpro: Run, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distpro_cli.costs import calibration, machines

    keep(cache, {"cuda": {"float32": KEPT | ERRORS}})
    monkeypatch.setattr(
        calibration, "calibrate", lambda device, precision, name: machines.Calibration(name, 5, 1.5, 2048, 0.25, 0.125)
    )
    result = distpro("doctor", "--calibrate", "--no-test", "--device", "cpu")
    assert result.status == 0, result.err
    lines = result.out.splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("calibration cpu, "))
    said = [line.split(": ")[-1].strip() for line in lines[start + 1 : start + 5]]
    assert said == ["5 (6)", "1.5 (1.4)", "2 KiB (0 B)", "12 % (median), 25 % (worst)"]
    assert str(cache / "calibration.json") in lines[-1]
    assert set(load_calibrations()) == {"cpu", "cuda"}  # what was kept of another device stays


def test_costs_are_told_for_the_machine_by_hand(distpro: Run, cache: Path) -> None:
    path = write("p.safetensors")
    plain = distpro("inspect", path)
    assert BUILT_IN in plain.out and distpro("inspect", path, "--json").json["machine"]["name"] == ""
    assert shares(distpro("inspect", path, "--json").json) == pytest.approx([one / sum(BEFORE) for one in BEFORE])
    keep(cache, {"cpu": {"float32": KEPT | ERRORS}})
    shown = distpro("inspect", path, "--json").json
    assert shares(shown) == pytest.approx([one / sum(ON_KEPT) for one in ON_KEPT])
    assert shown["relative_cost"]["0.5"] == pytest.approx(ON_KEPT[0] / sum(ON_KEPT))
    assert shown["machine"] == {**{k: v for k, v in KEPT.items() if k != "device"}, "name": "a machine, float32"}
    assert "costs as measured on a machine, float32" in distpro("inspect", path).out
    assert "costs as measured on a machine, float32" in distpro("inspect", path, write("q.safetensors")).out


def test_the_best_device_the_one_asked_for_and_the_recipes_precision(distpro: Run, cache: Path) -> None:
    names = {"cuda": {"bfloat16": "half"}, "cpu": {"float32": "whole"}}
    kept = {
        kind: {precision: {**KEPT, **ERRORS, "device": name} for precision, name in of_kind.items()}
        for kind, of_kind in names.items()
    }
    keep(cache, kept)
    whole, half = write("whole.safetensors"), write("half.safetensors", f"precision: bfloat16\n{RECIPE}")
    odd = write("odd.safetensors", "not: [a recipe")

    def told(*arguments: object) -> str:
        return str(distpro("inspect", *arguments, "--json").json["machine"]["name"])

    assert told(half) == told(half, "--device", "cuda:1") == "half, bfloat16"
    assert told(whole) == ""  # nothing was measured there in its precision
    assert told(whole, "--device", "cpu") == told(odd, "--device", "cpu") == "whole, float32"
    both = distpro("inspect", half, whole).out
    assert "half.safetensors: costs as measured on half, bfloat16" in both and f"whole.safetensors: {BUILT_IN}" in both
    listed = distpro("inspect", ".", "--device", "cpu", "--json").json["processes"]
    assert [Path(entry["path"]).stem for entry in listed if entry["machine"]["name"]] == ["odd", "whole"]


@pytest.mark.parametrize(("device", "message"), [("mps", "not measured here; measure it"), ("tpu", "cpu, cuda, mps")])
def test_a_device_that_was_not_measured_is_status_2(distpro: Run, cache: Path, device: str, message: str) -> None:
    keep(cache, {"cpu": {"float32": KEPT | ERRORS}})
    result = distpro("inspect", write("p.safetensors"), "--device", device)
    assert result.status == 2 and f"error: --device {device}: " in result.err and message in result.err


BROKEN: dict[str, tuple[Any, str]] = {
    "empty": ("", "not valid JSON"),
    "a list": ([], "expected an object of cuda, mps, cpu"),
    "a kind": ({"tpu": {}}, "expected an object of cuda, mps, cpu"),
    "a precision": ({"cpu": {"float16": KEPT | ERRORS}}, "expected an object of float32, bfloat16"),
    "a key missing": ({"cpu": {"float32": KEPT}}, "expected all of device, flops_per_byte"),
    "a zero": ({"cpu": {"float32": KEPT | ERRORS | {"flops_per_byte": 0}}}, "flops_per_byte is 0; expected a number"),
    "a negative": ({"cpu": {"float32": KEPT | ERRORS | {"operation_bytes": -1}}}, "operation_bytes is -1"),
    "not a number": ({"cpu": {"float32": KEPT | ERRORS | {"backward_factor": float("nan")}}}, "NaN"),
    "a text": ({"cpu": {"float32": KEPT | ERRORS | {"median_error": "small"}}}, "median_error is 'small'"),
    "a name": ({"cpu": {"float32": KEPT | ERRORS | {"device": "\x1b[2J"}}}, "device is no printable name"),
    "large": (" " * (2**20 + 1), "larger than"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_calibration_is_one_line_and_not_used(distpro: Run, cache: Path, name: str) -> None:
    content, message = BROKEN[name]
    keep(cache, content)
    path = write("p.safetensors")
    result = distpro("inspect", path, "--json")
    assert result.status == 0 and shares(result.json) == pytest.approx([one / sum(BEFORE) for one in BEFORE])
    assert result.err.count("\n") == 1 and message in result.err and "\x1b" not in result.err
    assert "measure it again: distpro doctor --calibrate; costs are told by the built-in constants" in result.err
    assert distpro("inspect", path, "--quiet").err == ""
    asked = distpro("inspect", path, "--device", "cpu")
    assert asked.status == 2 and message in asked.err and "Traceback" not in asked.err


def test_a_folder_in_its_place_is_one_line(distpro: Run, cache: Path) -> None:
    (cache / "calibration.json").mkdir(parents=True)
    result = distpro("inspect", write("p.safetensors"))
    assert result.status == 0 and "calibration.json: cannot be read" in result.err and result.err.count("\n") == 1
    with pytest.raises(DistproError, match=r"calibration\.json cannot be written"):
        keep_calibrations("cpu", {"float32": Calibration("a machine", 2, 3, 10, 0.5, 0.1)})
    kept = distpro("doctor", "--calibrate", "--no-test", "--device", "nowhere")
    assert kept.status == 2 and "error: calibration: --device nowhere: not available here" in kept.err


WRONG: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no list": (lambda m: m.update(work="{}"), "the metadata's work items are not a list"),
    "no JSON": (lambda m: m.update(work="["), "not valid JSON"),
    "fewer": (edited("work", lambda v: v.pop()), "the work of 12 parts, and there are 13"),
    "none": (lambda m: m.update(work="[]"), "the work of 0 parts, and there are 13"),
    "a key missing": (edited("work", lambda v: v[1].pop("flops")), "work item 2 lacks flops"),
    "a key more": (edited("work", lambda v: v[1].update(odd=1)), "work item 2 holds unknown keys: 'odd'"),
    "a negative": (edited("work", lambda v: v[0].update(flops=-1)), "work item 1: flops is -1; expected a number"),
    "a text": (edited("work", lambda v: v[0].update(operations="1")), "work item 1: operations is '1'"),
    "true": (edited("work", lambda v: v[0].update(operations=True)), "work item 1: operations is True"),
    "too large": (edited("work", lambda v: v[0].update(moved_bytes=1e31)), "work item 1: moved_bytes is 1e+31"),
    "infinite": (lambda m: m.update(work=m["work"].replace("180.0", "1e999")), "too large for a number"),
    "no number": (lambda m: m.update(work=m["work"].replace("180.0", "NaN", 1)), "not a JSON number|not valid JSON"),
    "no parts": (lambda m: m.pop("parts"), "holds work, and no parts of a step whose work it could be"),
    "nothing moved": (edited("work", lambda v: [one.update(moved_bytes=0) for one in v]), "moves no bytes"),
}


@pytest.mark.parametrize("name", WRONG)
def test_work_that_is_malformed_is_status_2(distpro: Run, workplace: Path, name: str) -> None:
    change, message = WRONG[name]
    Path("p.safetensors").write_bytes(changed(to_bytes(working()), change))
    result = distpro("inspect", "p.safetensors")
    assert result.status == 2 and result.out == "" and result.err.startswith("error: p.safetensors: ")
    assert any(text in result.err for text in message.split("|")) and "Traceback" not in result.err


def test_it_is_used_without_torch(cache: Path) -> None:
    keep(cache, {"cpu": {"float32": KEPT | ERRORS}})
    path = write("p.safetensors")
    code = f"""
import sys
from distpro_cli.cli import main
try:
    main(["inspect", {path!r}])
finally:
    print([name for name in ("torch", "timm", "torchvision", "safetensors") if name in sys.modules], file=sys.stderr)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr == "[]\n" and "costs as measured on a machine, float32" in result.stdout


def test_compare_estimates_a_search_by_its_own_device(distpro: Run, cache: Path, process: Path) -> None:
    found = load_process(process)
    recipe = parse_recipe(found.recipe)
    batch_size, steps = recipe.search_training.batch_size, int(found.measured["steps"])
    interval = recipe.search.steps_per_update(steps)
    outer = recipe.search.images_per_outer_batch(batch_size) / batch_size

    def compared(cost: Callable[[Work], float]) -> tuple[float, float, str]:
        """Returns the steps of a search over those of a run as estimated, and added up by hand, and what was said."""
        result = distpro("compare", "tiny.yaml", "distill.epochs=1", "-p", process, "--methods", "process", *ONE)
        assert result.status == 0, result.err
        costs = {part.name: cost(part.work) for part in found.parts if part.work}
        forward, backward, update = (costs[f"student {name}"] for name in ("forward", "backward", "update"))
        shared = sum(value for name, value in costs.items() if name.startswith("shared"))
        added = (1 + outer) * forward + outer * backward + update + shared / 3
        (row,) = result.json["methods"]
        return row["search_seconds"] / row["seconds"], 1 + added / sum(costs.values()) / interval, result.err

    before, by_hand, _ = compared(lambda work: work.moved_bytes + (work.flops + 1.4 * work.backward_flops) / 6)
    factor = before / by_hand
    keep(cache, {"cpu": {"float32": {**KEPT, **ERRORS, "flops_per_byte": 1e-3}, "bfloat16": KEPT | ERRORS}})
    after, by_hand, _ = compared(lambda work: work.moved_bytes + 1e3 * (work.flops + 3 * work.backward_flops))
    assert after == pytest.approx(factor * by_hand, rel=1e-3) and after != pytest.approx(before, rel=1e-2)
    keep(cache, "{")
    again, _, said = compared(lambda work: 1.0)
    assert again == before and said.count("costs are told by the built-in constants") == 1
