"""Errors in the user's input: printed one per line, exit status 2; and texts made safe to print."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

MOST_PROBLEMS = 20  # of a recipe that are listed; the rest is counted
MOST_LINE = 4000  # characters of one line of an error
_MOST_KEY = 200


def escaped(text: str, *, keep: str = "") -> str:
    """Returns `text` with what a terminal would obey, hide or break a line at written as `\\n`, `\\x1b`, `\\u202e`.

    Args:
        text: From anywhere: a file, a key, the file system, another library.
        keep: Characters that stay as they are, such as a newline.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)


class DistproError(Exception):
    """An error in the user's input or environment: printed as it is, without a traceback; exit status 2.

    Attributes:
        lines: What is wrong, one text each, as they were given; `str` has each on one line, safe to print.
    """

    def __init__(self, *lines: str) -> None:
        self.lines = lines
        super().__init__(*lines)

    def __str__(self) -> str:
        return "\n".join(_cut(escaped(line), MOST_LINE) for line in self.lines)


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
        return ": ".join(part for part in (self.place, _cut(self.key, _MOST_KEY), self.message) if part)


class RecipeError(DistproError):
    """Everything that is wrong with a recipe, all at once: `MOST_PROBLEMS` are listed, `further` ones counted."""

    def __init__(self, problems: Iterable[Problem], further: int = 0) -> None:
        self.problems = tuple(problems)
        more = further + len(self.problems[MOST_PROBLEMS:])
        counted = [f"and {more} more problem{'s' if more > 1 else ''}; fix these first"] if more else []
        super().__init__(*map(str, self.problems[:MOST_PROBLEMS]), *counted)


class ProcessError(DistproError):
    """A process file that cannot be read, or that does not fit the pair it is asked to drive."""


class DiskFullError(DistproError):
    """There is no room for a file; a run can be resumed once there is."""


class NonFiniteLossError(DistproError):
    """A loss or a weight is not finite; the message names the network, the step, the pathway, the last checkpoint."""


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, 200 characters at most, or the error's type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Returns ` (did you mean 'X'?)` for the allowed name closest to `name`, or an empty string."""
    matches = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f" (did you mean '{matches[0]}'?)" if matches else ""
