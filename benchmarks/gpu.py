"""Everything that is worth measuring on a GPU, piece by piece, each under ten minutes; continues where it stopped.

    CIFAR10=… python benchmarks/gpu.py --out runs/gpu --minutes 9 --page docs/gpu.md
    python benchmarks/gpu.py --out runs/toy --toy --device cpu

A piece is a test run, one of the other benchmarks, a teacher of all of CIFAR-10, or the comparison of methods with it
over five seeds, side by side on the device. What is done lies in `--out`, one file per piece, and is not done again;
of a comparison that was cut, only what is missing. Without CIFAR10 (docs/data.md) those pieces are left out. `--toy`
runs every piece at a size that means nothing, to see that it runs.

The page gets the machine and the figures between two marks; what is written around them stays.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import verdict  # the benchmark beside this one

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- figures of benchmarks/gpu.py -->\n", "<!-- end of the figures -->\n"
TESTS = (
    *(f"tests/{room}" for room in ("training", "pathways", "networks", "workflows", "tasks")),
    *(f"tests/commands/test_{name}.py" for name in ("trust", "whole_path", "calibration")),
)
TOY_TESTS = ("tests/training/test_scale.py",)
PAIRS = {"wrn": "cifar10/wrn_16_2-wrn_10_1", "resnet": "cifar10/resnet20-resnet8"}
METHODS = ("process", "student", "kd", "uniform", "reviewkd+kd", "reviewkd", "online")
CIFAR = ("data.train_images=null", "data.test_images=null", "distill.batch_size=128")
TOY_CIFAR = ("data.train_images=256", "data.test_images=64", "distill.batch_size=32")
LEAST_MINUTES = 1.0  # that have to be left for a piece to start


@dataclass(frozen=True)
class Piece:
    """Something that is measured by one command.

    Attributes:
        name: Of its file in `--out`.
        title: On the page.
        command: Behind `python`.
        runs: Of a comparison, how many there are in all.
    """

    name: str
    title: str
    command: tuple[str, ...]
    runs: int = 0


def pieces(out: Path, *, toy: bool, device: str | None, seeds: int, workers: int, data: str | None) -> list[Piece]:
    """Returns what is to be done, in this order."""
    on = ("--device", device) if device else ()
    small = ("data.image_size=16", "teacher.name=wrn_10_1", "student.name=wrn_10_1") if toy else ()
    imagenet = ("precision=bfloat16", "data.image_size=224", "teacher.name=resnet50", "student.name=mobilenetv2_100")
    wide = ("--no-cosines", "--batch-size", "2", *small) if toy else ("--no-cosines", "--batch-size", "256", *imagenet)
    compiled = () if toy else ("compile=true",)
    shape = ("--batch-size", "1", "--pathways", "5") if toy else ("--batch-size", "128")
    once = ("--repetitions", "1") if toy else ()
    batch = ("--batch-size", "4" if toy else "128")
    loader = ("--images", "16", "--raw-size", "64", "64", "--image-size", "32", "--batch-size", "4", "--batches", "3")
    step, memory, dropping = (str(HERE / f"{name}.py") for name in ("step_cost", "memory", "dropping"))
    shapes = ("--batch-size", "2", "--image-size", "32", "--moments", "2") if toy else ("--batch-size", "128")
    found = [
        Piece("doctor", "The machine", ("-m", "distpro_cli", "doctor", "--calibrate", "--json", *on)),
        Piece("tests", "Tests", ("-m", "pytest", "-q", "-p", "no:cacheprovider", *(TOY_TESTS if toy else TESTS))),
        Piece("step_cost", "Steps on small images", (step, "--json", *batch, *once, *on, *small)),
        Piece("step_cost_imagenet", "Steps at ImageNet's shapes", (step, "--json", *wide, *once, *on)),
        Piece("step_cost_compiled", "The same, compiled", (step, "--json", *wide, *compiled, *once, *on)),
        Piece("memory", "Memory, ViT-B/16 → DeiT-Tiny", (memory, "--json", *shape, *on)),
        Piece("dropping", "Dropping pathways, ResNet-50 → MobileNetV2", (dropping, "--json", *shapes, *once, *on)),
        Piece("loader", "Loading images", (str(HERE / "loader.py"), "--json", *(loader if toy else ()), *once, *on)),
    ]
    if data is not None:
        found += [piece for pair in PAIRS for piece in _of_pair(out, pair, toy, on, seeds, workers)]
    return found


def _of_pair(out: Path, pair: str, toy: bool, on: Sequence[str], seeds: int, workers: int) -> list[Piece]:
    """Returns a teacher of all of CIFAR-10, and the comparison with it."""
    data, folder = TOY_CIFAR if toy else CIFAR, out / f"teacher-{pair}"
    epochs = 1 if toy else 6
    training = (f"teacher.train.epochs={1 if toy else 20}", "teacher.train.batch_size=128")
    taught = ("teacher.train=null", f"teacher.weights={folder / 'teacher.safetensors'}")
    lengths = (f"distill.epochs={epochs}", f"search.epochs={epochs}")
    methods = [word for method in METHODS for word in ("--method", method)]
    train = ("train", PAIRS[pair], "--network", "teacher", *data, *training, "--run-dir", str(folder), "--json", *on)
    start = ("--resume",) if (folder / "checkpoint.pt").exists() else ("--force",)
    rest = ("--out", str(out / pair), "--seeds", str(seeds), "--workers", str(workers), *methods, "--json", *on)
    return [
        Piece(f"teacher-{pair}", f"Teacher of {PAIRS[pair]}", ("-m", "distpro_cli", *train, *start)),
        Piece(
            f"verdict-{pair}",
            f"All of CIFAR-10, {PAIRS[pair]}, {epochs} epochs",
            (str(HERE / "verdict.py"), PAIRS[pair], *data, *taught, *lengths, *rest),
            runs=len(METHODS) * seeds,
        ),
    ]


def do(piece: Piece, out: Path, deadline: float) -> bool:
    """Runs a piece that is not done yet; returns whether it is done now."""
    path = out / f"{piece.name}.json"
    if path.exists():
        return True
    minutes = (deadline - time.time()) / 60
    if minutes < LEAST_MINUTES:
        return False
    command = [sys.executable, *piece.command]
    if piece.runs:
        command += ["--minutes", str(minutes - LEAST_MINUTES)]
    print(f"{piece.name}: {' '.join(piece.command)}", file=sys.stderr, flush=True)
    start = time.time()
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60 * minutes, check=False, env=_environment()
        )
    except subprocess.TimeoutExpired:
        print(f"{piece.name}: not through in {minutes:.1f} minutes", file=sys.stderr)
        return False
    found = _read(done.stdout)
    whole = _runs(found) >= piece.runs
    said = (done.stdout if piece.name == "tests" else done.stderr).strip().splitlines()[-1:]
    if done.returncode and piece.name != "tests":  # tests that fail are a result
        print(f"{piece.name}: status {done.returncode}: {' '.join(said)}", file=sys.stderr)
        return False
    row = {"seconds": round(time.time() - start, 1), "status": done.returncode, "said": said, "found": found}
    (path if whole else path.with_suffix(".part")).write_text(json.dumps(row, indent=2))
    return whole


def _environment() -> dict[str, str]:
    """Puts this checkout first."""
    path = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path}


def _read(text: str) -> Any:
    """Returns the JSON object that a command printed; None: it printed none."""
    start = text.find("{")
    try:
        return json.loads(text[start:]) if start >= 0 else None
    except ValueError:
        return None


def _runs(found: Any) -> int:
    """Returns how many runs a comparison has, those that failed among them."""
    methods = found.get("methods", []) if isinstance(found, dict) else []
    return sum(len(method["seeds"]) + len(method["errors"]) for method in methods)


def page(all_pieces: Sequence[Piece], out: Path, device: str | None) -> str:
    """Returns the figures as Markdown."""
    lines = [_machine(out, device), ""]
    for piece in all_pieces:
        path = out / f"{piece.name}.json"
        path = path if path.exists() else path.with_suffix(".part")
        if piece.name == "doctor":
            continue
        lines += [f"### {piece.title}", ""]
        if not path.exists():
            lines += ["Not measured.", ""]
            continue
        row = json.loads(path.read_text())
        lines += ["```", f"python {' '.join(_shown(piece, out))}", "```", "", *_figures(piece, row), ""]
    return "\n".join(lines)


def _shown(piece: Piece, out: Path) -> list[str]:
    shown = [word.replace(f"{HERE}{os.sep}", "benchmarks/").replace(str(out), "runs/gpu") for word in piece.command]
    return [f"'{word}'" if " " in word else word for word in shown]


def _machine(out: Path, device: str | None) -> str:
    path = out / "doctor.json"
    if not path.exists():
        return "Machine not known."
    found = json.loads(path.read_text())["found"]
    named = [one.get("name", one["device"]) for one in found["devices"] if (device or "") in one["device"]]
    versions = ", ".join(f"{name} {found['versions'][name]}" for name in ("torch", "timm"))
    return f"Measured on {named[-1] if named else device}, {found['cpu']['cores']} cores beside it; {versions}."


def _figures(piece: Piece, row: Mapping[str, Any]) -> list[str]:
    found = row["found"]
    if piece.runs:
        return verdict.to_markdown(found["methods"], METHODS[0]).splitlines()
    if not isinstance(found, dict):
        return [*row["said"]]
    return ["| | |", "| --- | ---: |", *(f"| {key} | {value:.5g} |" for key, value in _flat(found))]


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """Returns all numbers in nested objects, by the way to them."""
    found: list[tuple[str, float]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{key} ")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.append((prefix + key, value))
    return found


def write_page(path: Path, text: str) -> None:
    """Puts the figures between the marks of a page; makes one with marks where there is none."""
    old = path.read_text(encoding="utf-8") if path.exists() else f"# On a GPU\n\n{BEGIN}{END}"
    if BEGIN not in old or END not in old:
        old = f"{old.rstrip()}\n\n{BEGIN}{END}"
    before, rest = old.split(BEGIN, 1)
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END, 1)[1]}", encoding="utf-8")


def main() -> None:
    """Runs what is not done and there is time for, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of the results")
    parser.add_argument("--page", type=Path, help="write the figures into this page")
    parser.add_argument("--minutes", type=float, default=9.0, help="of this call")
    parser.add_argument("--pieces", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--device", help="default: the best there is")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="runs of a comparison side by side")
    parser.add_argument("--toy", action="store_true", help="sizes that mean nothing")
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    sizes = {"toy": options.toy, "seeds": options.seeds, "workers": options.workers}
    chosen = pieces(out, device=options.device, data=os.environ.get("CIFAR10"), **sizes)
    if unknown := set(options.pieces or ()) - {piece.name for piece in chosen}:
        parser.error(f"no such piece: {', '.join(sorted(unknown))}; there are {', '.join(p.name for p in chosen)}")
    chosen = [piece for piece in chosen if not options.pieces or piece.name in options.pieces]
    deadline = time.time() + 60 * options.minutes
    left = [piece.name for piece in chosen if not do(piece, out, deadline)]
    if options.page is not None:
        write_page(options.page, page(chosen, out, options.device))
    print(f"to do: {', '.join(left)}; run it again" if left else "all done", file=sys.stderr)
    sys.exit(1 if left else 0)


if __name__ == "__main__":
    main()
