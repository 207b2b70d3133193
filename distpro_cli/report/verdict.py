"""Which method of a comparison to use, by how much it is ahead, and how sure that is; plain values, one sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distpro_cli.metric import Metric
from distpro_cli.report.comparison import STUDENT
from distpro_cli.report.statistics import paired_difference

FEW_SEEDS = 5  # below, intervals are wide
ERROR_RATE = 0.05  # of all comparisons with the best together
BEYOND, WITHIN, ONE_SEED = "beyond chance", "within chance", "one seed: no telling how sure"

Row = Mapping[str, Any]  # of a method, as `summarize_method` returns it


@dataclass(frozen=True)
class Choice:
    """What a comparison recommends.

    Attributes:
        method: To use.
        over: What it is compared with: of the best one, the next best (of those within chance, if there are any); of
            a cheaper one within chance of the best, that best one; None where nothing else was compared.
        alone: The student alone, where it was compared and is neither of the two.
        metric: What decides.
        num_compared: Methods that differ, M.
        within: Names of the methods that are within chance of the best, the best among them; empty for one seed.
    """

    method: Row
    over: Row | None
    alone: Row | None
    metric: Metric
    num_compared: int
    within: tuple[str, ...]

    def difference(self, other: Row) -> dict[str, Any]:
        """Returns the chosen method minus another, as `paired_difference` does, at the level of `choose`."""
        return _difference(self.method, other, self.metric, self.num_compared)

    @property
    def sure(self) -> str | None:
        """How sure the difference to `over` is, in words."""
        return None if self.over is None else _sure(self.difference(self.over))

    def values(self, formula: str) -> dict[str, Any]:
        """Returns what `--json` prints.

        Args:
            formula: Of the loss that the method's runs minimised.

        Returns:
            `method`, `over`, `difference` (method - over, in the metric's unit), `interval` (`[low, high]` at 95 % over
            all `comparisons`; None for one seed), `sure`, `over_student` (`difference` and `interval` to the student
            alone, or None), `within_chance`, `comparisons`, `formula`, `sentence`.
        """
        found = None if self.over is None else self.difference(self.over)
        alone = self.over if self.over is not None and self.over["name"] == STUDENT else self.alone
        return {
            "method": self.method["name"],
            "over": None if self.over is None else self.over["name"],
            "difference": None if found is None else found["mean"],
            "interval": None if found is None else _interval(found),
            "sure": self.sure,
            "over_student": None if alone is None else _plain(self.difference(alone)),
            "within_chance": list(self.within),
            "comparisons": self.num_compared - 1,
            "formula": formula,
            "sentence": self.sentence(formula),
        }

    def sentence(self, formula: str) -> str:
        """Returns the choice in one sentence."""
        name, figure = self.method["name"], self.metric.with_unit(_mean(self.method, self.metric))
        use = "train the student alone" if name == STUDENT else f"use {name}"
        parts = [f"For this pair {use}: {self.metric.label} {figure}, {self._compared()}"]
        if self.alone is not None:
            difference = self.difference(self.alone)
            sure = "" if difference["low"] is None else f", {_sure(difference)} ({self._interval_text(difference)})"
            parts.append(f"it is {self._by(difference)} the student alone{sure}")
        return f"{'; '.join(parts)}; its loss is {formula}."

    def _compared(self) -> str:
        if self.over is None:
            return "with nothing else to compare it with"
        difference, other = self.difference(self.over), self.over["name"]
        if difference["low"] is None:
            return f"{self._by(difference)} {other} in the only seed, so there is no telling how sure that is"
        seeds = f"{self._interval_text(difference)} over {len(difference['values'])} seeds"
        if self.num_compared > 2:
            seeds += f", {self.num_compared - 1} comparisons allowed for"
        text = f"{self._by(difference)} {other}, {self.sure} ({seeds})"
        if self.sure != WITHIN:
            return text
        few = len(difference["values"]) < FEW_SEEDS
        return f"{text}{self._cheaper(other)}{', and more seeds may tell them apart' if few else ''}"

    def _cheaper(self, other: str) -> str:
        assert self.over is not None
        own, theirs = total_cost(self.method), total_cost(self.over)
        if own is None or (theirs is not None and own >= theirs):
            return ""
        if theirs is None:
            return f", and costs {own:.4g} device seconds, while the search behind {other} took an unknown time"
        return f", and costs less than {other} ({own:.4g} against {theirs:.4g} device seconds, search included)"

    def _by(self, difference: Mapping[str, Any]) -> str:
        """Returns such as `0.40 points ahead of`."""
        if difference["mean"] == 0:
            return "level with"
        unit = "points" if self.metric.unit == "%" else self.metric.unit
        where = "ahead of" if self.metric.gain(difference["mean"], 0.0) > 0 else "behind"
        return " ".join(filter(None, [self.metric.text(abs(difference["mean"])), unit, where]))

    def _interval_text(self, difference: Mapping[str, Any]) -> str:
        """Returns the interval in the direction of a gain: above 0 is ahead."""
        low, high = sorted(self.metric.gain(difference[end], 0.0) for end in ("low", "high"))
        return f"95 % interval {self.metric.text(low, sign=True)} to {self.metric.text(high, sign=True)}"


def choose(rows: Sequence[Row], metric: Metric) -> Choice | None:
    """Returns which method to use; None where no method came to its end.

    The method of the best mean last figure is compared with every other, seed by seed. Those whose interval holds 0 are
    within chance of it, and the cheapest of them (device seconds of a run and of the search of its process) is
    recommended: the best mean of several equal methods is that of the luckiest. The student alone is recommended
    wherever it is among them. With one seed there is no interval, and the best figure decides.

    The best is not known beforehand, so an interval that a single comparison deserves would be too narrow. All M - 1
    intervals get the level 1 - 0.05 / (M - 1) (Bonferroni): the true best then loses none of its M - 1 comparisons
    with a probability of 95 % at least, so it is among those within chance, and a method that alone is left is the
    best (comparisons with the best, Hsu 1996, chapter 4). Methods of the same runs count as one.

    Args:
        rows: As `summarize_method` returns them, of the same seeds.
        metric: What decides, by its last figure.
    """
    candidates = _distinct([row for row in rows if math.isfinite(_mean(row, metric))])
    if not candidates:
        return None
    alone = next((row for row in candidates if row["name"] == STUDENT), None)
    best = max(candidates, key=lambda row: (metric.gain(_mean(row, metric), 0.0), row is alone, -_cost(row)))
    others = [row for row in candidates if row is not best]
    within = [best, *(row for row in others if _is_within(best, row, metric, candidates))]
    method = min(within, key=lambda row: (row is not alone, _cost(row)))
    rivals = [row for row in within if row is not best] or others
    second = max(rivals, key=lambda row: metric.gain(_mean(row, metric), 0.0), default=None)
    names = tuple(row["name"] for row in within) if len(_values(best, metric)) > 1 else ()
    over = second if method is best else best
    third = None if alone is method or alone is over else alone
    return Choice(method, over, third, metric, len(candidates), names)


def total_cost(row: Row) -> float | None:
    """Returns device seconds of a run and of the search behind it; None where the search's are not known."""
    search: float | None = row["search_device_seconds"]
    return None if search is None else float(row["device_seconds"]) + search


