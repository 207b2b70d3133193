"""Built-in processes: their pathways, their weights over time, and every one through the real command line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from distpro_cli.errors import RecipeError
from distpro_cli.networks.levels import TappedNetwork
from distpro_cli.pathways.connections import groups_of, resolve_pathways
from distpro_cli.process.file import load_process
from distpro_cli.process.process import Process
from distpro_cli.recipe.load import load_recipe
from distpro_cli.recipe.schema import Recipe
from distpro_cli.recipe.scheme_names import SCHEME_NAMES
from distpro_cli.runs.folder import RunFolder
from distpro_cli.workflows.schemes import SCHEMES, scheme_process, scheme_recipe
from distpro_cli.workflows.session import Session
from distpro_cli.workflows.sources import SchemeSource
from distpro_cli.workflows.transfer import Dropping, transfer
from tests.conftest import Result, Run
from tests.helpers import CONTEXT
from tests.pathways.levels import levels

TEACHER = levels((8, 16, 16), (16, 8, 8), (32, 4, 4), (32,), logits=10)
STUDENT = levels((4, 16, 16), (8, 8, 8), (16, 4, 4), (16,), logits=10)


def recipe(**schemes: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "data": {"name": "digits"},
            "teacher": {"name": "wrn_16_1"},
            "student": {"name": "wrn_10_1"},
            "pathways": [{}],
            "search": {"weight": 1},
            "schemes": schemes,
        }
    )


def process_of(name: str, **schemes: Any) -> Process:
    resolved = scheme_recipe(name, recipe(**schemes), TEACHER, STUDENT)
    infos = resolve_pathways(resolved.pathways, TEACHER, STUDENT)
    return scheme_process(name, resolved, infos, [1.0] * len(infos))


def parts_of(process: Process) -> list[tuple[str, str, str]]:
    return [(info.id, info.transform, info.distance) for info in process.pathways]


def test_the_command_line_knows_every_scheme() -> None:
    assert tuple(SCHEMES) == SCHEME_NAMES


@pytest.mark.parametrize(
    ("name", "parts", "weight"),
    [
        ("kd", [("5-5", "identity", "kl")], 1.0),
        ("hint", [("2-2", "conv1", "mse")], 1.0),
        ("attention-transfer", [(f"{n}-{n}", "resize", "attention-map") for n in (1, 2, 3)], 1000.0),
        ("reviewkd", [(f"{n}-{n}", "review", "hcl") for n in (1, 2, 3, 4)], 1.0),
        ("plain", [(f"{i}-{j}", "conv2", "hcl") for i in range(1, 5) for j in range(1, i + 1)], 0.0),
        # K κ exp(α) / (e^b + K exp(α)) at α = b = 1, κ = 3 and K = 10
        ("uniform", [(f"{i}-{j}", "conv2", "hcl") for i in range(1, 5) for j in range(1, i + 1)], 30 / 11),
    ],
)
def test_pathways_and_constant_weights(name: str, parts: list[tuple[str, str, str]], weight: float) -> None:
    process = process_of(name)
    assert parts_of(process) == parts
    for u in (0.0, 0.3, 1.0):
        np.testing.assert_allclose(process.at(u), weight, rtol=1e-6)
    assert process.versions["distpro-cli"]


def test_the_recipe_says_how() -> None:
    kd = process_of("kd", kd={"weight": 3.0, "temperature": 2.0})
    assert kd.pathways[0].distance_options == {"temperature": 2.0}
    assert kd.at(0.5) == [3.0]
    hint = process_of("hint", hint={"weight": 7.0, "level": 4})
    assert parts_of(hint) == [("4-4", "conv1", "mse")] and hint.at(0.5) == [7.0]
    review = process_of("reviewkd", reviewkd={"mid": 6})
    assert all(info.transform_options == {"mid": 6} for info in review.pathways)
    assert set(process_of("uniform", uniform={"weight": 2.5}).at(1.0)) == {2.5}


def test_reviewkd_and_kd_together_keep_their_weights() -> None:
    settings = recipe(reviewkd={"weight": 5.0, "warmup": 0.25}, kd={"weight": 2.0, "temperature": 3.0})
    resolved = scheme_recipe("reviewkd+kd", settings, TEACHER, STUDENT)
    infos = resolve_pathways(resolved.pathways, TEACHER, STUDENT)
    factors = [group.weight for group in groups_of(resolved.pathways, TEACHER, STUDENT)]
    process = scheme_process("reviewkd+kd", resolved, infos, factors)
    assert [(info.transform, info.distance) for info in infos] == [("review", "hcl")] * 4 + [("identity", "kl")]
    assert infos[-1].distance_options == {"temperature": 3.0}
    np.testing.assert_allclose(process.at(1.0), [5.0] * 4 + [2.0])
    np.testing.assert_allclose(process.at(0.125), np.array([5.0] * 4 + [2.0]) / 2)


def test_the_warm_up_rises_linearly() -> None:
    process = process_of("reviewkd", reviewkd={"weight": 5.0, "warmup": 0.25})
    for u in (0.0, 0.05, 0.2, 0.25, 0.6, 1.0):
        np.testing.assert_allclose(process.at(u), 5.0 * min(1.0, u / 0.25), rtol=1e-5)
    assert len(process.progress) == 3


def test_the_middle_level_counts_maps() -> None:
    five = levels((4, 32, 32), (8, 16, 16), (16, 8, 8), (16, 4, 4), (16,))
    resolved = scheme_recipe("hint", recipe(), five, five)
    assert resolved.pathways[0].connections == [[2, 2]]
    vectors = levels((4,), (5,), (6,))
    assert scheme_recipe("hint", recipe(), vectors, vectors).pathways[0].connections == [[2, 2]]


def test_levels_that_are_not_there() -> None:
    with pytest.raises(RecipeError, match=r"schemes\.hint\.level: 6 is no level of both networks; those are: 1, 2, 3"):
        process_of("hint", hint={"level": 6})
    vectors = levels((4,), (5,))
    with pytest.raises(RecipeError, match="scheme attention-transfer: no level is a map in both networks"):
        scheme_recipe("attention-transfer", recipe(), vectors, vectors)


def run_scheme(distpro: Run, name: str, *arguments: object) -> Result:
    result = distpro("transfer", "tiny.yaml", "-p", name, "distill.epochs=1", "--run-dir", name, "-q", *arguments)
    assert result.status == 0, result.err
    return result


@pytest.mark.parametrize("name", [name for name in SCHEME_NAMES if name != "deit"])
def test_every_scheme_runs_and_leaves_its_process(distpro: Run, name: str) -> None:
    summary = run_scheme(distpro, name, "--json").json
    process = load_process(Path(name) / "process.safetensors")
    on = 0 if name == "plain" else len(process.pathways)
    assert summary["pathways_used"] == on
    assert (summary["teacher"]["top1"] is None) == (name == "plain")
    row = json.loads((Path(name) / "metrics.jsonl").read_text().splitlines()[0])
    assert len(row.get("distances", {})) == on
    assert all(math.isfinite(distance) for distance in row.get("distances", {}).values())
    # What was saved is whole: it runs again by itself, and inspect shows it beside the weights of a network.
    shown = distpro("inspect", name, "--json").json
    assert [len(found["pathways"]) for found in shown["processes"]] == [len(process.pathways)]
    assert shown["processes"][0]["relative_cost"] is not None
    again = distpro("transfer", "-p", f"{name}/process.safetensors", "distill.epochs=1", "--json", "-q")
    assert again.status == 0, again.err
    first, second = (load_file(found["student"]["weights"]) for found in (summary, again.json))
    assert all(np.array_equal(first[key], second[key]) for key in first)


def test_plain_is_the_student_alone(distpro: Run, workplace: Path) -> None:
    recipe_text = (workplace / "tiny.yaml").read_text()
    (workplace / "tiny.yaml").write_text(recipe_text.replace(", train: {epochs: 1, batch_size: 32}", ""))
    plain = run_scheme(distpro, "plain", "--json").json  # no weights for the teacher, and none are needed
    alone = distpro("train", "tiny.yaml", "distill.epochs=1", "--json", "-q").json
    assert plain["student"]["top1_last"] == alone["student"]["top1_last"]
    first, second = (load_file(found["student"]["weights"]) for found in (plain, alone))
    assert all(np.array_equal(first[key], second[key]) for key in first)
    assert "teacher" not in run_scheme(distpro, "plain", "--force").out


def test_kd_makes_logits_a_level_where_levels_are_listed(distpro: Run) -> None:
    listed = ["student.levels=[0,1]", "teacher.levels=[0,1,2]"]
    run_scheme(distpro, "kd", *listed)
    (info,) = load_process(Path("kd/process.safetensors")).pathways
    assert (info.id, info.teacher.kind, info.student.kind) == ("4-3", "logits", "logits")
    again = distpro("transfer", "-p", "kd/process.safetensors", "distill.epochs=1", "--json", "-q")
    assert again.status == 0, again.err


def test_errors(distpro: Run) -> None:
    unknown = distpro("transfer", "tiny.yaml", "-p", "reviewdk")
    assert unknown.status == 2
    assert "--process reviewdk: no such file, and no process or scheme of that name (did you mean 'reviewkd'?)" in (
        unknown.err
    )
    tokens = distpro("transfer", "tiny.yaml", "-p", "hint", "schemes.hint.level=9", "-q")
    assert tokens.status == 2 and "schemes.hint.level: 9 is no level of both networks" in tokens.err
    assert "--process kd names no networks; give a RECIPE" in distpro("transfer", "-p", "kd").err


def test_logits_and_fused_levels_are_searched(distpro: Run) -> None:
    groups = "[{connections: lower, transform: review}, {connections: same, transform: identity, distance: kl}]"
    result = distpro("search", "tiny.yaml", f"pathways={groups}", "search.epochs=1", "--json", "-q")
    assert result.status == 0, result.err
    process = load_process(Path(result.json["process"]))
    assert [info.id for info in process.pathways][-1] == "5-5" and len(process.pathways) == 11
    assert (np.ptp(process.alpha, axis=0) > 0).all()
    again = distpro("transfer", "-p", result.json["process"], "distill.epochs=1", "--json", "-q")
    assert again.status == 0, again.err
    shown = distpro("inspect", "tiny.yaml", "--json").json
    assert len(shown["student"]["levels"]) == 4


def test_a_known_teacher_is_not_evaluated(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated: list[TappedNetwork] = []
    plain = Session.evaluate
    monkeypatch.setattr(Session, "evaluate", lambda self, network: (evaluated.append(network), plain(self, network))[1])
    small = load_recipe("tiny.yaml", ["distill.epochs=1"])
    num_evaluations = {}
    for known in (None, 12.25):
        folder = RunFolder(workplace / f"run-{known}", resuming=False)
        folder.path.mkdir()
        evaluated.clear()
        run = transfer(small, SchemeSource("uniform"), Dropping(), folder, CONTEXT, teacher_figure=known)
        assert known is None or run.summary["teacher"]["top1"] == known
        num_evaluations[known] = len(evaluated)
    assert num_evaluations[12.25] == 1  # the student, after its one epoch
    assert num_evaluations[None] > 1
