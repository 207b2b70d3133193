"""Many ways to distil one pair over many seeds, side by side in worker processes of one machine.

    CIFAR10=… python benchmarks/verdict.py cifar10/wrn_16_2-wrn_10_1 --out verdict --seeds 5 --workers 2 \\
        --method student --method reviewkd --method process --method process-mean

`distpro compare` takes one process through all seeds; here every seed searches its own, so the spread over seeds has
the search in it. Everything else is as in `distpro compare`: the same data, epochs and schedule for every method.

A method is one of `distpro compare`'s; with overrides of the recipe that hold for it alone, it has a label after an @:

    --method reviewkd@pre student.feature=before-activation teacher.feature=before-activation

What is done lies in the folder `--out`, one line per run in `runs.jsonl`, so that a call that was cut (by `--minutes`,
or killed) is continued by the next. Where many workers share a GPU, CUDA's multi-process service makes them faster.
The table has last and best as mean ± standard deviation, and `--against` minus every method, seed by seed, with its
95 % t interval.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distpro_cli import distil, load_process, load_recipe, search
from distpro_cli.errors import DistproError
from distpro_cli.recipe.schema import Recipe
from distpro_cli.recipe.scheme_names import ONLINE_METHODS
from distpro_cli.report.statistics import paired_difference, spread
from distpro_cli.workflows.methods import online_recipe

SEARCHED = ("process", "process-mean")


@dataclass(frozen=True)
class Method:
    """One line of the table.

    Attributes:
        name: `KIND` or `KIND@LABEL`; the kind is a method of `distpro compare`.
        overrides: Of the recipe, for this method alone.
    """

    name: str
    overrides: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """Its name in `distpro compare`."""
        return self.name.partition("@")[0]

    @property
    def searched(self) -> str:
        """Name of the process that it needs, which `process` and `process-mean` of one label share; else empty."""
        return self.name.replace("process-mean", "process") if self.kind in SEARCHED else ""


@dataclass(frozen=True)
class Job:
    """Methods under one seed that one worker runs one after the other: one, or all that need the same search."""

    methods: tuple[Method, ...]
    seed: int


@dataclass(frozen=True)
class Bench:
    """What all jobs share.

    Attributes:
        source: Recipe.
        overrides: Of the recipe, for all methods.
        out: Folder of the results.
        device: As in `distpro --device`.
        deadline: Seconds since the epoch after which no run starts.
    """

    source: str
    overrides: tuple[str, ...]
    out: Path
    device: str | None
    deadline: float

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What is done, one row per run."""
        path = self.out / "runs.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def run(self, job: Job) -> None:
        """Does what is not done yet of a job."""
        done = {(row["method"], row["seed"]) for row in self.rows}
        for method in job.methods:
            if (method.name, job.seed) in done or time.time() > self.deadline:
                continue
            try:
                row = self.result(method, job.seed)
            except DistproError as error:
                row = {"error": str(error)}
            line = json.dumps({"method": method.name, "seed": job.seed, **row}) + "\n"
            with (self.out / "runs.jsonl").open("a") as file:
                file.write(line)  # at once, so that lines of workers do not mix

    def result(self, method: Method, seed: int) -> dict[str, Any]:
        """Runs a method, and the search before it."""
        recipe = load_recipe(self.source, *self.overrides, *method.overrides, f"seed={seed}")
        search_seconds = 0.0
        if method.kind in ONLINE_METHODS:
            summary = search(online_recipe(recipe, ONLINE_METHODS[method.kind]), device=self.device).summary
        elif method.searched:
            path = self.out / f"{method.searched.replace('@', '-')}-seed{seed}.safetensors"
            search_seconds = self.search_seconds(recipe, path)
            process = load_process(path)
            process = process.mean_over_time() if method.kind == "process-mean" else process
            summary = distil(process, recipe, device=self.device).summary
        else:
            scheme = "plain" if method.kind == "student" else method.kind
            summary = distil(scheme, recipe, device=self.device).summary
        metric = summary["metric"]["name"]
        figures = {end: summary["student"][f"{metric}_{end}"] for end in ("last", "best")}
        teacher = summary["teacher"][metric]
        return {**figures, "teacher": teacher, "seconds": summary["seconds"], "search_seconds": search_seconds}

    def search_seconds(self, recipe: Recipe, path: Path) -> float:
        """Searches a process, unless it is there; returns how long that took."""
        note = path.with_suffix(".json")
        if not note.exists():
            summary = search(recipe, output=path, device=self.device, force=True).summary
            note.write_text(json.dumps(summary["seconds"]))
        return float(json.loads(note.read_text()))