def _cost(row: Row) -> float:
    cost = total_cost(row)
    return math.inf if cost is None else cost


def _mean(row: Row, metric: Metric) -> float:
    return float(row[f"{metric.name}_last"]["mean"])


def _values(row: Row, metric: Metric) -> list[float]:
    values: list[float] = row[f"{metric.name}_last"]["values"]
    return values


def _difference(row: Row, other: Row, metric: Metric, num_compared: int) -> dict[str, Any]:
    return paired_difference(_values(row, metric), _values(other, metric), 1 - ERROR_RATE / max(1, num_compared - 1))


def _is_within(best: Row, row: Row, metric: Metric, candidates: Sequence[Row]) -> bool:
    difference = _difference(best, row, metric, len(candidates))
    return difference["low"] is not None and _sure(difference) == WITHIN


def _sure(difference: Mapping[str, Any]) -> str:
    if difference["low"] is None:
        return ONE_SEED
    return WITHIN if difference["low"] <= 0 <= difference["high"] else BEYOND


def _interval(difference: Mapping[str, Any]) -> list[float] | None:
    return None if difference["low"] is None else [difference["low"], difference["high"]]


def _plain(difference: Mapping[str, Any]) -> dict[str, Any]:
    return {"difference": difference["mean"], "interval": _interval(difference)}


def _distinct(rows: Sequence[Row]) -> list[Row]:
    """Returns the methods without those of the same runs; the student alone, else the cheapest of them, stays."""
    kept: dict[tuple[str, ...], Row] = {}
    for row in sorted(rows, key=lambda row: (row["name"] != STUDENT, _cost(row))):
        kept.setdefault(tuple(row["run_dirs"]), row)
    return [row for row in rows if any(row is one for one in kept.values())]
