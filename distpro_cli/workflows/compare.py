"""Compare: every method under the same data, schedule and epochs, over several seeds, as runs that are kept."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distpro_cli.errors import DistproError, NonFiniteLossError, RecipeError
from distpro_cli.files import sweep, write_atomically
from distpro_cli.process.file import load_process
from distpro_cli.process.fitting import fit
from distpro_cli.process.trust import check_trusted
from distpro_cli.recipe.load import dump_recipe
from distpro_cli.recipe.schema import Recipe
from distpro_cli.report.comparison import NO_SEARCH, STUDENT, SearchCost, summarize_method
from distpro_cli.runs.checkpoint import load_checkpoint
from distpro_cli.runs.context import RunContext
from distpro_cli.runs.folder import RunFolder
from distpro_cli.training.device import describe_device
from distpro_cli.workflows.diagnosis import explain_worse
from distpro_cli.workflows.methods import Method, online_recipe
from distpro_cli.workflows.pairs import PartsOnce, build_pair, pathway_groups
from distpro_cli.workflows.search import search
from distpro_cli.workflows.search_cost import estimated_search_cost
from distpro_cli.workflows.session import Session
from distpro_cli.workflows.sources import ProcessSource
from distpro_cli.workflows.transfer import transfer
from distpro_cli.workflows.verdict import give_verdict

MADE = {"student", "teacher", "seconds", "device_seconds", "remaining_percent", "pathways_used"}  # of a run's summary


@dataclass(frozen=True)
class Run:
    """One method under one seed.

    Attributes:
        method: With its process.
        seed: Of the run.
        key: Of all that determines it, see `Identity.transfer` and, of one online, `Identity.search`.
    """

    method: Method
    seed: int
    key: str


@dataclass(frozen=True)
class Search:
    """The search that the comparison ran for its own process: its result, and what it cost."""

    source: ProcessSource
    cost: SearchCost


class Comparison:
    """The runs of a comparison below one folder.

    Args:
        recipe: What to distil; its seed is the first.
        methods: What to compare.
        num_seeds: Seeds of every method.
        path: Folder of the comparison.
        context: Device, progress, signals.
        anew: Whether existing runs are repeated.
    """

    def __init__(
        self,
        recipe: Recipe,
        methods: Sequence[Method],
        num_seeds: int,
        path: Path,
        context: RunContext,
        *,
        anew: bool = False,
    ) -> None:
        self.recipe = recipe = with_pathways_of(methods, recipe)
        self.methods = list(methods)
        self.seeds = [recipe.seed + i for i in range(num_seeds)]
        self.path = path
        self.context = context
        self.anew = anew
        self.session = Session(recipe, context)
        self.metric = self.session.task.metric
        self.search: Search | None = None
        self.teacher_figure: float | None = None
        self.diverged: dict[str, str] = {}
        self.find_parts = PartsOnce()

    def summary(self) -> dict[str, Any]:
        """Runs what is missing and returns what `--json` prints; raises what `run` does."""
        results = self.run()
        of_method = {
            method.name: [summary for run, summary in results if run.method is method]
            for method in self.methods
            if method.name not in self.diverged
        }
        compared = [method for method in self.methods if method.name in of_method]
        alone = of_method.get(STUDENT)
        baseline = None if alone is None else [summary["student"][f"{self.metric.name}_last"] for summary in alone]
        methods = [
            summarize_method(
                method.name, of_method[method.name], baseline, self._search_cost(method, of_method), self.metric
            )
            for method in compared
        ]
        return {
            "methods": methods,
            "teacher": {
                "name": self.recipe.teacher.name,
                "head": self.recipe.teacher.head,
                **self.metric.fixed(self.teacher_figure),
            },
            "student": self.recipe.student.name,
            "epochs": self.recipe.distill.epochs,
            "seeds": self.seeds,
            "metric": asdict(self.metric),
            "device": describe_device(self.session.device),
            "worse": explain_worse(self.session, compared, methods, self.teacher_figure),
            "verdict": give_verdict(self.session, compared, methods),
            "diverged": [{"name": name, "message": message} for name, message in self.diverged.items()],
            "run_dir": str(self.path),
        }

    def _search_cost(self, method: Method, of_method: dict[str, list[dict[str, Any]]]) -> SearchCost:
        """Returns what finding the method's process took.

        A process from a file does not say how long its search took. What its steps would take here is estimated
        from the steps of a run with the whole process, where one was made.
        """
        process = method.process
        if process is None:
            return NO_SEARCH
        if self.search is not None and process is self.search.source.process:
            return self.search.cost
        whole = next((other.name for other in self.methods if other.process is process and other.is_whole), "")
        training = self.recipe.distill
        num_steps = self.session.total_steps(training)
        return estimated_search_cost(process, of_method.get(whole, []), training, num_steps, self.session)

    def run(self) -> list[tuple[Run, dict[str, Any]]]:
        """Does what is not done yet; returns every run with its summary, seed by seed.

        A method that diverges under one seed is left out under the others, and is listed in `diverged`.

        Raises:
            DistproError: anything wrong with the user's input, found before the first run.
            NonFiniteLossError: the search diverged.
            Interrupted: a signal came; the run's checkpoint is written.
        """
        keys = self._checked()
        if self.anew:
            forget_runs(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        if any(method.is_to_be_searched for method in self.methods):
            self.search = self._searched()
            self.methods = [method.with_process(self.search.source) for method in self.methods]
            keys = self._checked()
        runs = [Run(method, seed, keys[method.name][seed]) for seed in self.seeds for method in self.methods]
        done = [self._finished(run) for run in runs]
        for summary in filter(None, done):
            self._see_teacher(summary)
        results = []
        for number, (run, before) in enumerate(zip(runs, done, strict=True), start=1):
            title = f"{run.method.name}, seed {run.seed} ({number} of {len(runs)})"
            if run.method.name in self.diverged:
                continue
            if before is not None:
                self.context.reporter.message(f"{title}: already done")
            try:
                results.append((run, before or self._distilled(run, title)))
            except NonFiniteLossError as error:
                self.diverged[run.method.name] = f"{run.method.name}, seed {run.seed}: {error}"
                self.context.reporter.message(f"{title}: diverged; the other methods continue")
        return results

    def _checked(self) -> dict[str, dict[int, str]]:
        """Returns the keys of all runs by method and seed, of what is still to be searched none.

        Everything that can be wrong with a method is found here, before the first run.
        """
        keys: dict[str, dict[int, str]] = {}
        problems: list[str] = []
        for method in self.methods:
            try:
                keys[method.name] = self._keys(method)
            except RecipeError:
                raise
            except DistproError as error:
                problems += [f"{method.name}: {error.lines[0]}", *error.lines[1:]]
        if problems:
            raise DistproError(*problems)
        return keys

    def _keys(self, method: Method) -> dict[int, str]:
        if method.origin is None:
            build_pair(self.session)
            if method.online is None:
                return {}
            identity = self.session.under(online_recipe(self.recipe, method.online)).identity
            return {seed: identity.search(seed) for seed in self.seeds}
        pair, process = method.source.set_up(self.session)
        dropping = asdict(method.dropping)
        fit(process, pair.infos).schedule(**dropping)
        driven = process if process.weights.any() else None
        identity = self.session.identity
        return {seed: identity.transfer(seed, driven, pair.infos, dropping) for seed in self.seeds}

    def _searched(self) -> Search:
        """Searches the process of the recipe, or takes it from an earlier search."""
        seed = self.recipe.seed
        folder = self._folder(self.session.identity.search(seed), "search", seed)
        summary = folder.finished_summary(folder.process)
        if summary is None:
            self._make(folder, self.recipe)
            summary = search(self.recipe, folder.process, folder, self.context, force=True).summary
        cost = SearchCost(summary["seconds"], summary["device_seconds"])
        found = load_process(folder.process)
        check_trusted(str(folder.process), found, self.recipe, given=self.recipe)
        return Search(ProcessSource(found), cost)

    def _finished(self, run: Run) -> dict[str, Any] | None:
        folder = self._folder(run.key, run.method.name, run.seed)
        summary = folder.finished_summary()
        if summary is not None and run.method.online is not None:
            summary = as_distilled(summary)
        if summary is None or not summary.keys() >= MADE:  # damaged: it is made again
            return None
        return {**summary, "run_dir": str(folder.path)}  # the folder may have been moved since

    def _distilled(self, run: Run, title: str) -> dict[str, Any]:
        method, recipe = run.method, self.recipe.model_copy(update={"seed": run.seed})
        folder = self._folder(run.key, method.name, run.seed)
        known: dict[str, Any] = {"teacher_figure": self.teacher_figure, "title": title, "find_parts": self.find_parts}
        if method.online is None:
            self._make(folder, recipe)
            summary = transfer(recipe, method.source, method.dropping, folder, self.context, **known).summary
        else:
            recipe = online_recipe(recipe, method.online)
            self._make(folder, recipe)
            found = search(recipe, folder.process, folder, self.context, force=True, **known)
            summary = as_distilled(found.summary)
        self._see_teacher(summary)
        return summary

    def _see_teacher(self, summary: dict[str, Any]) -> None:
        if self.teacher_figure is None:
            self.teacher_figure = summary["teacher"][self.metric.name]

    def _folder(self, key: str, name: str, seed: int) -> RunFolder:
        """Returns the folder of the run with this key: the existing one, under any name, else a new one."""
        found = sorted(self.path.glob(f"*-{key}"))
        plain = re.sub(r"[^\w.=-]+", "-", name)
        return RunFolder(found[0] if found else self.path / f"{plain}-seed{seed}-{key}", resuming=True)

    def _make(self, folder: RunFolder, recipe: Recipe) -> None:
        """Makes the folder of a run that is to start or resume; a damaged checkpoint is removed."""
        for checkpoint in (folder.checkpoint, folder.teacher_checkpoint):
            if checkpoint.exists():
                try:
                    load_checkpoint(checkpoint)
                except DistproError:
                    self.context.reporter.message(f"{checkpoint}: damaged; the run starts over")
                    checkpoint.unlink()
        folder.path.mkdir(parents=True, exist_ok=True)
        sweep(folder.path)
        write_atomically(folder.recipe, dump_recipe(recipe))


def as_distilled(summary: dict[str, Any]) -> dict[str, Any]:
    """Returns the summary of a search whose student counts, with what is known of a distilled one."""
    return {**summary, "remaining_percent": 100.0, "pathways_used": summary.get("pathways")}


def with_pathways_of(methods: Sequence[Method], recipe: Recipe) -> Recipe:
    """Returns a recipe without pathways with those of the processes, where all have the same.

    So uniform weights use the pathways of the process that they are compared with.
    """
    found = [pathway_groups(method.process) for method in methods if method.process is not None]
    if recipe.pathways is not None or not found or any(groups != found[0] for groups in found):
        return recipe
    return recipe.model_copy(update={"pathways": found[0]})


def forget_runs(path: Path) -> None:
    """Removes the runs of the comparison in a folder, and nothing else there."""
    for folder in path.glob("*-seed*-*"):
        if re.fullmatch(r".+-seed\d+-[0-9a-f]{12}", folder.name) and folder.is_dir():
            shutil.rmtree(folder)
