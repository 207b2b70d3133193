"""Processes by name, from the hub and onto it, without a network; and what ships is what its recipe says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from distpro_cli.process import hub
from distpro_cli.process.card import card
from distpro_cli.process.file import load_process, save_process
from distpro_cli.process.library import about, find_process
from distpro_cli.process.notes import gain
from distpro_cli.process.trust import check_trusted
from distpro_cli.recipe.load import parse_recipe
from distpro_cli.recipe.shipped import shipped_processes
from tests.conftest import Run
from tests.process.examples import RECIPE, make_process
from tests.process.test_version_2 import full

ADDRESS = "hf://someone/processes/deep/p.safetensors"


@pytest.mark.parametrize("name", shipped_processes())
def test_a_shipped_process_agrees_with_its_recipe(name: str) -> None:
    process = load_process(shipped_processes()[name])
    recipe = parse_recipe(process.recipe)
    check_trusted(name, process, recipe)  # it asks for nothing of the machine that it was made on
    assert process.seed == recipe.seed
    assert {"distpro-cli", "torch", "timm"} <= set(process.versions)
    assert process.measured["steps"] and any(key.startswith("student_") for key in process.measured)
    scaled = recipe.search.method == "hypergradient" and recipe.search.scale != "distance"
    assert scaled == (process.scale is not None)
    if recipe.search.method == "hypergradient":
        assert process.normalization == recipe.search.normalization
    said = {
        "kappa": recipe.search.kappa,
        "scale": recipe.search.scale,
        "teacher": recipe.teacher.name,
        "student": recipe.student.name,
        "epochs": recipe.search.epochs,
        "optimizer": recipe.search_training.optimizer.name,
        "schedule": recipe.search_training.schedule.name,
        "batch_size": recipe.search_training.batch_size,
        "steps": process.measured["steps"],
        "image_size": recipe.data.image_size,
    }
    if not process.history:
        assert {key: value for key, value in said.items() if process.searched.get(key, value) != value} == {}
    facts = about(process)
    assert facts["teacher"] == recipe.teacher.name and facts["steps"] == process.measured["steps"]


def test_a_process_is_found_by_its_name(distpro: Run, workplace: Path) -> None:
    for name in ("mine", "deep/other", "deep/cifar"):
        save_process(make_process(), workplace / "processes" / f"{name}.safetensors")
    assert find_process("mine") == find_process("mine.safetensors") == Path("processes/mine.safetensors")
    assert find_process("other") == find_process("deep/other") == Path("processes/deep/other.safetensors")
    shipped = next(iter(shipped_processes()))
    assert find_process(shipped) == find_process(shipped.rpartition("/")[2]) == shipped_processes()[shipped]
    assert distpro("inspect", "other", "--json").json["path"] == "other"
    save_process(make_process(), workplace / "processes" / "again" / "mine.safetensors")
    save_process(make_process(), workplace / "processes" / "again" / "other.safetensors")
    assert find_process("mine") == Path("processes/mine.safetensors")
    for command in (("transfer", "tiny.yaml", "-p", "other"), ("compare", "tiny.yaml", "-p", "other", "-q")):
        several = distpro(*command)
        assert several.status == 2 and "other: there are several: again/other, deep/other" in several.err
    wrong = distpro("transfer", "tiny.yaml", "-p", "mien")
    assert wrong.status == 2 and "no process or scheme of that name (did you mean 'mine'?)" in wrong.err


def test_the_list_says_what_there_is(distpro: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    save_process(full(), workplace / "processes" / "mine.safetensors")
    dated = replace(full(), searched={**full().searched, "teacher": "big", "student": "small", "date": "2026-11-30"})
    save_process(dated, workplace / "processes" / "dated.safetensors")
    entries = {entry["path"]: entry["about"] for entry in distpro("inspect", "--json").json["processes"]}
    own = entries["processes/mine.safetensors"]
    assert own["data"] == "CIFAR10" and own["transforms"] == ["conv2"] and own["steps"] == 620
    assert own["date"].startswith("20") and entries["processes/dated.safetensors"]["date"] == "2026-11-30"
    assert entries[next(iter(shipped_processes()))]["teacher"] is not None
    shown = distpro("inspect").out
    assert "big → small" in shown and "10: conv2" in shown and "+3.50" in shown and "2026-11-30" in shown
    assert max(map(len, shown.splitlines())) <= 80
    odd = replace(
        full(), searched={"teacher": 7, "student": 1.5, "data": 3, "date": 4}, gained={"over_student": "x", "low": 1}
    )
    save_process(odd, workplace / "processes" / "odd.safetensors")
    assert "7 → 1.5" in distpro("inspect").out
    assert distpro("inspect", "odd").status == distpro("publish", "odd", "me/mine", "--dry-run").status == 0
    alone = distpro("inspect", "mine").out
    assert "searched: data CIFAR10, kappa 10, scale loss" in alone and "gained: +3.50 over student" in alone
    assert "then: smoothed over 0.1 of the run" in alone


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that a stubbed hub serves as `ADDRESS`."""
    path = tmp_path / "served.safetensors"
    save_process(make_process(), path)

    def download(repo: str, filename: str, revision: str | None = None) -> str:
        assert (repo, filename, revision) == ("someone/processes", "deep/p.safetensors", None)
        return str(path)

    def metadata(url: str) -> SimpleNamespace:
        assert url.endswith("/someone/processes/resolve/main/deep/p.safetensors")
        return SimpleNamespace(size=path.stat().st_size)

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", metadata)
    return path


