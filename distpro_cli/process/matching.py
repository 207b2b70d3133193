"""Ways of finding a pair's pathways in a process.

A new one is a subclass of `Matching` under `@register_matching("name")`, here or in a file of the user's:
`--match path/to/file.py:Name`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import ClassVar

from typing_extensions import override

from distpro_cli.process.pathway import LevelInfo, PathwayInfo
from distpro_cli.process.process import SIDES, Process, levels_of
from distpro_cli.process.ranks import ranks_by_depth, ranks_by_reduction
from distpro_cli.registry import Registry

Levels = Sequence[LevelInfo]
Numbers = tuple[Mapping[int, int], Mapping[int, int]]  # of teacher and student: the pair's level by the process's
DEFAULT = "level"


class Matching:
    """A way of finding a pair's pathways in a process.

    Two pathways are the same when their levels correspond and what `agree` names is equal. A subclass says which
    levels correspond (`numbers`), what has to agree, or finds the columns on its own.

    Attributes:
        agree: What must be equal, of what `differences` names.
        refuses: Whether pathways that get lost, or are new, have to be allowed.
        levels: All levels of the pair's teacher and student; None: those that its pathways join.
        allow: What of `agree` may differ.
    """

    agree: ClassVar[tuple[str, ...]] = ("kind", "transform", "distance")
    refuses: ClassVar[bool] = False

    def __init__(self, levels: tuple[Levels, Levels] | None = None, allow: Collection[str] = ()) -> None:
        self.levels = levels
        self.allow = allow

    def numbers(self, of_process: Levels, of_pair: Levels) -> Mapping[int, int]:
        """Returns the levels of the pair that correspond to levels of the process, by number; of one network each."""
        there = {level.number for level in of_pair}
        return {level.number: level.number for level in of_process if level.number in there}

    def columns(self, process: Process, pathways: Sequence[PathwayInfo]) -> Sequence[int | None]:
        """Returns for each of the pair's pathways its column in the process, from 0; None where it has none.

        A column may serve several pathways, or none.

        Args:
            process: What is to drive the pair.
            pathways: The pair's pathways, resolved.

        Raises:
            ProcessError: they do not match; the message names every difference.
        """
        numbers = self.both_numbers(process, pathways)
        asked = self.asked
        found: list[tuple[int, int, int]] = []
        for place, info in enumerate(pathways):
            for column, own in enumerate(process.pathways):
                if mapped(own, numbers) == info.connection:
                    differing = differences(own, info).keys()
                    if not differing & asked:
                        found.append((len(differing - {"shape"}), place, column))
        columns: dict[int, int] = {}
        for _, place, column in sorted(found):  # what differs least goes first
            if place not in columns and column not in columns.values():
                columns[place] = column
        return [columns.get(place) for place in range(len(pathways))]

    def both_numbers(self, process: Process, pathways: Sequence[PathwayInfo] = ()) -> Numbers:
        """Returns what `numbers` does of the teachers and of the students."""
        levels = self.levels or tuple(levels_of(pathways, side) for side in SIDES)
        own = [process.levels(side) for side in SIDES]
        teacher, student = (self.numbers(one, other) for one, other in zip(own, levels, strict=True))
        return teacher, student

    @property
    def asked(self) -> set[str]:
        """What must be equal."""
        return set(self.agree) - set(self.allow)


MATCHINGS: Registry[type[Matching]] = Registry(
    "--match mode", canonical=lambda name: {"strict": DEFAULT}.get(name, name)
)
register_matching = MATCHINGS.register


@register_matching("level")
class ByLevel(Matching):
    """Levels of the same number, in networks with as many; names, channels and sizes may differ. As in the paper."""

    agree: ClassVar[tuple[str, ...]] = ("count", "kind", "transform", "distance")
    refuses = True


@register_matching("exact")
class Exact(ByLevel):
    """As by level, with the same channels, sizes and options."""

    agree: ClassVar[tuple[str, ...]] = ("count", "kind", "transform", "distance", "shape", "options")


@register_matching("reduction")
class ByReduction(Matching):
    """Levels with as many input pixels per cell; vectors and logits from the last one on."""

    refuses = True

    @override
    def numbers(self, of_process: Levels, of_pair: Levels) -> Mapping[int, int]:
        ranks = ranks_by_reduction([of_process, of_pair])
        return _of_same_rank(ranks, of_process, of_pair) if ranks else {}


@register_matching("depth")
class ByDepth(Matching):
    """Levels at the same share of the maps or tokens; vectors and logits from the last one on."""

    refuses = True

    @override
    def numbers(self, of_process: Levels, of_pair: Levels) -> Mapping[int, int]:
        return _of_same_rank(ranks_by_depth([of_process, of_pair]), of_process, of_pair)


def _of_same_rank(ranks: Sequence[Mapping[int, int]], of_process: Levels, of_pair: Levels) -> Mapping[int, int]:
    number_by_rank = {rank: number for number, rank in ranks[1].items()}
    found = {number: number_by_rank[rank] for number, rank in ranks[0].items() if rank in number_by_rank}
    logits = ([level.number for level in side if level.kind == "logits"] for side in (of_process, of_pair))
    return found | dict(zip(*map(reversed, logits), strict=False))


def levels_for(info: PathwayInfo, numbers: Numbers, levels: tuple[Levels, Levels]) -> list[LevelInfo | None]:
    """Returns the levels of the pair, teacher's and student's, that a pathway of a process is for, or None."""
    wanted = zip(mapped(info, numbers), levels, strict=True)
    return [next((level for level in side if level.number == number), None) for number, side in wanted]


def mapped(info: PathwayInfo, numbers: Numbers) -> tuple[int | None, int | None]:
    """Returns the levels of the pair, teacher's and student's, that a pathway of a process is for."""
    return numbers[0].get(info.teacher.number), numbers[1].get(info.student.number)


def differences(own: PathwayInfo, of_pair: PathwayInfo) -> dict[str, list[str]]:
    """Returns what differs between a pathway of a process and one of a pair, in words.

    The keys are `count`, `kind` and `shape` of the levels, `transform`, `distance`, and the `options` of equal ones.
    """
    found = level_differences(own, of_pair.teacher, of_pair.student)
    for name in ("transform", "distance"):
        _compare(found, name, name, getattr(own, name), getattr(of_pair, name))
        if name not in found:
            key = f"{name}_options"
            _compare(found, "options", f"options of the {name}", getattr(own, key), getattr(of_pair, key))
    return found


def level_differences(own: PathwayInfo, teacher: LevelInfo | None, student: LevelInfo | None) -> dict[str, list[str]]:
    """Returns what `differences` does, of the levels alone; there is nothing to say of a side without a level."""
    found: dict[str, list[str]] = {}
    for side, one, other in (("teacher", own.teacher, teacher), ("student", own.student, student)):
        if other is not None:
            _compare(found, "count", f"{side} levels", one.count, other.count)
            _compare(found, "kind", f"kind of the {side}'s level", one.kind, other.kind)
            _compare(found, "shape", f"{side}'s level", _sizes(one.shape), _sizes(other.shape))
    return found


def _compare(found: dict[str, list[str]], key: str, what: str, before: object, after: object) -> None:
    if before != after:
        found.setdefault(key, []).append(f"{what} {before} in the process, {after} in the pair")


def _sizes(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))
