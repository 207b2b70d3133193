"""Fits a process to a pair: which of its columns drives which pathway, and what is said where they do not fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from distpro_cli.errors import DistproError, ProcessError, nearest
from distpro_cli.process.cost import Part
from distpro_cli.process.matching import (
    DEFAULT,
    MATCHINGS,
    Exact,
    Levels,
    Matching,
    Numbers,
    differences,
    level_differences,
    levels_for,
    mapped,
)
from distpro_cli.process.pathway import PathwayInfo
from distpro_cli.process.process import SIDES, Process, levels_of

LOST, NEW = "lost", "new"
# What `--allow` takes, and what it allows.
ALLOWANCES = {
    LOST: "pathways of the process that drive nothing",
    NEW: "pathways of the pair that the process does not have, which are left out",
    "count": "other numbers of levels",
    "kind": "levels of another kind",
    "transform": "another transform block",
    "distance": "another distance",
}
_HINTS = 3  # at most, of flags that would allow what was refused


@dataclass(frozen=True)
class How:
    """How a process is to be fitted to a pair.

    Attributes:
        mode: Name of a matching, or `Name` from `file.py:Name`.
        allow: What may differ, of `ALLOWANCES`.

    Raises:
        DistproError: there is no such allowance.
    """

    mode: str = DEFAULT
    allow: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for name in sorted(self.allow - set(ALLOWANCES)):
            raise DistproError(
                f"--allow: there is no '{name}'{nearest(name, ALLOWANCES)}; there are: {', '.join(ALLOWANCES)}"
            )

    def matching(self, levels: tuple[Levels, Levels] | None = None) -> Matching:
        """Returns the matching for a pair with these levels of teacher and student.

        Raises:
            DistproError: there is none of this name.
        """
        return MATCHINGS.find_subclass(self.mode, Matching)(levels, self.allow)


BY_LEVEL = How()


@dataclass(frozen=True)
class Match:
    """Which column of a process drives which pathway of a pair.

    Attributes:
        how: By which it was found.
        process: Pathways of the process.
        pair: Pathways of the pair.
        columns: For each of the pair's pathways the column, from 0; None: the process has none for it.
        numbers: Which level of the process corresponds to which of the pair.
        levels: Of the pair's teacher and student.
    """

    how: How
    process: tuple[PathwayInfo, ...]
    pair: tuple[PathwayInfo, ...]
    columns: tuple[int | None, ...]
    numbers: Numbers
    levels: tuple[Levels, Levels]

    @property
    def lost(self) -> list[PathwayInfo]:
        """Pathways of the process that drive nothing."""
        return [info for column, info in enumerate(self.process) if column not in self.columns]

    @property
    def new(self) -> list[PathwayInfo]:
        """Pathways of the pair that the process does not have."""
        return [info for info, column in zip(self.pair, self.columns, strict=True) if column is None]

    @property
    def joined(self) -> list[tuple[PathwayInfo, PathwayInfo]]:
        """The others: pathway of the process, pathway of the pair."""
        pairs = zip(self.pair, self.columns, strict=True)
        return [(self.process[column], info) for info, column in pairs if column is not None]

    @property
    def missing(self) -> set[str]:
        """What of `lost` and `new` would have to be allowed, and is not."""
        refuses = MATCHINGS.find_subclass(self.how.mode, Matching).refuses
        found = {LOST} if self.lost and refuses else set()
        return (found | ({NEW} if self.new else set())) - self.how.allow

    @property
    def fits(self) -> bool:
        """Whether the process can drive the pair."""
        return bool(self.joined) and not self.missing

    def rule(self, own: PathwayInfo, of_pair: PathwayInfo) -> str:
        """Returns by what two pathways were joined: `exact` where nothing differs, else the mode."""
        same = own.connection == of_pair.connection and not differences(own, of_pair).keys() & set(Exact.agree)
        return "exact" if same else self.how.mode

    def values(self) -> dict[str, Any]:
        """Returns what drives what, as JSON knows it: for a run folder, for a student's metadata."""
        joined = [{"pair": info.id, "process": own.id, "rule": self.rule(own, info)} for own, info in self.joined]
        lists = {"lost": [info.id for info in self.lost], "left_out": [info.id for info in self.new]}
        return {"mode": self.how.mode, "allow": sorted(self.how.allow), "pathways": joined, **lists}


def other_taps(process: Process, match: Match) -> list[str]:
    """Returns where levels are tapped elsewhere than in the search of the process, in words, without repeats."""
    known = _features_of_recipe(process) if not process.teacher_levels else {}
    found: dict[str, None] = {}
    for own, of_pair in match.joined:
        for side in SIDES:
            level, now = getattr(own, side), getattr(of_pair, side).feature
            before = level.feature or known.get(side)
            if before and now and before != now and level.kind in ("map", "tokens"):
                found[f"{side} levels were tapped at {before} in the search, and are at {now} here"] = None
    return list(found)


def _features_of_recipe(process: Process) -> dict[str, str]:
    """Returns where the recipe inside taps, for a file that does not say it of its levels."""
    from distpro_cli.recipe.load import parse_recipe

    try:
        recipe = parse_recipe(process.recipe)
    except DistproError:
        return {}
    return {"teacher": recipe.teacher.feature, "student": recipe.student.feature}


