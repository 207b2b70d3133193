"""Where the process of a run comes from: a process at hand, or a scheme that makes one for the pair."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial

from typing_extensions import override

from distpro_cli.errors import RecipeError
from distpro_cli.pathways.connections import groups_of
from distpro_cli.pathways.defaults import ends_with_logits, groups_for
from distpro_cli.process.fitting import BY_LEVEL, How, check_fits
from distpro_cli.process.process import Process
from distpro_cli.training.step import Pair
from distpro_cli.workflows.pairs import build_networks, join, match_pair, recipe_for, with_pathways
from distpro_cli.workflows.schemes import find_scheme, scheme_process, scheme_recipe, under_its_name, with_levels_of
from distpro_cli.workflows.session import Session


class Source(ABC):
    """Gives a run the pair that a process drives, and the process."""

    @abstractmethod
    def set_up(self, session: Session) -> tuple[Pair, Process]:
        """Builds both; the teacher is not made ready yet, and one that is never needed keeps random weights.

        Raises:
            DistproError: the pair cannot be built.
        """

    def mean_over_time(self) -> Source:
        """Returns the same source with the weights of its process averaged over time."""
        return _Averaged(self)


@dataclass(frozen=True)
class ProcessSource(Source):
    """A process at hand, on the recipe's pathways; a recipe without pathways takes the process's own.

    Attributes:
        process: What drives the runs.
        on_its_own: Whether the process's pathways count whatever the recipe says.
        how: How its pathways are found in the pair. Those of the pair that it does not have are left out.
    """

    process: Process
    on_its_own: bool = False
    how: How = BY_LEVEL

    @override
    def set_up(self, session: Session) -> tuple[Pair, Process]:
        recipe = session.recipe
        if self.on_its_own:
            recipe = recipe.model_copy(update={"pathways": None})
        logits = ends_with_logits(recipe_for(self.process, recipe), session.task)
        student, teacher = build_networks(session, logits=logits)
        levels = teacher.levels, student.levels
        find = partial(match_pair, self.process, recipe, session.task, *levels)
        match = find(self.how)
        check_fits(match, find)
        infos = [info for _, info in match.joined]
        if match.new:
            left_out = ", ".join(info.id for info in match.new)
            session.context.say_once(f"left out, because the process does not have them: {left_out}")
        return with_pathways(session, student, teacher, infos), self.process


@dataclass(frozen=True)
class SchemeSource(Source):
    """The scheme of this name, on its own pathways or the recipe's.

    Raises:
        DistproError: there is no such scheme.
    """

    name: str

    def __post_init__(self) -> None:
        find_scheme(self.name)

    @override
    def set_up(self, session: Session) -> tuple[Pair, Process]:
        scheme = find_scheme(self.name)
        session = session.under(with_levels_of(self.name, session.recipe))
        logits = scheme.on_logits or (scheme.groups is None and ends_with_logits(session.recipe, session.task))
        student, teacher = build_networks(session, logits=logits, weights=scheme.teaches)
        recipe = scheme_recipe(self.name, session.recipe, teacher.levels, student.levels)
        try:
            pair = join(session.under(recipe), student, teacher)
        except RecipeError as error:
            raise error if scheme.groups is None else under_its_name(self.name, error) from None
        groups = groups_for(recipe, session.task, teacher.levels, student.levels)
        factors = [group.weight for group in groups_of(groups, teacher.levels, student.levels)]
        return pair, scheme_process(self.name, recipe, pair.infos, factors)


@dataclass(frozen=True)
class _Averaged(Source):
    source: Source

    @override
    def set_up(self, session: Session) -> tuple[Pair, Process]:
        pair, process = self.source.set_up(session)
        return pair, process.mean_over_time()


def source_of(process: Process | str, how: How = BY_LEVEL) -> Source:
    """Returns the source of a process, or of the scheme of that name."""
    return SchemeSource(process) if isinstance(process, str) else ProcessSource(process, how=how)
