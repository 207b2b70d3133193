"""Two more pictures of processes: a column per process with a panel per pathway, and heat maps of all over time."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np

from distpro_cli.process.schedule import rows_at
from distpro_cli.report.curves import COLOUR_MAP, COLOURS, Named, curves, highest, pathway_ids, quantity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMN = 2.3  # inches
_CHARACTERS = 30  # of a label on one line of a column
_POINTS = 240  # of a heat map over time


def draw_columns(processes: Named, *, normalized: bool) -> Figure:
    """Returns a column of panels per process, a row per pathway; all axes are shared."""
    from matplotlib.figure import Figure

    ids = pathway_ids(processes)
    size = (0.6 + _margin(ids) + _COLUMN * len(processes), 1.0 + 0.48 * len(ids))
    figure = Figure(figsize=size, layout="constrained")
    figure.get_layout_engine().set(h_pad=0.03, hspace=0.0, w_pad=0.04)  # type: ignore[union-attr,call-arg]
    panels = figure.subplots(len(ids), len(processes), sharex=True, sharey=True, squeeze=False)
    for column, (label, process) in enumerate(processes):
        lines = dict(zip((info.id for info in process.pathways), curves(process, normalized=normalized).T, strict=True))
        for row, name in enumerate(ids):
            axes: Axes = panels[row][column]
            if name in lines:
                axes.plot(process.progress, lines[name], color=COLOURS[0], linewidth=1.2)
                axes.fill_between(process.progress, lines[name], color=COLOURS[0], alpha=0.16, linewidth=0)
            else:
                axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", va="center", color="#777777")
            if column == 0:
                axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8, color="#333333")
        panels[0][column].set_title(_wrapped(label), fontsize=9, color="#333333")
        panels[-1][column].set_xlabel("training progress", fontsize=7, color="#555555")
    first = panels[0][0]
    first.set_xlim(0, 1)
    first.set_ylim(0, 1.08 * highest(processes, normalized=normalized))
    first.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    first.locator_params(axis="y", nbins=2)
    figure.supylabel(quantity(processes, normalized=normalized), fontsize=9)
    return figure


def draw_heat_maps(processes: Named, *, normalized: bool) -> Figure:
    """Returns a map per process: pathways down, progress across, the lighter the more weight; one scale of colours."""
    from matplotlib.figure import Figure

    most = max(len(process.pathways) for _, process in processes)
    widest = max(_margin(pathway_ids([one])) for one in processes)
    size = (1.2 + (widest + _COLUMN) * len(processes), 1.3 + max(0.21 * most, 1.0))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(processes), squeeze=False)[0]
    top = highest(processes, normalized=normalized)
    for axes, (label, process) in zip(panels, processes, strict=True):
        u = (np.arange(_POINTS) + 0.5) / _POINTS
        map_ku = rows_at(process.progress, curves(process, normalized=normalized), u).T
        extent = (0.0, 1.0, len(map_ku) - 0.5, -0.5)
        drawn = axes.imshow(
            map_ku, aspect="auto", extent=extent, cmap=COLOUR_MAP, vmin=0, vmax=top, interpolation="nearest"
        )
        axes.set_yticks(range(len(map_ku)), pathway_ids([(label, process)]), fontsize=7)
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axes.grid(visible=False)
        axes.set_title(_wrapped(label), fontsize=9, color="#333333")
        axes.set_xlabel("training progress", fontsize=7, color="#555555")
    bar = figure.colorbar(drawn, ax=list(panels), pad=0.02, aspect=30)
    bar.set_label(quantity(processes, normalized=normalized), fontsize=8)
    bar.outline.set_linewidth(0.5)
    return figure


def _wrapped(label: str) -> str:
    return textwrap.fill(label, _CHARACTERS, break_on_hyphens=False)


def _margin(ids: list[str]) -> float:
    """Returns how many inches the longest of the ids takes."""
    return 0.2 + 0.062 * max(map(len, ids))
