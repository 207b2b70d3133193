"""Plots of processes: the weight of every pathway over time, one panel per connection."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distpro_cli.errors import DistproError, nearest
from distpro_cli.files import check_writable, write_atomically
from distpro_cli.process.pathway import LevelInfo, PathwayInfo
from distpro_cli.process.process import Process
from distpro_cli.process.summary import levels
from distpro_cli.report.curves import COLOURS, LINES, Named, curves, highest, quantity
from distpro_cli.report.plot_columns import draw_columns, draw_heat_maps
from distpro_cli.report.terminal import with_reduction

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
OVERLAID, COLUMNS, HEAT_MAP = "overlaid", "columns", "heat-map"
_MOST_IN_A_ROW = 6
_CHARACTERS = 32  # of a title on one line of a panel in a row
FORMS = (OVERLAID, COLUMNS, HEAT_MAP)
_METADATA = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}  # no dates
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "text.parse_math": False,  # a name may hold a $
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9a9a9a",
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8e8e8",
    "grid.linewidth": 0.6,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "svg.hashsalt": "distpro",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
}


def check_plot_path(path: Path, *, force: bool) -> None:
    """Refuses a path with a suffix that cannot be drawn, or one that exists.

    Raises:
        DistproError: with what is allowed.
    """
    if path.suffix.lower() not in SUFFIXES:
        hint = nearest(path.suffix.lower(), SUFFIXES)
        raise DistproError(f"--plot {path}: the suffix is '{path.suffix}'; allowed: {', '.join(SUFFIXES)}{hint}")
    check_writable(path, force=force)


def check_form(form: str) -> None:
    """Refuses a form of picture that there is not.

    Raises:
        DistproError: with what is allowed.
    """
    if form not in FORMS:
        raise DistproError(f"--form is '{form}'; allowed: {', '.join(FORMS)}{nearest(form, FORMS)}")


def plot_processes(
    processes: Sequence[tuple[str, Process]],
    path: Path,
    *,
    force: bool = False,
    form: str = OVERLAID,
    normalized: bool = False,
) -> None:
    """Draws the weights over time. Equal input gives equal bytes.

    Overlaid: a panel per connection, teacher levels down, student levels across, shared axes; where no level is joined
    twice, the panels stand in one row. One process: one colour per transform and distance. Several: one colour per
    process, one line style per transform and distance, or per process where there is only one.

    Args:
        processes: Label and process, at least one.
        path: `.png`, `.svg` or `.pdf`.
        force: Whether a file that is there may be replaced.
        form: `overlaid`; `columns`: a column per process with a panel per pathway; `heat-map`: a map per process.
        normalized: Whether at each moment the weights are drawn as shares of their sum.

    Raises:
        DistproError: the suffix is another, the file exists, or it cannot be written.
    """
    check_form(form)
    draw = {OVERLAID: _draw, COLUMNS: draw_columns, HEAT_MAP: draw_heat_maps}[form]
    write_figure(lambda: draw(processes, normalized=normalized), path, force=force)


def write_figure(draw: Callable[[], Figure], path: Path, *, force: bool) -> None:
    """Draws in the style of all plots and writes the file; equal figures give equal bytes.

    Raises:
        DistproError: the suffix is another, the file exists, or it cannot be written.
    """
    check_plot_path(path, force=force)
    import matplotlib as mpl

    kind = path.suffix.lower()[1:]
    content = io.BytesIO()
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)  # type: ignore[arg-type]
        draw().savefig(content, format=kind, dpi=160, metadata=_METADATA[kind], facecolor="white")
    write_atomically(path, content.getbuffer())


def _draw(processes: Named, *, normalized: bool = False) -> Figure:
    from matplotlib.figure import Figure

    teacher, student = (levels((process for _, process in processes), side) for side in ("teacher", "student"))
    used = sorted({pathway.connection for _, process in processes for pathway in process.pathways})
    in_a_row = len(used) == len(teacher) == len(student)
    columns = min(len(student), _MOST_IN_A_ROW) if in_a_row else len(student)
    rows = -(-len(used) // columns) if in_a_row else len(teacher)
    width = min(2.1, max(0.95, 12 / columns))
    height = 1.2 + (0.68 * width + (0.3 if in_a_row else 0)) * rows
    figure = Figure(figsize=(1.3 + width * columns, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.02)  # type: ignore[union-attr,call-arg]
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    if in_a_row:
        panels = dict(zip(used, axes.flat, strict=False))
        for free in axes.flat[len(used) :]:
            free.set_axis_off()
    else:
        panels = {
            (row.number, column.number): axes[i][j] for i, row in enumerate(teacher) for j, column in enumerate(student)
        }
    handles = _draw_lines(processes, panels, normalized=normalized)
    axes[0][0].set_xlim(0, 1)
    axes[0][0].set_ylim(0, 1.08 * highest(processes, normalized=normalized))
    axes[0][0].set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes[0][0].locator_params(axis="y", nbins=4)
    if in_a_row:
        _label_row(panels, teacher, student)
    else:
        _label(panels, set(used), teacher, student)
    figure.suptitle(_title(processes), fontsize=10, fontweight="bold")
    figure.supylabel(quantity(processes, normalized=normalized), fontsize=9)
    if len(handles) > 1:
        columns = min(len(handles), columns, 4)
        style: dict[str, Any] = {"loc": "outside lower center", "frameon": False, "fontsize": 8}
        figure.legend(handles.values(), handles.keys(), ncols=columns, **style)
    return figure


def _draw_lines(processes: Named, panels: dict[tuple[int, int], Axes], *, normalized: bool) -> dict[str, Any]:
    """Draws every pathway into its panel; returns the legend's lines by name."""
    kinds = list(dict.fromkeys(_kind(pathway) for _, process in processes for pathway in process.pathways))
    several = len(processes) > 1
    alone = not several and len(kinds) == 1
    handles: dict[str, Any] = {}
    for i, (label, process) in enumerate(processes):
        weight_tk = curves(process, normalized=normalized)
        for k, pathway in enumerate(process.pathways):
            kind = kinds.index(_kind(pathway))
            colour = COLOURS[(i if several else kind) % len(COLOURS)]
            style = kind if not several or len(kinds) > 1 else i
            name = (f"{label}, {_kind(pathway)}" if len(kinds) > 1 else label) if several else _kind(pathway)
            axes, weights_t = panels[pathway.connection], weight_tk[:, k]
            (drawn,) = axes.plot(process.progress, weights_t, LINES[style % len(LINES)], color=colour, linewidth=1.3)
            if alone:
                axes.fill_between(process.progress, weights_t, color=colour, alpha=0.16, linewidth=0)
            handles.setdefault(name, drawn)
    return handles


