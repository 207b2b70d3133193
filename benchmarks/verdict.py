"""Many ways to distil one pair over many seeds, side by side in worker processes of one machine.

    CIFAR10=… python benchmarks/verdict.py cifar10/wrn_16_2-wrn_10_1 --out verdict --seeds 5 --workers 2 \\
        --method student --method reviewkd --method process --method process-mean

`distpro compare` takes one process through all seeds; here every seed searches its own, so the spread over seeds has
the search in it. Everything else is as in `distpro compare`: the same data, epochs and schedule for every method.

A method is one of `distpro compare`'s; with overrides of the recipe that hold for it alone, it has a label after an @:

    --method reviewkd@pre student.feature=before-activation teacher.feature=before-activation

An override that begins with `search:` holds for the search of its process alone. `given` is a process that is there,
of any pair; `{seed}` in its name is the seed, and `match` and `allow` are those of `distpro transfer`:

    --method process@cheap search:data.train_images=5000
    --method given@other process=other/process-seed{seed}.safetensors match=reduction allow=kind,lost

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
from tempfile import TemporaryDirectory
from typing import Any

import torch

from distpro_cli import distil, load_process, load_recipe, search
from distpro_cli.errors import DistproError
from distpro_cli.process.process import Process
from distpro_cli.recipe.schema import Recipe
from distpro_cli.recipe.scheme_names import ONLINE_METHODS
from distpro_cli.report.statistics import paired_difference, spread
from distpro_cli.workflows.methods import online_recipe

SEARCHED = ("process", "process-mean")
GIVEN = "given"
SEARCH_ONLY = "search:"  # before an override


@dataclass(frozen=True)
class Method:
    """One line of the table.

    Attributes:
        name: `KIND` or `KIND@LABEL`; the kind is a method of `distpro compare`, or `given`.
        overrides: Of the recipe, for this method alone.
        search_overrides: Further ones, for the search of its process alone.
        options: Of a process that is given: `process`, `match`, `allow`.
    """

    name: str
    overrides: tuple[str, ...] = ()
    search_overrides: tuple[str, ...] = ()
    options: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, name: str, *words: str) -> Method:
        """Reads what was given behind `--method`."""
        given = name.partition("@")[0] == GIVEN
        options = [word for word in words if given and word.partition("=")[0] in ("process", "match", "allow")]
        search_only = [word for word in words if word.startswith(SEARCH_ONLY)]
        overrides = tuple(word for word in words if word not in options and word not in search_only)
        pairs = [word.partition("=") for word in options]
        searched = tuple(word.removeprefix(SEARCH_ONLY) for word in search_only)
        return cls(name, overrides, searched, tuple((key, value) for key, _, value in pairs))

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
        recipe = self.recipe(method, seed)
        search_seconds = self.search_seconds(method, seed) if method.searched else 0.0
        with TemporaryDirectory(prefix="verdict-") as folder:
            if method.kind in ONLINE_METHODS:
                online = online_recipe(recipe, ONLINE_METHODS[method.kind])
                summary = search(online, run_dir=folder, force=True, device=self.device).summary
            else:
                options = {"match": "level", "allow": ""} | dict(method.options)
                how = {"match": options["match"], "allow": set(options["allow"].split(",")) - {""}}
                source = self.source_of(method, seed)
                summary = distil(source, recipe, run_dir=folder, force=True, device=self.device, **how).summary
            figures = last_figures(Path(folder) / "metrics.jsonl")
        metric = summary["metric"]["name"]
        row = {end: summary["student"][f"{metric}_{end}"] for end in ("last", "best")}
        row |= {"figures": figures, "teacher": summary["teacher"][metric], "seconds": summary["seconds"]}
        return {**row, "search_seconds": search_seconds}

    def recipe(self, method: Method, seed: int, *more: str) -> Recipe:
        """The recipe of a method's runs."""
        return load_recipe(self.source, *self.overrides, *method.overrides, *more, f"seed={seed}")

    def source_of(self, method: Method, seed: int) -> Process | str:
        """What drives a run that searches nothing itself."""
        if method.kind == GIVEN:
            return load_process(dict(method.options)["process"].replace("{seed}", str(seed)))
        if not method.searched:
            return "plain" if method.kind == "student" else method.kind
        process = load_process(self.process_path(method, seed))
        return process.mean_over_time() if method.kind == "process-mean" else process

    def process_path(self, method: Method, seed: int) -> Path:
        """Where the process lies that a method's search finds."""
        return self.out / f"{method.searched.replace('@', '-')}-seed{seed}.safetensors"

    def search_seconds(self, method: Method, seed: int) -> float:
        """Searches a method's process, unless it is there; returns how long that took."""
        path = self.process_path(method, seed)
        note = path.with_suffix(".json")
        if not note.exists():
            recipe = self.recipe(method, seed, *method.search_overrides)
            summary = search(recipe, output=path, device=self.device, force=True).summary
            note.write_text(json.dumps(summary["seconds"]))
        return float(json.loads(note.read_text()))


def last_figures(metrics: Path) -> dict[str, float]:
    """Returns what the last evaluation of a run found, by name."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    last = next((row for row in reversed(rows) if any(key.startswith("test_") for key in row)), {})
    return {key.removeprefix("test_"): value for key, value in last.items() if key.startswith("test_")}


def jobs_of(methods: Sequence[Method], seeds: Sequence[int]) -> list[Job]:
    """Returns what workers may do on their own, seed by seed, the longest of a seed first: those that search."""
    groups: dict[str, list[Method]] = {}
    for method in methods:
        groups.setdefault(method.searched or method.name, []).append(method)
    ordered = sorted(groups.values(), key=lambda group: not group[0].searched)
    return [Job(tuple(group), seed) for seed in seeds for group in ordered]


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
            names = next(iter(own.values())).get("figures", {})
            line["figures"] = {key: spread([row["figures"][key] for row in own.values()]) for key in names}
        both = [seed for seed in own if (against, seed) in good and method.name != against]
        if both:
            theirs = [good[against, seed]["last"] for seed in both]
            line["difference"] = paired_difference(theirs, [own[seed]["last"] for seed in both])
        found.append(line)
    return found


def to_markdown(lines: Sequence[dict[str, Any]], against: str, figures: Sequence[str] = ()) -> str:
    """Returns the table, with columns for further figures of the last epoch."""
    names = "".join(f" {name} |" for name in figures)
    found = [f"| method | seeds | last | best |{names} {against} − method | run s | search s |"]
    found.append(f"| --- |{' ---: |' * (6 + len(figures))}")
    for line in lines:
        if "last" in line:
            cells = [line["method"], str(len(line["seeds"]))]
            shown = [line["last"], line["best"], *(line["figures"][name] for name in figures)]
            cells += [f"{spread['mean']:.2f} ±{spread['std']:.2f}" for spread in shown]
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
    parser.add_argument("--figures", nargs="+", default=[], metavar="NAME", help="further columns, such as ap50")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--device", help="default: the best there is")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    methods = [Method.parse(*words) for words in arguments.method]
    deadline = time.time() + 60 * arguments.minutes
    bench = Bench(arguments.recipe, tuple(arguments.overrides), arguments.out, arguments.device, deadline)
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    run_all(bench, jobs_of(methods, seeds), arguments.workers)
    lines = summarize(bench.rows, methods, arguments.against)
    if arguments.json:
        json.dump({"recipe": bench.source, "overrides": bench.overrides, "methods": lines}, sys.stdout, indent=2)
        print()
    else:
        print(to_markdown(lines, arguments.against, arguments.figures))


if __name__ == "__main__":
    main()
