"""What a comparison compares: the student alone, schemes, processes whole, averaged, or with a part left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from distpro_cli.process.file import load_process
from distpro_cli.process.process import Process
from distpro_cli.recipe.schema import Recipe
from distpro_cli.recipe.scheme_names import ONLINE_METHODS, SearchMethod
from distpro_cli.report.comparison import STUDENT
from distpro_cli.runs.folder import RunFolder
from distpro_cli.training.step import Pair
from distpro_cli.workflows.pairs import build_pair, pathway_groups
from distpro_cli.workflows.session import Session
from distpro_cli.workflows.sources import ProcessSource, SchemeSource, Source
from distpro_cli.workflows.transfer import Dropping

SEARCHED = "process"
AVERAGED = "process-mean"
NOTHING_DROPPED = Dropping()


@dataclass(frozen=True)
class Method:
    """One line of the comparison.

    Attributes:
        name: As the table shows it.
        origin: Of its process; None: the comparison searches it first, or the run itself finds it.
        averaged: Whether the process is averaged over time.
        dropping: What of the process is left out.
        online: `search.method` of a run that finds its process while it distils; None: the process is there before.
    """

    name: str
    origin: Source | None
    averaged: bool = False
    dropping: Dropping = NOTHING_DROPPED
    online: SearchMethod | None = None

    @property
    def source(self) -> Source:
        """What drives the runs; a process that is to be searched has to be known."""
        if self.origin is None:
            raise ValueError(f"{self.name}: its process is not searched yet")
        return self.origin.mean_over_time() if self.averaged else self.origin

    @property
    def process(self) -> Process | None:
        """The process at hand behind it, whole; None for schemes and for what is to be searched."""
        return self.origin.process if isinstance(self.origin, ProcessSource) else None

    @property
    def is_whole(self) -> bool:
        """Whether it is a process as it was found."""
        return self.process is not None and not self.averaged and self.dropping == NOTHING_DROPPED

    @property
    def is_to_be_searched(self) -> bool:
        """Whether the comparison has to search its process first."""
        return self.origin is None and self.online is None

    def with_process(self, searched: Source) -> Method:
        """Returns the method with `searched` in the place of a process that is still to be searched."""
        return replace(self, origin=searched) if self.is_to_be_searched else self

    def set_up(self, session: Session, folder: RunFolder) -> tuple[Pair, Process]:
        """Builds the pair and returns the process of a finished run in its folder.

        Raises:
            DistproError: the pair cannot be built, or the process is not there.
        """
        if self.online is None:
            return self.source.set_up(session)
        return build_pair(session), load_process(folder.process)


def online_recipe(recipe: Recipe, method: SearchMethod) -> Recipe:
    """Returns the recipe of a search that is a run of `distill`, by all train images."""
    own: dict[str, Any] = {"epochs": recipe.distill.epochs, "batch_size": None, "optimizer": None, "schedule": None}
    if method != "hypergradient":
        # A rule's weights are factors of the distances, so a κ in other units says nothing of them.
        own |= {"scale": "distance"} if recipe.search.scale == "distance" else {"scale": "distance", "weight": None}
    search = recipe.search.model_copy(update={**own, "method": method, "outer": "train"})
    return recipe.model_copy(update={"search": search})


def make_methods(
    names: Sequence[str],
    processes: Sequence[tuple[str, Process]],
    thresholds: Sequence[float] = (),
    keeps: Sequence[float] = (),
) -> list[Method]:
    """Returns the methods by name; thresholds and shares kept come after every `process`.

    Processes whose pathways differ from each other's run on their own ones, as no recipe's could fit them all.

    Args:
        names: `student`, names of schemes, `process`, `process-mean`, `online` and its rivals.
        processes: Label and process; empty: one is to be searched.
        thresholds: Of the processes, see `Process.schedule`.
        keeps: Likewise.
    """
    found: list[Method] = []
    groups = [pathway_groups(process) for _, process in processes]
    differ = any(own != groups[0] for own in groups)
    known: list[tuple[str, Source | None]] = [(label, ProcessSource(process, differ)) for label, process in processes]
    for name in names:
        if name in ONLINE_METHODS:
            found.append(Method(name, None, online=ONLINE_METHODS[name]))
            continue
        if name not in (SEARCHED, AVERAGED):
            found.append(Method(name, SchemeSource("plain" if name == STUDENT else name)))
            continue
        for label, origin in known or [("", None)]:
            full = f"{name}:{label}" if len(processes) > 1 else name
            found.append(Method(full, origin, averaged=name == AVERAGED))
            if name == SEARCHED:
                parts = {f"threshold {x:g}": Dropping(x) for x in thresholds}
                parts |= {f"keep {x:g}": Dropping(keep=x) for x in keeps}
                found += [Method(f"{full} {part}", origin, dropping=dropping) for part, dropping in parts.items()]
    return found