def find_match(
    process: Process,
    pathways: Sequence[PathwayInfo],
    how: How = BY_LEVEL,
    levels: tuple[Levels, Levels] | None = None,
) -> Match:
    """Returns what of the process drives what of the pair, whether that is enough or not.

    Args:
        process: What is to drive the pair.
        pathways: The pair's pathways, resolved.
        how: Mode, and what may differ.
        levels: All levels of the pair's teacher and student; None: those that the pathways join.

    Raises:
        DistproError: there is no such mode, or one of the user's returns no columns.
    """
    levels = levels or (levels_of(pathways, "teacher"), levels_of(pathways, "student"))
    matching = how.matching(levels)
    columns = tuple(matching.columns(process, pathways))
    own = range(len(process.pathways))
    if len(columns) != len(pathways) or not all(column is None or column in own for column in columns):
        expected = f"one per pathway of the pair ({len(pathways)}), each from 0 to {own[-1]}, or None"
        raise ProcessError(f"--match {how.mode} returned the columns {list(columns)}; expected {expected}")
    return Match(how, process.pathways, tuple(pathways), columns, matching.both_numbers(process), levels)


def match_that_fits(
    process: Process, pathways: Sequence[PathwayInfo], how: How = BY_LEVEL, levels: tuple[Levels, Levels] | None = None
) -> Match:
    """Returns what `find_match` finds, of the same arguments, where that can drive the pair.

    Raises:
        ProcessError: it cannot; the message says what differs, and which flags would allow it.
        DistproError: the mode is unknown.
    """
    match = find_match(process, pathways, how, levels)
    check_fits(match, lambda other: find_match(process, pathways, other, levels))
    return match


def fit(process: Process, pathways: Sequence[PathwayInfo], how: How = BY_LEVEL) -> Process:
    """Returns the process with the pair's pathways that it has, and its columns in their order.

    Its schedules are those of `process`, column by column: alpha that is left out still counts for thresholds and
    shares (a file does not hold it: save `process` itself). Parts of a step that only columns left out need are left
    out, too. It raises as `match_that_fits` does.
    """
    return fitted(process, match_that_fits(process, pathways, how))


def check_fits(match: Match, again: Callable[[How], Match]) -> None:
    """Refuses a process that does not fit.

    Args:
        match: What was found.
        again: Matches the same process and pair in another way.

    Raises:
        ProcessError: a line per difference with the pathways it concerns, and which flags would allow it.
    """
    if not match.fits:
        raise ProcessError("the process does not fit this pair:", *(f"  {line}" for line in unfit(match, again)))


def fitted(process: Process, match: Match) -> Process:
    """Returns the process that drives what was joined."""
    columns = [column for column in match.columns if column is not None]
    before = process.columns or range(len(process.pathways))
    return replace(
        process,
        weights=process.weights[:, columns],
        alpha=process.alpha[:, columns],
        pathways=tuple(info for _, info in match.joined),
        parts=moved_parts(process.parts, columns),
        whole_alpha=process.alpha if process.whole_alpha is None else process.whole_alpha,
        columns=tuple(before[column] for column in columns),
        scale=None if process.scale is None else process.scale[:, columns],
        teacher_levels=(),
        student_levels=(),
    )


def moved_parts(parts: Sequence[Part], columns: Sequence[int]) -> tuple[Part, ...]:
    """Returns the parts of a step whose pathways are these columns, in this order; what only others need is gone."""
    moved: list[Part] = []
    for part in parts:
        places = tuple(place for place, column in enumerate(columns) if column in (part.pathways or ()))
        if places or not part.pathways:
            moved.append(replace(part, pathways=places) if places else part)
    return tuple(moved)


def unfit(match: Match, again: Callable[[How], Match]) -> list[str]:
    """Returns what `check_fits` says."""
    return [*_misfits(match), *_hints(match, again)]


def _misfits(match: Match) -> list[str]:
    """Returns a line per difference with the pathways it concerns."""
    concerned: dict[str, list[str]] = {}
    rest = list(match.new)
    asked = match.how.matching().asked
    for own in match.lost:
        partner = next((other for other in rest if other.connection == mapped(own, match.numbers)), None)
        if partner is not None:
            differing = differences(own, partner)
        else:
            differing = level_differences(own, *levels_for(own, match.numbers, match.levels))
        keys = ["count"] if "count" in differing and "count" in asked else sorted(differing.keys() & asked)
        texts = [text for key in keys for text in differing[key]]
        if partner is not None and texts:
            rest.remove(partner)
        for text in texts or ["only in the process"]:
            concerned.setdefault(text, []).append(own.id)
    for other in rest:
        concerned.setdefault("only in the pair", []).append(other.id)
    return [f"{text}: {', '.join(ids)}" for text, ids in concerned.items()]


def _hints(match: Match, again: Callable[[How], Match]) -> list[str]:
    """Returns which flags would let the process drive the pair, those that allow least first."""
    found = []
    for order, mode in enumerate(dict.fromkeys([match.how.mode, DEFAULT, "reduction", "depth"])):
        try:
            loose = again(How(mode, frozenset(ALLOWANCES)))
        except DistproError:  # its pathways cannot be built between the levels of this pair
            continue
        differing: set[str] = {key for own, info in loose.joined for key in differences(own, info)}
        needed = (
            differing & How(mode).matching().asked | ({LOST} if loose.lost else set()) | ({NEW} if loose.new else set())
        )
        if loose.joined and needed <= set(ALLOWANCES):
            found.append((len(needed), -len(loose.joined), order, mode, needed, loose))
    lines = []
    for *_, mode, needed, loose in sorted(found, key=lambda one: one[:3])[:_HINTS]:
        flags = [
            *([] if mode == match.how.mode else [f"--match {mode}"]),
            *(f"--allow {name}" for name in sorted(needed)),
        ]
        used = f"{len(loose.process) - len(loose.lost)} of the process's {len(loose.process)} pathways"
        lines.append(f"{' '.join(flags)}: {used} would drive {len(loose.joined)} of the pair's {len(loose.pair)}")
    return lines
