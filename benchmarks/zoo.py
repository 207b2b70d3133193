"""Every family of timm's, its smallest member with random weights: inspect, one step as teacher, one as student.

    python benchmarks/zoo.py [--output runs/zoo.jsonl] [--families resnet vision_transformer ...] [--page docs/zoo.md]

Each family runs in a process of its own, with a time limit. Results are appended to the output, one JSON object a
line; families that are in it are not run again. Prints a Markdown table and how many work, or writes a page of it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

ATTEMPTS = (
    1,
    20,
)  # steps that the teacher is trained; after one, averages of a deep network's BatchNorm can be useless
SIZES = (64, 96, 128, 224, 240, 256, 384)  # of images; the first that the network takes is used
SMALL = re.compile(r"femto|atto|pico|zepto|nano|micro|mini|tiny|small|xxs|xs|(?:^|_)[st]\d*(?:_|$)|lite|18|10t|14t|26t")
MOST_BUILT = 12  # members of a family that are built, on the meta device, to find the smallest
GROUPS = (
    "[{connections: same, transform: conv1, distance: hcl}]",
    "[{connections: same, transform: attention, distance: hcl}]",
    "[{connections: same, transform: linear, distance: mse}]",
)
RECIPE = """\
data: {{name: digits, image_size: {size}, train_images: 4, test_images: 2, workers: 0, augment: {{crop: none}}}}
teacher: {{name: {teacher}, train: {{epochs: {steps}, batch_size: 4, optimizer: {{lr: 0.001}}}}}}
student: {{name: {student}}}
pathways: {group}
distill: {{epochs: 1, batch_size: 4, optimizer: {{lr: 0.001}}}}
"""
PAGE = """\
# Every family of timm

`make zoo` takes the smallest member of every family (module) of timm {timm}, with random weights and default levels, \
builds a pair with resnet18 in both roles, and runs `inspect` and one training step each, on the CPU with torch \
{torch}. Image sizes are tried from small to large, and of the transform blocks conv1, attention and linear the first \
that fits is taken; where none does, the teacher is trained twenty steps first, not one. What to write \
for networks that are unlike these: [networks.md](networks.md).

{table}"""
PARTNER = "resnet18"  # the other network of the pair


def families() -> dict[str, list[str]]:
    """Returns the names of timm's models by family: the module that defines them."""
    from timm.models import _registry

    found: dict[str, list[str]] = defaultdict(list)
    for name, module in _registry._model_to_module.items():
        found[module].append(name)
    return dict(sorted(found.items()))


def smallest(names: Sequence[str]) -> str:
    """Returns the member with the fewest parameters, of those whose names sound small where there are many."""
    import timm
    import torch

    candidates = list(names)
    if len(candidates) > MOST_BUILT:
        candidates = ([name for name in names if SMALL.search(name)] or candidates)[:MOST_BUILT]
    sizes: dict[str, int] = {}
    for name in candidates:
        try:
            with torch.device("meta"):
                model = timm.create_model(name)
            sizes[name] = sum(parameter.numel() for parameter in model.parameters())
        except Exception:  # some cannot be built there
            continue
    return min(sizes, key=sizes.__getitem__) if sizes else candidates[0]


def distpro(*arguments: str) -> str:
    """Runs the command line in this process; returns what was wrong, or an empty text."""
    import contextlib
    import io
    import traceback

    from distpro_cli.cli import main

    errors = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
            main(list(arguments))
    except SystemExit as stop:
        return (errors.getvalue().strip() or f"exit status {stop.code}") if stop.code else ""
    except Exception as error:
        return f"CRASH {type(error).__name__}: {error} ({traceback.extract_tb(error.__traceback__)[-1].name})"
    return ""