def _label(
    panels: dict[tuple[int, int], Axes],
    used: set[tuple[int, int]],
    teacher: Sequence[LevelInfo],
    student: Sequence[LevelInfo],
) -> None:
    """Names panels, rows and columns; hides the panels without a pathway."""
    for connection, axes in panels.items():
        if connection not in used:
            axes.set_axis_off()
            continue
        i, j = connection
        _name_panel(axes, f"{i}-{j}")
        first_in_row = min(column for row, column in used if row == i) == j
        last_in_column = max(row for row, column in used if column == j) == i
        axes.tick_params(labelleft=first_in_row, labelbottom=last_in_column)
        if last_in_column:
            _label_progress(axes)
    for level in teacher:
        first = min(column for row, column in used if row == level.number)
        panels[level.number, first].set_ylabel(f"teacher {_level(level)}", fontsize=8, color="#333333")
    for level in student:
        first = min(row for row, column in used if column == level.number)
        panels[first, level.number].set_title(f"student {_level(level)}", fontsize=8, color="#333333")


def _label_row(panels: dict[tuple[int, int], Axes], teacher: Sequence[LevelInfo], student: Sequence[LevelInfo]) -> None:
    """Names panels that stand in one row by both levels."""
    names = [{level.number: _level(level) for level in side} for side in (teacher, student)]
    for (i, j), axes in panels.items():
        _name_panel(axes, f"{i}-{j}")
        title = [f"teacher {names[0][i]}", f"student {names[1][j]}"]
        lines = [textwrap.fill(line.replace("\n", " "), _CHARACTERS) for line in title]
        axes.set_title("\n".join(lines), fontsize=8, color="#333333")
        axes.tick_params(labelbottom=True)
        _label_progress(axes)


def _name_panel(axes: Axes, name: str) -> None:
    behind = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1.0}
    look: dict[str, Any] = {"va": "top", "fontweight": "bold", "color": "#333333", "bbox": behind}
    axes.text(0.05, 0.93, name, transform=axes.transAxes, **look)


def _label_progress(axes: Axes) -> None:
    # Not one label for the figure: the legend would cover it.
    axes.set_xlabel("training progress", fontsize=7, color="#555555")
    ends = axes.get_xticklabels()
    ends[0].set_horizontalalignment("left")
    ends[-1].set_horizontalalignment("right")


def _kind(pathway: PathwayInfo) -> str:
    return f"{pathway.transform}, {pathway.distance}"


def _level(level: LevelInfo) -> str:
    return with_reduction(f"{level.number}\n{level.name}", level.reduction)


def _title(processes: Sequence[tuple[str, Process]]) -> str:
    if len(processes) > 1:
        return "Weights over time"
    label, process = processes[0]
    kinds = {_kind(pathway) for pathway in process.pathways}
    return f"{label}: weights over time" + (f" ({kinds.pop()})" if len(kinds) == 1 else "")
