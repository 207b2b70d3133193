"""Mutated files and killed runs: `python -m tests.soak --files 10000 --kills 200` (make soak); a short form runs in CI.

Every mutated recipe, override and process file must be taken or refused in a few printable lines, in seconds of CPU,
without a traceback; what is taken must be written and read back as the same. Every killed run must end, resumed, in the
bytes of one that was left alone. Prints figures; exit status 1 after a failure, whose input is kept.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distpro_cli.errors import MOST_PROBLEMS, DistproError
from distpro_cli.recipe.load import dump_recipe, parse_recipe
from distpro_cli.recipe.shipped import shipped_recipes
from tests.conftest import TINY_RECIPE
from tests.process.examples import make_process

SLOWEST_SECONDS = 5.0
ODD_TEXTS = (
    *("null", "true", "[]", "{}", "-1", "0", "1e400", "-1e308", ".nan", "9" * 5000, "''", "[[[1]]]", "{a: {b: c}}"),
    *('"\\U00110000"', '"\\uD800"', '"a\\nerror: b"', '"\\e[2J"', "\x00", "\x85", "\u2028", "\ufeff", "\u202e", "💥"),
    *("&a [*a]", "*a", "<<: {x: 1}", "!!python/object:os.system x", "? ", "- ", ": ", "\t", "%YAML 9.9", "---", "..."),
    *("own.py:Net", "../../etc/passwd", "$HOME", "~root", "/dev/zero", "x" * 100_000, "[" * 100, "a: 1, " * 3000),
)
ODD_VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        0,
        1,
        2**63,
        2**200,
        1e308,
        -0.5,
        "",
        "x" * 10_000,
        "\x1b[2J\n",
        "\ud800",
        [],
        [[]],
        {},
        {"a": 1},
    ),
    *([1] * 1000, ["a"] * 50, {str(i): i for i in range(500)}, [None], "own.py:Net"),
)
KEYS = (
    "seed",
    "data.root",
    "data.image_size",
    "pathways.0.connections",
    "search.alpha_lr",
    "teacher.train",
    "task",
    "",
)


def mutate_text(text: str, chance: random.Random) -> str:
    """Returns a text with one to four places changed."""
    for _ in range(chance.randint(1, 4)):
        at, end = sorted(chance.randrange(len(text) + 1) for _ in range(2))
        lines = text.split("\n")
        one, other = (chance.randrange(len(lines)) for _ in range(2))
        match chance.randrange(6):
            case 0:
                text = text[:at] + chance.choice(ODD_TEXTS) + text[at:]
            case 1:
                text = text[:at] + text[min(end, at + 20) :]
            case 2:
                lines.insert(one, lines[other])
                text = "\n".join(lines)
            case 3:
                key = lines[one].partition(":")[0]
                lines[one] = f"{key}: {chance.choice(ODD_TEXTS)}"
                text = "\n".join(lines)
            case 4:
                lines[one] = " " * chance.randrange(6) + lines[one].lstrip()
                text = "\n".join(lines)
            case _:
                text = text[:at] + chr(chance.choice([*range(128), 0x85, 0x2028, 0xFFFF, 0x1F4A5])) + text[at:]
        text = text or "{"
    return text


def mutate_process(content: bytes, chance: random.Random) -> bytes:
    """Returns a process file with bytes changed, or with one value of its metadata replaced."""
    if chance.random() < 0.4:
        changed = bytearray(content)
        for _ in range(chance.randint(1, 8)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        return bytes(changed[: chance.randrange(len(changed))]) if chance.random() < 0.3 else bytes(changed)
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    metadata = header["__metadata__"]
    field = chance.choice(sorted(metadata))
    if field in ("pathways", "versions", "measured", "parts", "scale") and chance.random() < 0.8:
        value = json.loads(metadata[field])
        _replace_somewhere(value, chance)
        metadata[field] = json.dumps(value)
    elif chance.random() < 0.5:
        metadata[field] = mutate_text(metadata[field], chance)
    else:
        _replace_somewhere(header, chance)
    text = json.dumps(header).encode("utf-8", "replace")
    return len(text).to_bytes(8, "little") + text + content[end:]


def _replace_somewhere(value: Any, chance: random.Random) -> None:
    """Replaces one value somewhere inside of a list or an object."""
    keys: Sequence[Any] = sorted(value) if isinstance(value, dict) else range(len(value))
    if not keys:
        return
    key = chance.choice(keys)
    if isinstance(value[key], dict | list) and value[key] and chance.random() < 0.7:
        _replace_somewhere(value[key], chance)
    else:
        value[key] = chance.choice(ODD_VALUES)


def run_command(*arguments: str) -> tuple[int, str, str]:
    """Runs the command line in this process; returns exit status, stdout and stderr."""
    from distpro_cli.cli import main

    out, errors = io.StringIO(), io.StringIO()
    status = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            main(list(arguments))
        except SystemExit as stop:
            status = int(stop.code or 0)
    return status, out.getvalue(), errors.getvalue()


def check_said(status: int, out: str, errors: str) -> str:
    """Checks what a command said about an odd file; returns `taken` or `refused`."""
    assert status in (0, 2), f"exit status {status}"
    lines = errors.splitlines()
    assert len(lines) <= MOST_PROBLEMS + 5, f"{len(lines)} lines of errors"
    assert all(line.isprintable() for line in errors.split("\n")), "control characters in an error"
    assert all(line.isprintable() for line in out.split("\n")), "control characters in the output"
    assert (status == 0) or errors, "refused without a word"
    return "taken" if status == 0 else "refused"


def try_recipe(text: str, overrides: Sequence[str]) -> str:
    """Reads a recipe as every command does; one that is taken is written and read back."""
    try:
        recipe = parse_recipe(text, overrides)
    except DistproError as error:
        return check_said(2, "", f"{error}\n")
    assert parse_recipe(dump_recipe(recipe)) == recipe, "not read back as it was"
    return "taken"


def fuzz(num_files: int, seed: int, keep: Path) -> Counter[str]:
    """Tries mutated files, a third of each kind; returns how many were taken and refused.

    Raises:
        AssertionError: one broke a rule; it lies in `keep`.
    """
    from distpro_cli.process.file import to_bytes

    chance = random.Random(seed)
    recipes = [TINY_RECIPE, *(path.read_text(encoding="utf-8") for path in shipped_recipes().values())]
    recipes.append(dump_recipe(parse_recipe(TINY_RECIPE)))
    processes = [to_bytes(make_process(21, seed=i)) for i in range(3)]
    found: Counter[str] = Counter()
    for number in range(num_files):
        kind = ("recipe", "override", "process")[number % 3]
        start = time.process_time()  # other processes may be in the way
        path = keep / f"{kind}-{number}{'.safetensors' if kind == 'process' else '.json'}"
        try:
            if kind == "process":
                path.write_bytes(mutate_process(chance.choice(processes), chance))
                result = check_said(*run_command("inspect", str(path)))
            else:
                text, overrides = chance.choice(recipes), []
                if kind == "recipe":
                    text = mutate_text(text, chance)
                else:
                    overrides.append(f"{chance.choice(KEYS)}={mutate_text(chance.choice(ODD_TEXTS), chance)}")
                path.write_text(json.dumps([text, overrides]), encoding="utf-8")
                result = try_recipe(text, overrides)
        except Exception as error:
            raise AssertionError(f"{path}: {type(error).__name__}: {error}") from error
        seconds = time.process_time() - start
        assert seconds < SLOWEST_SECONDS, f"{path}: took {seconds:.1f} s of CPU"
        found[f"{kind} {result}"] += 1
        path.unlink()
    return found


def in_child(arguments: Sequence[str], folder: Path, kill_after: float | None = None) -> bool:
    """Runs the command line in a forked process; returns whether it ended by itself, which must be with status 0."""
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        os.environ["DISTPRO_CACHE"] = str(folder / "cache")
        status = 1
        try:
            status, _, errors = run_command(*arguments)
            if status:
                (folder / "errors").write_text(errors)
        finally:
            os._exit(status)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, code = os.waitpid(child, 0)
    if os.WIFSIGNALED(code):
        return False
    assert os.waitstatus_to_exitcode(code) == 0, (folder / "errors").read_text()
    return True


def kills(num_kills: int, seed: int, keep: Path) -> Counter[str]:
    """Kills searches, their teachers' training included, at random moments, several times each, and resumes them.

    Raises:
        AssertionError: a resumed run did not end, or in other bytes, or left something behind; its folder is kept.
    """
    chance = random.Random(seed)
    more = ["search.epochs=3", "teacher.train.epochs=2", "checkpoint_seconds=0.02"]
    arguments = ["search", "tiny.yaml", *more, "-o", "p.safetensors", "--run-dir", "run", "-q"]
    made = ("p.safetensors", "run/student.safetensors", "run/metrics.jsonl")
    whole = keep / "whole"
    _start_folder(whole)
    start = time.monotonic()
    assert in_child(arguments, whole)
    seconds = time.monotonic() - start
    found: Counter[str] = Counter()
    while found["kills"] < num_kills:
        folder = keep / f"killed-{found['runs']}"
        _start_folder(folder)
        resume: list[str] = []
        ended = False
        while not ended:
            last = found["kills"] >= num_kills or chance.random() < 0.25
            ended = in_child([*arguments, *resume], folder, None if last else chance.uniform(0, seconds))
            found["kills"] += not ended
            resume = ["--resume"]
        for name in made:
            assert (folder / name).read_bytes() == (whole / name).read_bytes(), f"{folder}/{name} differs"
        assert not list((folder / "run").glob("*.tmp")), f"{folder}: temporary files are left"
        found["runs"] += 1
        shutil.rmtree(folder)
    return found


def _start_folder(folder: Path) -> None:
    folder.mkdir()
    (folder / "tiny.yaml").write_text(TINY_RECIPE)


def main() -> None:
    """Runs both and prints figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    keep = Path(tempfile.mkdtemp(prefix="distpro-soak-"))
    try:
        start = time.monotonic()
        counts = fuzz(options.files, options.seed, keep)
        print(f"{options.files} files in {time.monotonic() - start:.0f} s:", dict(sorted(counts.items())), flush=True)
        import distpro_cli.workflows.search  # noqa: F401  # once, before the forks

        start = time.monotonic()
        counts = kills(options.kills, options.seed, keep)
        print(f"{counts['kills']} kills of {counts['runs']} runs in {time.monotonic() - start:.0f} s: same bytes")
    except AssertionError as error:
        print(f"FAILED: {error}", file=sys.stderr)
        sys.exit(1)
    shutil.rmtree(keep)


if __name__ == "__main__":
    main()
