"""What a task is judged by, as plain values that tables, plots and summaries read; no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """The figure by which a network is judged.

    Attributes:
        name: Key of the figure in evaluations, metrics.jsonl and summaries (`<name>_last`, `<name>_best`).
        label: As tables and plots write it.
        unit: `%`, or a physical unit; empty without one.
        higher_is_better: Whether a larger figure is the better one.
    """

    name: str
    label: str
    unit: str = ""
    higher_is_better: bool = True

    def text(self, value: float, *, sign: bool = False) -> str:
        """Writes a figure or, with `sign`, a difference of two, without its unit."""
        plus = "+" if sign else ""
        return f"{value:{plus}.2f}" if self.unit == "%" else f"{value:{plus}.4g}"

    def with_unit(self, value: float) -> str:
        """Writes a figure with its unit: `95.56 %`."""
        return f"{self.text(value)} {self.unit}".rstrip()

    def best(self, values: Sequence[float]) -> float:
        """Returns the best of `values`, at least one."""
        return max(values) if self.higher_is_better else min(values)

    def gain(self, value: float, baseline: float) -> float:
        """Returns how much better `value` is than `baseline`; negative where it is worse."""
        return value - baseline if self.higher_is_better else baseline - value

    def last_and_best(self, history: Sequence[float]) -> dict[str, float]:
        """Returns the figure after the last epoch, and that of the best, under the keys of a summary."""
        return {f"{self.name}_last": history[-1], f"{self.name}_best": self.best(history)}

    def fixed(self, value: float | None) -> dict[str, float | None]:
        """Returns a figure that does not move under the keys of a summary; None where it is not known."""
        if value is None:
            return {self.name: None}
        return {self.name: value, f"{self.name}_last": value, f"{self.name}_best": value}