def test_a_process_is_fetched_and_is_a_strangers_file(distpro: Run, there: Path) -> None:
    assert find_process(ADDRESS) == there
    assert distpro("inspect", ADDRESS, "--json").json["path"] == ADDRESS
    theirs = replace(make_process(), recipe=RECIPE.replace("wrn_10_1", "own.py:Net"))
    save_process(theirs, there, force=True)
    refused = distpro("transfer", "-p", ADDRESS)
    assert refused.status == 2 and "asks to run Python: student.name: own.py:Net" in refused.err


def test_a_file_that_is_too_large_is_not_fetched(there: Path, monkeypatch: pytest.MonkeyPatch, distpro: Run) -> None:
    huge = SimpleNamespace(size=65 * 2**20)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url: huge)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("fetched"))
    result = distpro("inspect", ADDRESS)
    assert result.status == 2 and f"{ADDRESS}: 65 MiB; a process file has at most 64 MiB" in result.err


def test_offline_is_one_line_and_what_was_fetched_before_serves(
    there: Path, monkeypatch: pytest.MonkeyPatch, distpro: Run
) -> None:
    for error in (OfflineModeIsEnabled("HF_HUB_OFFLINE"), LocalEntryNotFoundError("x"), ConnectionError("no route")):

        def fail(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", fail)
        result = distpro("transfer", "tiny.yaml", "-p", ADDRESS)
        assert result.status == 2 and len(result.err.splitlines()) == 1
        assert f"{ADDRESS}: the Hugging Face hub cannot be reached ({type(error).__name__})" in result.err
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: str(there))
    assert find_process(ADDRESS) == there


@pytest.mark.parametrize(
    "address", ["hf://a", "hf://a/b", "hf://a/b/c.bin", "hf://a/b/../c.safetensors", "hf:///b/c.safetensors"]
)
def test_addresses_that_are_none(distpro: Run, address: str) -> None:
    result = distpro("inspect", address)
    assert result.status == 2 and "expected hf://owner/repo/file.safetensors" in result.err


