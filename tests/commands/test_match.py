"""A process on other pairs: --match and --allow, what inspect explains, and what a run writes of the mapping."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from distpro_cli.process.file import load_process
from tests.conftest import Run

# The process of tiny.yaml has three stages and the pooled vector on either side.
TWO_STAGES = ["student.levels=[block1, block3, pooled]", "teacher.levels=[block1, block3, pooled]"]
QUICK = ["distill.epochs=1", "-q"]


def test_inspect_explains_the_match_pathway_by_pathway(distpro: Run, process: Path) -> None:
    shown = distpro("inspect", process, "tiny.yaml", "student.name=wrn_10_2", "--json").json["fits"][0]
    assert shown["fits"] and shown["lost"] == shown["left_out"] == shown["says"] == shown["taps"] == []
    assert [(row["pair"], row["process"]) for row in shown["pathways"]][1:3] == [("2-1", "2-1"), ("2-2", "2-2")]
    first = shown["pathways"][0]
    assert (
        first["rule"] == "level" and first["student"]["before"]["shape"][0] * 2 == first["student"]["now"]["shape"][0]
    )
    assert first["teacher"]["now"] == first["teacher"]["before"]
    exact = distpro("inspect", process, "tiny.yaml", "--match", "exact")
    assert exact.status == 0 and "p.safetensors fits tiny.yaml (--match exact)" in exact.out
    assert max(map(len, exact.out.partition("fits tiny.yaml")[2].splitlines())) <= 80
    narrower = distpro("inspect", process, "tiny.yaml", "student.name=wrn_10_2", "--match", "exact")
    assert narrower.status == 0 and "p.safetensors does not fit tiny.yaml (--match exact)" in narrower.out
    assert "--match level: 10 of the process's 10 pathways would drive 10 of the pair's 10" in narrower.out


def test_a_refusal_names_the_flags_and_they_work(distpro: Run, process: Path) -> None:
    own = [*TWO_STAGES, "pathways=null"]
    refused = distpro("transfer", "tiny.yaml", *own, "-p", process, *QUICK)
    assert refused.status == 2 and "Traceback" not in refused.err
    assert "student levels 4 in the process, 3 in the pair: 1-1, 2-1" in refused.err
    hint = "--match depth --allow lost: 6 of the process's 10 pathways would drive 6 of the pair's 6"
    assert hint in refused.err and hint in distpro("inspect", process, "tiny.yaml", *own).out
    result = distpro(
        "transfer", "tiny.yaml", *own, "-p", process, "--match", "depth", "--allow", "lost", *QUICK, "--json"
    )
    assert result.status == 0, result.err
    run = Path(result.json["run_dir"])
    assert result.json["pathways_used"] == 6
    mapping = json.loads((run / "matching.json").read_text())
    found = {row["pair"]: row["process"] for row in mapping["pathways"]}
    # The first of two stages lies nearest to the second of three.
    expected = {"1-1": "2-2", "2-1": "3-2", "2-2": "3-3", "3-1": "4-2", "3-2": "4-3", "3-3": "4-4"}
    assert found == expected and mapping["lost"] == ["1-1", "2-1", "3-1", "4-1"]
    with safe_open(run / "student.safetensors", framework="numpy") as file:
        assert json.loads(file.metadata()["trained"])["process"] == mapping
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    row = [row for row in rows if "weights" in row][-1]
    loaded = load_process(process)
    columns = {info.id: k for k, info in enumerate(loaded.pathways)}
    for pair, own_id in expected.items():
        expected_weight = np.interp(row["step"] / 5, loaded.progress, loaded.weights[:, columns[own_id]])
        assert row["weights"][pair] == pytest.approx(expected_weight, rel=1e-5)


def test_pathways_that_the_process_does_not_have_are_left_out_if_that_is_allowed(distpro: Run, process: Path) -> None:
    more = ["pathways.0.connections=all"]
    refused = distpro("transfer", "tiny.yaml", *more, "-p", process, *QUICK)
    assert refused.status == 2 and "only in the pair: 1-2, 1-3" in refused.err and "--allow new" in refused.err
    result = distpro("transfer", "tiny.yaml", *more, "-p", process, "--allow", "new", "distill.epochs=1", "--json")
    assert result.status == 0, result.err
    assert "left out, because the process does not have them: 1-2, 1-3" in result.err
    assert result.json["pathways_used"] == 10
    unknown = distpro("transfer", "tiny.yaml", "-p", process, "--allow", "loss", *QUICK)
    assert unknown.status == 2 and "--allow: there is no 'loss' (did you mean 'lost'?)" in unknown.err


def test_a_transfer_to_another_tap_says_so_in_one_line(distpro: Run, process: Path) -> None:
    tap = "student.feature=before-activation"
    result = distpro("transfer", "tiny.yaml", tap, "-p", process, "distill.epochs=1")
    line = "student levels were tapped at output in the search, and are at before-activation here"
    assert result.status == 0 and result.err.count(line) == 1
    assert "tapped" not in distpro("transfer", "tiny.yaml", "-p", process, "distill.epochs=1").err
    assert line in distpro("inspect", process, "tiny.yaml", tap).out


OWN = "from distpro_cli.pathways.transforms import Conv1\nopen('ran', 'w')\nclass Own(Conv1): pass\n"


def test_inspect_runs_nothing_that_a_process_names(distpro: Run, workplace: Path, process: Path) -> None:
    from dataclasses import replace

    from distpro_cli.process.file import save_process

    (workplace / "own.py").write_text(OWN)
    loaded = load_process(process)
    theirs = [replace(info, transform="own.py:Own") for info in loaded.pathways]
    save_process(replace(loaded, pathways=tuple(theirs)), Path("theirs.safetensors"))
    result = distpro("inspect", "theirs.safetensors", "tiny.yaml", "pathways=null")
    assert result.status == 0 and "asks to run Python: pathway 1-1: own.py:Own" in result.out
    assert "name it in the recipe's pathways" in result.out and not Path("ran").exists()
    assert "does not fit" in distpro("inspect", "theirs.safetensors", "tiny.yaml", "pathways.0.transform=conv2").out
