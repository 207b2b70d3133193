"""Plot of a comparison: the metric over cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distpro_cli.metric import Metric
from distpro_cli.report.comparison import label_with_unit
from distpro_cli.report.curves import COLOURS
from distpro_cli.report.plots import write_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_comparison(summary: Mapping[str, Any], path: Path, *, force: bool = False) -> None:
    """Draws the last figure over the seconds of a run, with its deviation over seeds, one point per method.

    A hollow point shows a method's cost with its search, where that is known.

    Args:
        summary: As `distpro compare --json` prints it.
        path: `.png`, `.svg` or `.pdf`.
        force: Whether a file that is there may be replaced.

    Raises:
        DistproError: the suffix is another, the file exists, or it cannot be written.
    """
    write_figure(lambda: _draw(summary), path, force=force)


def _draw(summary: Mapping[str, Any]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    metric = Metric(**summary["metric"])
    for i, method in enumerate(summary["methods"]):
        colour, last = COLOURS[i % len(COLOURS)], method[f"{metric.name}_last"]
        marker = "o" if i < len(COLOURS) else "s"
        style: dict[str, Any] = {"color": colour, "markersize": 5, "linewidth": 1}
        deviation = last["std"] if len(last["values"]) > 1 else None
        axes.errorbar(method["seconds"], last["mean"], deviation, fmt=marker, capsize=3, label=method["name"], **style)
        if method["search_seconds"]:
            whole = method["seconds"] + method["search_seconds"]
            axes.plot([method["seconds"], whole], [last["mean"]] * 2, ":", **style)
            axes.plot(whole, last["mean"], marker, fillstyle="none", **style)
    teacher = summary["teacher"]
    level = teacher[metric.name]
    if level is not None:
        axes.axhline(level, color="#9a9a9a", linewidth=0.8, linestyle="--")
        corner: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "bottom"}
        axes.text(0.995, level, f"teacher {teacher['name']}", color="#6b6b6b", **corner)
    axes.set_xlim(left=0)
    axes.set_xlabel("wall seconds of a run (hollow: with its search)")
    axes.set_ylabel(f"{label_with_unit(metric)} after {summary['epochs']} epochs")
    axes.set_title(f"{teacher['name']} → {summary['student']}", fontsize=10, fontweight="bold")
    if summary["methods"]:
        figure.legend(loc="outside right upper", frameon=False)
    return figure