def try_family(family: str, names: Sequence[str]) -> dict[str, Any]:
    """Returns what works: `ok`, or what each of `inspect`, `student` and `teacher` said."""
    start = time.monotonic()
    name = smallest(names)
    result: dict[str, Any] = {"family": family, "name": name}
    for size in SIZES:
        _write("student.yaml", size, PARTNER, name, GROUPS[0])
        result |= {"size": size, "inspect": distpro("inspect", "student.yaml")}
        if not result["inspect"] or "CRASH" in result["inspect"]:
            break
        if "pathways." in result["inspect"]:  # the networks were built; another transform block is asked for
            break
    for role in ("student", "teacher"):
        pair = (PARTNER, name) if role == "student" else (name, PARTNER)
        for steps, group in product(ATTEMPTS, GROUPS):
            _write(f"{role}.yaml", result["size"], *pair, group, steps)
            result[role] = distpro("transfer", f"{role}.yaml", "-p", "uniform", "-q", "--device", "cpu", "--force")
            result[f"{role}_transform"] = group.partition("transform: ")[2].partition(",")[0]
            if not result[role]:
                break
        if role == "student" and not result[role]:
            result["inspect"] = distpro("inspect", "student.yaml")
    result["ok"] = not (result["inspect"] or result["student"] or result["teacher"])
    return result | {"seconds": round(time.monotonic() - start, 1)}


def _write(file: str, size: int, teacher: str, student: str, group: str, steps: int = 1) -> None:
    text = RECIPE.format(size=size, teacher=teacher, student=student, group=group, steps=steps)
    Path(file).write_text(text, encoding="utf-8")


def run_apart(family: str, seconds: float) -> dict[str, Any]:
    """Runs one family in a process of its own; one that takes too long, or dies, is a result, too."""
    with tempfile.TemporaryDirectory(prefix="distpro-zoo-") as folder:
        environment = {**os.environ, "DISTPRO_CACHE": f"{folder}/cache", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, str(Path(__file__).resolve()), "--one", family]
        try:
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired:
            return {"family": family, "ok": False, "inspect": f"took more than {seconds:.0f} s"}
    try:
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        return {"family": family, "ok": False, "inspect": f"CRASH with status {done.returncode}: {last}"}
    return result


def table(results: Sequence[dict[str, Any]]) -> str:
    """Returns what works as Markdown, what does not with the first thing that was said."""
    works = sum(one["ok"] for one in results)
    lines = [
        f"{works} of {len(results)} families work ({100 * works / max(len(results), 1):.1f} %).",
        "",
        "| family | smallest member | pixels | transform as student, as teacher | result |",
        "| --- | --- | ---: | --- | --- |",
    ]
    for one in results:
        said = next((one[key] for key in ("inspect", "student", "teacher") if one.get(key)), "")
        text = "works" if one["ok"] else said.splitlines()[0][:240].replace("|", "\\|")
        blocks = f"{one.get('student_transform', '')}, {one.get('teacher_transform', '')}"
        lines.append(f"| {one['family']} | {one.get('name', '')} | {one.get('size', '')} | {blocks} | {text} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs the families that are not in the output yet, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--output", type=Path, default=Path("runs/zoo.jsonl"))
    parser.add_argument("--families", nargs="*", help="only these; default: all")
    parser.add_argument("--seconds", type=float, default=600.0, help="limit for a family")
    parser.add_argument("--page", type=Path, help="write the table into this page")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    known = families()
    if options.one:
        print(json.dumps(try_family(options.one, known[options.one])))
        return
    if unknown := set(options.families or ()) - set(known):
        parser.error(f"no such family: {', '.join(sorted(unknown))}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    lines = options.output.read_text(encoding="utf-8").splitlines() if options.output.exists() else []
    results = {one["family"]: one for one in map(json.loads, lines)}
    for family in options.families or known:
        if family in results:
            continue
        results[family] = run_apart(family, options.seconds)
        with options.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(results[family]) + "\n")
        print(f"{family}: {'works' if results[family]['ok'] else 'does not'}", file=sys.stderr, flush=True)
    found = table([results[family] for family in options.families or known])
    if options.page is None:
        print(found, end="")
    else:
        import timm
        import torch

        text = PAGE.format(timm=timm.__version__, torch=torch.__version__.partition("+")[0], table=found)
        options.page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
