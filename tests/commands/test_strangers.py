"""Files of strangers: nothing in them runs, breaks out of its line, or takes long; what they name is asked for."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from distpro_cli.process.cost import Part
from distpro_cli.process.file import load_process, save_process, to_bytes
from distpro_cli.recipe.shipped import shipped_processes
from distpro_cli.recipe.strict_yaml import MAX_BYTES
from tests.conftest import Run
from tests.process.examples import lower_pathways, make_pathway, make_process

MARK = "from pathlib import Path\nPath('ran').touch()\n"
OWN_NETWORK = MARK + (
    "from torch import nn\n"
    "class Net(nn.Sequential):\n"
    "    def __init__(self, num_classes):\n"
    "        super().__init__(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),"
    " nn.Linear(8, num_classes))\n"
)
ONE_EPOCH = ["distill.epochs=1", "-q"]


def write_changed(source: Path, target: Path, *changes: tuple[str, str], **fields: object) -> None:
    """Writes a copy of a process in which texts of the recipe, and whole fields, are others."""
    process = load_process(source)
    recipe = process.recipe
    for old, new in changes:
        assert old in recipe
        recipe = recipe.replace(old, new, 1)
    save_process(replace(process, recipe=recipe, **fields), target)  # type: ignore[arg-type]


@pytest.fixture
def own(workplace: Path) -> Path:
    (workplace / "own.py").write_text(OWN_NETWORK)
    return workplace


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ([("student:\n  name: wrn_10_1", "student:\n  name: own.py:Net")], "student.name: own.py:Net"),
        ([("teacher:\n  name: wrn_10_1", "teacher:\n  name: own.py:Net")], "teacher.name: own.py:Net"),
        ([("task: classification", "task: own.py:Task")], "task: own.py:Task"),
        ([("transform: conv1", "transform: own.py:Block")], "pathways.0.transform: own.py:Block"),
        ([("distance: hcl", "distance: own.py:Far")], "pathways.0.distance: own.py:Far"),
        ([("hypergradient: cheap", "hypergradient: own.py:Ours")], "search.hypergradient: own.py:Ours"),
        ([("teacher:\n  name: wrn_10_1", "teacher:\n  name: hf-hub:any/thing")], "teacher.name: hf-hub:any/thing"),
        ([("root: null", "root: /etc")], "data.root: /etc"),
        ([("root: null", "root: $HOME")], "data.root: $HOME"),
        ([("root: null", "root: ../elsewhere")], "data.root: ../elsewhere"),
        ([("train_split: train", "train_split: ../../etc")], "data.train_split: ../../etc"),
        ([("weights: null", "weights: ~/teacher.safetensors")], "teacher.weights: ~/teacher.safetensors"),
    ],
)
def test_what_a_process_file_names_is_not_used_unasked(
    distpro: Run, own: Path, process: Path, changes: list[tuple[str, str]], named: str
) -> None:
    write_changed(process, own / "odd.safetensors", *changes)
    result = distpro("transfer", "-p", "odd.safetensors", *ONE_EPOCH)
    assert result.status == 2
    assert named in result.err and "--trust" in result.err and "Traceback" not in result.err
    assert distpro("inspect", "odd.safetensors").status == 0
    assert not (own / "ran").exists() and not (own / "runs").exists()


@pytest.mark.parametrize("command", ["transfer", "compare"])
def test_pathways_of_a_process_file_run_nothing_unasked(distpro: Run, own: Path, process: Path, command: str) -> None:
    pathways = tuple(replace(info, transform="own.py:Block") for info in load_process(process).pathways)
    write_changed(process, own / "odd.safetensors", pathways=pathways)
    text = (own / "tiny.yaml").read_text()
    (own / "bare.yaml").write_text(text.partition("pathways:")[0] + "distill: {epochs: 1, batch_size: 32}\n")
    more = ["--methods", "process", "--seeds", 1] if command == "compare" else []
    result = distpro(command, "bare.yaml", "-p", "odd.safetensors", "-q", *more)
    assert result.status == 2
    assert "pathway 1-1: own.py:Block" in result.err and "--trust" in result.err
    assert not (own / "ran").exists()


def test_what_the_user_names_or_trusts_runs(distpro: Run, own: Path, process: Path) -> None:
    changed = ("student:\n  name: wrn_10_1", "student:\n  name: own.py:Net")
    write_changed(process, own / "odd.safetensors", changed)
    # The network has other levels: that is found after its file has run.
    for named in (["--trust"], ["student.name=own.py:Net"]):
        (own / "ran").unlink(missing_ok=True)
        for name in [name for name in list(sys.modules) if name.startswith("distpro_user_own")]:
            del sys.modules[name]
        result = distpro("transfer", "-p", "odd.safetensors", *named, *ONE_EPOCH)
        assert "--trust" not in result.err and (own / "ran").exists(), result.err
    result = distpro("transfer", "-p", "odd.safetensors", "student.name=wrn_10_1", *ONE_EPOCH)
    assert result.status == 0, result.err


def test_processes_that_ship_ask_for_nothing(distpro: Run) -> None:
    from distpro_cli.process.trust import check_trusted
    from distpro_cli.recipe.load import parse_recipe

    for name, path in shipped_processes().items():
        process = load_process(path)
        check_trusted(name, process, parse_recipe(process.recipe))


def test_python_asks_for_trust_too(own: Path, process: Path) -> None:
    from distpro_cli import distil
    from distpro_cli.errors import ProcessError

    changed = ("student:\n  name: wrn_10_1", "student:\n  name: own.py:Net")
    write_changed(process, own / "odd.safetensors", changed)
    with pytest.raises(ProcessError, match="trust=True"):
        distil(load_process(own / "odd.safetensors"))
    assert not (own / "ran").exists()


EVIL = "a\nerror: b\x1b[31m\u202ec"


@pytest.mark.parametrize(
    "text",
    [
        'task: "a\\nerror: b\\e[31m\\u202Ec"\n',
        '"a\\nerror: b\\e[31m\\u202Ec": 1\n',
        'seed: "a\\nerror: b\\e[31m\\u202Ec"\n',
        'student: {name: "a\\nerror: b\\e[31m\\u202Ec"}\n',
        'data: {name: folder, root: "/a\\nerror: b\\e[31m\\u202Ec"}\n',
    ],
)
def test_a_text_of_a_recipe_stays_on_its_line(distpro: Run, workplace: Path, text: str) -> None:
    (workplace / "odd.yaml").write_text(text)
    result = distpro("train", "odd.yaml")
    assert result.status == 2
    shown = result.err.replace("\n", "")
    assert shown.isprintable()
    assert not any(line.startswith("error: b") for line in result.err.splitlines())
    tiny = (workplace / "tiny.yaml").read_text()
    section = text.partition(":")[0]
    if section in ("data", "student"):
        (workplace / "whole.yaml").write_text(
            "\n".join(
                text.strip() if line.startswith(section) else line
                for line in tiny.replace("data:\n", "data:").split("\n")
            )
        )
        result = distpro("train", "whole.yaml")
        assert result.status == 2 and result.err.replace("\n", "").isprintable()
        assert not any(line.startswith("error: b") for line in result.err.splitlines())


def test_names_of_files_and_overrides_are_escaped(distpro: Run, workplace: Path, process: Path) -> None:
    shutil.copy(process, workplace / f"{EVIL}.safetensors".replace("/", ""))
    (workplace / "broken\x1b[2J.safetensors").write_bytes(b"x" * 20)
    for arguments in (
        ["inspect", "."],
        ["inspect", f"{EVIL}.safetensors"],
        ["train", "tiny.yaml", f"{EVIL}=1"],
        ["train", EVIL],
        ["transfer", "-p", EVIL],
        [f"--{EVIL}"],
    ):
        result = distpro(*arguments)
        shown = (result.out + result.err).replace("\n", "")
        assert shown.isprintable(), (arguments, shown)


def test_texts_of_metadata_are_cut(distpro: Run, workplace: Path) -> None:
    measured = {f"figure {i}": "long " * 2000 for i in range(500)}
    save_process(replace(make_process(), measured=measured), workplace / "long.safetensors")
    result = distpro("inspect", "long.safetensors")
    assert result.status == 0 and len(result.out) < 10_000
    assert "and 480 more" in result.out


@pytest.mark.parametrize("escape", ["\\U00110000", "\\UFFFFFFFF", "\\uD800"])
def test_an_escape_that_names_no_character_is_one_line(distpro: Run, workplace: Path, escape: str) -> None:
    (workplace / "odd.yaml").write_text(f'seed: 1\ntask: "{escape}"\n')
    result = distpro("train", "odd.yaml")
    assert result.status == 2 and "odd.yaml:2: " in result.err and "escape" in result.err
    assert distpro("train", "tiny.yaml", f'task="{escape}"').status == 2


def test_a_recipe_of_many_mistakes_is_refused_at_once(distpro: Run, workplace: Path) -> None:
    (workplace / "many.yaml").write_text("x: [" + "a: 1, " * (MAX_BYTES // 6 - 2) + "]")
    start = time.monotonic()
    result = distpro("train", "many.yaml")
    assert time.monotonic() - start < 3  # measured: 0.5 s
    assert result.status == 2 and "more than 20000 values" in result.err
    (workplace / "many.yaml").write_text("".join(f"key{i}: 1\n" for i in range(5000)))
    result = distpro("train", "many.yaml")
    lines = result.err.splitlines()
    assert len(lines) == 21 and lines[-1] == "error: and 4983 more problems; fix these first"


def test_thousands_of_parts_are_read_in_a_moment(distpro: Run, workplace: Path) -> None:
    pathways = [make_pathway(1 + i % 4, 1, name=f"n{i}") for i in range(100)]
    parts = tuple(Part(f"x{i}", 1.0, tuple(sorted({i % 100, i // 100 % 100, i % 97}))) for i in range(4000))
    (workplace / "parts.safetensors").write_bytes(to_bytes(replace(make_process(2000, pathways), parts=parts)))
    start = time.monotonic()
    assert distpro("inspect", "parts.safetensors").status == 0
    assert time.monotonic() - start < 5  # measured: 1 s


def test_parts_that_name_too_many_pathways_are_refused() -> None:
    from distpro_cli.errors import ProcessError

    pathways = lower_pathways()
    many = tuple(Part(f"x{i}", 1.0, (i % 10,) * (i % 3000 + 2)) for i in range(3000))
    with pytest.raises(ProcessError, match="too many"):
        replace(make_process(2000, pathways), parts=many)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", "[]"),
        ("summary.json", '{"student": 3}'),
        ("inputs.json", "[1]"),
        ("recipe.yaml", "\xff\xfe"),
        ("metrics.jsonl", '{"step": "x"}\n[]\n3\n'),
        ("checkpoint.pt", None),
    ],
)
def test_files_of_a_run_folder_that_are_not_ours(distpro: Run, workplace: Path, name: str, content: str | None) -> None:
    import torch

    arguments = ["train", "tiny.yaml", "distill.epochs=1", "--run-dir", "run", "-q"]
    assert distpro(*arguments).status == 0
    if name != "summary.json":
        (workplace / "run" / "summary.json").unlink()
    if content is None:
        torch.save({"student": {}, "progress": {"step": "all"}}, workplace / "run" / name)
    else:
        (workplace / "run" / name).write_bytes(content.encode("latin-1"))
    result = distpro(*arguments, "--resume")
    assert result.status == (0 if name in ("summary.json", "metrics.jsonl") else 2), result.err
    assert "Traceback" not in result.err and result.err.count("\n") <= 1
