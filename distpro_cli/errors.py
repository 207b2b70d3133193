"""Errors in the user's input: printed one per line, exit status 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


class DistproError(Exception):
    """An error in the user's input or environment: printed as it is, without a traceback; exit status 2."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a recipe.

    Attributes:
        key: Dotted path of the key, such as `search.epochs`; empty for the file as a whole.
        message: What was found, what is allowed, what to do.
        place: `file:line`, or `KEY=VALUE` for an override; empty if unknown.
    """

    key: str
    message: str
    place: str = ""

    def __str__(self) -> str:
        return ": ".join(part for part in (self.place, self.key, self.message) if part)


class RecipeError(DistproError):
    """Everything that is wrong with a recipe, all at once."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class ProcessError(DistproError):
    """A process file that cannot be read, or that does not fit the pair it is asked to drive."""


class NonFiniteLossError(DistproError):
    """A loss or a weight is not finite; the message names the network, the step, the pathway, the last checkpoint."""


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, 200 characters at most, or the error's type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Returns ` (did you mean 'X'?)` for the allowed name closest to `name`, or an empty string."""
    matches = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f" (did you mean '{matches[0]}'?)" if matches else ""