class Api:
    """A hub that remembers."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.private: list[bool] = []

    def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> None:
        assert repo == "me/mine" and exist_ok
        self.private.append(private)

    def file_exists(self, repo: str, name: str) -> bool:
        return name in self.files

    def create_commit(self, repo: str, operations: list[Any], *, commit_message: str) -> None:
        for one in operations:
            content = one.path_or_fileobj
            self.files[one.path_in_repo] = content if isinstance(content, bytes) else Path(content).read_bytes()


def test_publishing_sends_the_file_and_its_card(distpro: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api = Api()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    process = replace(full(), recipe=RECIPE.replace("digits}", "digits, root: /home/me/secret}"))
    save_process(process, workplace / "p.safetensors")
    shown = distpro("publish", "p.safetensors", "me/mine", "--dry-run")
    assert shown.status == 0 and not api.files
    assert "the recipe inside names data.root: /home/me/secret; all will see it" in shown.err
    done = distpro("publish", "p.safetensors", "me/mine", "--private", "--json")
    assert done.json["process"] == "hf://me/mine/p.safetensors" and api.private == [True]
    assert api.files["p.safetensors"] == (workplace / "p.safetensors").read_bytes()
    assert api.files["README.md"].decode() == done.json["card"] == shown.out
    again = distpro("publish", "p.safetensors", "me/mine")
    assert again.status == 2 and "me/mine holds p.safetensors and README.md already; --force replaces" in again.err
    assert distpro("publish", "p.safetensors", "me/mine", "--force").status == 0
    wrong = distpro("publish", "p.safetensors", "mine")
    assert wrong.status == 2 and "expected owner/name" in wrong.err


def test_a_hub_that_refuses_is_one_line(distpro: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class UnauthorizedError(Exception):
        response = SimpleNamespace(status_code=401)

    def refuse(*_: object, **__: object) -> None:
        raise UnauthorizedError("Invalid credentials\nmore")

    api = Api()
    monkeypatch.setattr(api, "create_repo", refuse)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    save_process(make_process(), workplace / "p.safetensors")
    result = distpro("publish", "p.safetensors", "me/mine", "-q")
    assert result.status == 2 and result.err.count("\n") == 1 and "hf auth login" in result.err
    with pytest.raises(hub.DistproError, match="the Hugging Face hub answered 503: busy"), hub._said("x"):
        raise type("Busy", (Exception,), {"response": SimpleNamespace(status_code=503)})("busy\nmore")


def test_the_card_says_what_the_file_says_and_no_more_than_text() -> None:
    process = replace(full(), searched={**full().searched, "data": "<b>|x_y"}, recipe="a: |\n  ```\n  # x\n")
    text = card(process, "p.safetensors", "me/mine")
    assert text.startswith("---\nlibrary_name: distpro\n")
    assert r"| data | \<b\>\|x\_y |" in text and "<b>" not in text
    assert "| κ, the distillation weight | 10 |" in text and "+3.50" in text
    assert "````yaml\na: |\n  ```\n" in text  # no fence in a recipe ends the block
    for info, share in zip(process.pathways, process.share, strict=True):
        assert f"| {info.id} |" in text and f"{100 * share:.1f} % |" in text
    assert "Not measured yet" in card(make_process(), "p.safetensors", "me/mine")


SUMMARY: dict[str, Any] = {
    "metric": {"name": "top1", "label": "top-1", "unit": "%", "higher_is_better": True},
    "epochs": 5,
    "teacher": {"name": "big"},
    "student": "small",
    "methods": [
        {"name": "student", "top1_last": {"mean": 45.0, "values": [44.0, 46.0]}, "difference": None},
        {"name": "kd", "top1_last": {"mean": 50.5, "values": [50.0, 51.0]}, "difference": {"mean": 5.5}},
        {
            "name": "process:mine",
            "top1_last": {"mean": 72.0, "values": [71.0, 73.0]},
            "difference": {"mean": 27.0, "low": 26.0, "high": 28.0},
        },
    ],
}


def test_what_was_gained_comes_from_a_comparison(distpro: Run, workplace: Path) -> None:
    assert gain(SUMMARY, "mine") == {
        "metric": "top-1", "unit": "%", "last": 72.0, "seeds": 2, "epochs": 5, "teacher": "big", "student": "small",
        "over_student": 27.0, "low": 26.0, "high": 28.0, "best_other": "kd", "over_best_other": 21.5,
    }  # fmt: skip
    save_process(make_process(), workplace / "mine.safetensors")
    (workplace / "run").mkdir()
    (workplace / "run" / "summary.json").write_text(json.dumps(SUMMARY))
    noted = distpro("edit", "mine.safetensors", "--gained", "run", "--date", "2026-11-30", "-o", "noted.safetensors")
    assert noted.status == 0, noted.err
    process = load_process(Path("noted.safetensors"))
    assert process.gained["over_best_other"] == 21.5 and process.searched["date"] == "2026-11-30"
    assert process.history == ()  # nothing was changed
    save_process(make_process(), workplace / "other.safetensors")
    other = distpro("edit", "other.safetensors", "--gained", "run", "-o", "x.safetensors")
    assert other.status == 2 and "neither process nor process:other was compared; there are: student, kd" in other.err
    (workplace / "run" / "summary.json").write_text("{}")
    for arguments, message in (
        (["--gained", "run"], "not the summary.json of distpro compare"),
        (["--gained", "nowhere"], "nowhere: cannot be read"),
        (["--date", "30.11."], "--date is '30.11.'; expected a day such as 2026-11-30"),
        (["--date", "2026-13-01"], "expected a day"),
        (["--time", "half"], "--time is half:nan|--time: 'half' is no two moments"),
        ([], "there is nothing to do"),
    ):
        wrong = distpro("edit", "other.safetensors", *arguments, "-o", "x.safetensors")
        assert wrong.status == 2 and any(part in wrong.err for part in message.split("|")), wrong.err
    assert not Path("x.safetensors").exists()


def test_edit_and_export_on_the_command_line(distpro: Run, workplace: Path) -> None:
    for seed, name in enumerate("ab"):
        save_process(make_process(seed=seed), workplace / f"{name}.safetensors")
    made = distpro("edit", "a.safetensors", "b.safetensors", "--smooth", 0.1, "--rows", 11, "-o", "c.safetensors")
    assert made.status == 0 and "average of 2 processes" in made.out and "process: c.safetensors" in made.out
    assert distpro("inspect", "c.safetensors", "--export", "c.csv").status == 0
    assert distpro("edit", "c.safetensors", "--table", "c.csv", "-o", "d.safetensors", "-q").status == 0
    assert Path("d.safetensors").read_bytes() == Path("c.safetensors").read_bytes()
    taken = distpro("edit", "a.safetensors", "--rows", 3, "-o", "c.safetensors")
    assert taken.status == 2 and "--force replaces it" in taken.err
    both = distpro("inspect", "a.safetensors", "b.safetensors", "--export", "e.csv")
    assert both.status == 2 and "--export writes the tables of one process, and 2 are given" in both.err
    shown = distpro("inspect", "c.safetensors", "--json").json
    assert shown["history"][1] == "smoothed over 0.1 of the run" and shown["version"] == 2