def jobs_of(methods: Sequence[Method], seeds: Sequence[int]) -> list[Job]:
    """Returns what workers may do on their own, the longest first: those that search."""
    groups: dict[str, list[Method]] = {}
    for method in methods:
        groups.setdefault(method.searched or method.name, []).append(method)
    ordered = sorted(groups.values(), key=lambda group: not group[0].searched)
    return [Job(tuple(group), seed) for group in ordered for seed in seeds]


def run_all(bench: Bench, jobs: Sequence[Job], workers: int) -> None:
    """Runs the jobs in worker processes with one thread each."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_one_thread) as pool:
        for done in [pool.submit(bench.run, job) for job in jobs]:
            done.result()


def _one_thread() -> None:
    torch.set_num_threads(1)


def summarize(rows: Sequence[dict[str, Any]], methods: Sequence[Method], against: str) -> list[dict[str, Any]]:
    """Returns what is known of every method; differences over the seeds that both have."""
    good = {(row["method"], row["seed"]): row for row in rows if "error" not in row}
    found = []
    for method in methods:
        own = {seed: row for (name, seed), row in sorted(good.items()) if name == method.name}
        line: dict[str, Any] = {"method": method.name, "overrides": method.overrides, "seeds": list(own)}
        line["errors"] = sorted({row["error"] for row in rows if row["method"] == method.name and "error" in row})
        if own:
            line |= {key: spread([row[key] for row in own.values()]) for key in ("last", "best")}
            line |= {key: spread([row[key] for row in own.values()])["mean"] for key in ("seconds", "search_seconds")}
        both = [seed for seed in own if (against, seed) in good and method.name != against]
        if both:
            theirs = [good[against, seed]["last"] for seed in both]
            line["difference"] = paired_difference(theirs, [own[seed]["last"] for seed in both])
        found.append(line)
    return found


def to_markdown(lines: Sequence[dict[str, Any]], against: str) -> str:
    """Returns the table."""
    found = [f"| method | seeds | last | best | {against} − method | run s | search s |"]
    found.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for line in lines:
        if "last" in line:
            cells = [line["method"], str(len(line["seeds"]))]
            cells += [f"{line[key]['mean']:.2f} ±{line[key]['std']:.2f}" for key in ("last", "best")]
            cells += [_interval(line.get("difference")), f"{line['seconds']:.0f}"]
            cells.append(f"{line['search_seconds']:.0f}" if line["search_seconds"] else "")
            found.append(f"| {' | '.join(cells)} |")
        found += [f"| {line['method']} | {error} |" for error in line["errors"]]
    return "\n".join(found)


def _interval(difference: dict[str, Any] | None) -> str:
    if difference is None:
        return ""
    mean = f"{difference['mean']:+.2f}"
    return mean if difference["low"] is None else f"{mean} [{difference['low']:+.2f}, {difference['high']:+.2f}]"


def main() -> None:
    """Runs what is not done, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("recipe", help="a file or a shipped name")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the recipe, for all methods")
    parser.add_argument("--method", nargs="+", action="append", required=True, metavar="NAME[@LABEL] KEY=VALUE")
    parser.add_argument("--against", default="process", help="the method that the others are compared with")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e6, help="after which no run starts")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--device", help="default: the best there is")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    methods = [Method(name, tuple(overrides)) for name, *overrides in arguments.method]
    deadline = time.time() + 60 * arguments.minutes
    bench = Bench(arguments.recipe, tuple(arguments.overrides), arguments.out, arguments.device, deadline)
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    run_all(bench, jobs_of(methods, seeds), arguments.workers)
    lines = summarize(bench.rows, methods, arguments.against)
    if arguments.json:
        json.dump({"recipe": bench.source, "overrides": bench.overrides, "methods": lines}, sys.stdout, indent=2)
        print()
    else:
        print(to_markdown(lines, arguments.against))


if __name__ == "__main__":
    main()
