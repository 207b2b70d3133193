"""Plots of processes: one panel a connection, the same bytes every time, whatever lies over what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from distpro_cli.errors import DistproError
from distpro_cli.process.process import Process
from distpro_cli.report import curves, plots
from distpro_cli.report.plot_columns import draw_columns, draw_heat_maps
from tests.conftest import Run
from tests.process.examples import constant_process, lower_pathways, make_pathway, make_process

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def panels(figure: Figure) -> dict[str, Any]:
    """Returns the panels in which something is drawn, by the id written into them."""
    return {axes.texts[0].get_text(): axes for axes in figure.axes if axes.lines}


def test_teacher_levels_go_down_and_student_levels_across() -> None:
    figure = plots._draw([("p", make_process())])
    drawn = panels(figure)
    assert set(drawn) == {info.id for info in lower_pathways()}
    figure.draw_without_rendering()
    centre = {name: axes.get_position() for name, axes in drawn.items()}
    assert centre["4-1"].y0 < centre["3-1"].y0 and centre["4-3"].x0 > centre["4-2"].x0
    assert drawn["1-1"].get_xlim() == drawn["4-4"].get_xlim() == (0, 1)
    assert drawn["1-1"].get_ylim() == drawn["4-4"].get_ylim()


def test_levels_that_are_joined_once_stand_in_a_row() -> None:
    once = [make_pathway(3, 1), make_pathway(1, 2), make_pathway(2, 3)]
    figure = plots._draw([("p", make_process(pathways=once))])
    figure.draw_without_rendering()
    axes: Any = figure.get_axes()
    assert [one.texts[0].get_text() for one in axes] == ["1-2", "2-3", "3-1"]
    assert all(one.axison for one in axes) and len({one.get_position().y0 for one in axes}) == 1
    assert axes[0].get_title().startswith("teacher 1 ") and "\nstudent 2 " in axes[0].get_title()


def test_the_lines_are_the_weights() -> None:
    process = make_process()
    drawn = panels(plots._draw([("p", process)]))
    for k, info in enumerate(process.pathways):
        (line,) = drawn[info.id].lines
        assert line.get_xdata().tolist() == process.progress.tolist()
        assert line.get_ydata().tolist() == process.weights[:, k].tolist()


def test_groups_and_files_are_told_apart_by_the_legend() -> None:
    second = make_pathway(3, 1, transform="attention", distance="cosine", name="3-1:attention+cosine")
    two_groups = make_process(pathways=[*lower_pathways(), second])
    figure = plots._draw([("p", two_groups)])
    assert len(panels(figure)["3-1"].lines) == 2
    assert [text.get_text() for text in figure.legends[0].texts] == ["conv2, hcl", "attention, cosine"]
    files = plots._draw([("a", make_process()), ("b", make_process(seed=1))])
    assert [text.get_text() for text in files.legends[0].texts] == ["a", "b"]
    lines = panels(files)["3-1"].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 2
    assert lines[0].get_linestyle() != lines[1].get_linestyle()  # for those who see no colour
    assert not plots._draw([("a", make_process())]).legends


@pytest.mark.parametrize("suffix", plots.SUFFIXES)
def test_equal_input_gives_equal_bytes(tmp_path: Path, suffix: str) -> None:
    for name in ("one", "two"):
        plots.plot_processes([("p", make_process(pathways=lower_pathways()[:3]))], tmp_path / f"{name}{suffix}")
    assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()


def test_weights_that_are_all_zero_can_be_drawn(tmp_path: Path) -> None:
    zero = constant_process([make_pathway(4, 2)], 0.0)
    plots.plot_processes([("zero", zero)], tmp_path / "zero.png")


def test_another_suffix_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    with pytest.raises(DistproError, match=r"\.sgv.*allowed: \.png, \.svg, \.pdf.*did you mean '\.svg'"):
        plots.plot_processes([], tmp_path / "plot.sgv")


def all_pathways(count: int) -> Process:
    """A process of count² pathways."""
    return make_process(
        30, pathways=[make_pathway(i, j, count) for i in range(1, count + 1) for j in range(1, count + 1)]
    )


DRAWN: dict[str, Callable[..., Figure]] = {"overlaid": plots._draw, "columns": draw_columns, "heat-map": draw_heat_maps}


@pytest.mark.parametrize(
    ("form", "num_pathways"),
    [("overlaid", 12), ("overlaid", 15), ("overlaid", 25), ("columns", 25), ("heat-map", 15), ("heat-map", 25)],
)
def test_no_two_labels_overlap(form: str, num_pathways: int) -> None:
    if num_pathways == 12:  # in rows, as of two transformers
        process = make_process(30, pathways=[make_pathway(i, i, 12) for i in range(1, 13)])
    else:
        process = make_process(30, pathways=lower_pathways(5)) if num_pathways == 15 else all_pathways(5)
    assert len(process.pathways) == num_pathways
    named = [(f"resnet20-resnet8-schedule-{n}", process) for n in range(2)]
    style: Any = plots._STYLE
    import matplotlib as mpl

    with mpl.rc_context(style):
        figure = DRAWN[form](named, normalized=True)
        figure.draw_without_rendering()
    boxes = [(text.get_text(), text.get_window_extent()) for text in shown_texts(figure)]
    assert len(boxes) > num_pathways
    for (one, first), (other, second) in combinations(boxes, 2):
        across = min(first.x1, second.x1) - max(first.x0, second.x0)
        down = min(first.y1, second.y1) - max(first.y0, second.y0)
        assert across < 1 or down < 1, (one, other)
    for name, box in boxes:
        inside = box.x0 > -2 and box.y0 > -2 and box.x1 < figure.bbox.x1 + 2 and box.y1 < figure.bbox.y1 + 2
        assert inside, name


def shown_texts(figure: Figure) -> list[Any]:
    """Returns all texts that are drawn."""
    from matplotlib.text import Text

    found = [figure._suptitle, figure._supylabel, *(text for legend in figure.legends for text in legend.texts)]  # type: ignore[attr-defined]
    for axes in figure.axes:
        if axes.axison:
            ticks = [
                t for t in axes.get_xticklabels() if axes.get_xlim()[0] <= t.get_position()[0] <= axes.get_xlim()[1]
            ]
            low, high = sorted(axes.get_ylim())
            ticks += [t for t in axes.get_yticklabels() if low <= t.get_position()[1] <= high]
            found += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts, *ticks]
    return [text for text in found if isinstance(text, Text) and text.get_text() and text.get_visible()]


def test_columns_and_heat_maps_show_every_pathway_of_every_process() -> None:
    one, other = make_process(), make_process(pathways=[make_pathway(4, 4), make_pathway(1, 2)], seed=1)
    figure = draw_columns([("one", one), ("other", other)], normalized=False)
    drawn = [axes.lines[0].get_ydata().tolist() for axes in figure.axes if axes.lines]
    assert len(figure.axes) == 2 * 11 and len(drawn) == 12
    assert drawn[0] == one.weights[:, 0].tolist() and other.weights[:, 1].tolist() in drawn
    assert sum(text.get_text() == "none" for axes in figure.axes for text in axes.texts) == 10
    maps = draw_heat_maps([("one", one), ("other", other)], normalized=True)
    tables = [np.asarray(axes.images[0].get_array()) for axes in maps.axes if axes.images]
    assert [len(table) for table in tables] == [10, 2]
    for table in tables:
        np.testing.assert_allclose(table.sum(axis=0), 1, atol=0.01)
    assert [label.get_text() for label in maps.axes[1].get_yticklabels()] == ["4-4", "1-2"]


def test_shares_are_of_the_scaled_weights() -> None:
    process = make_process()
    scale = np.linspace(1, 5, process.weights.size).reshape(process.weights.shape).astype(np.float32)
    share = curves.curves(replace(process, weights=process.weights * scale, scale=scale), normalized=True)
    np.testing.assert_allclose(share, process.weights / process.weights.sum(axis=1, keepdims=True), rtol=1e-5)
    zero = constant_process([make_pathway(4, 2)], 0.0)
    assert (curves.curves(zero, normalized=True) == 0).all()


# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
SEEN = {
    "grey": np.tile([0.2126, 0.7152, 0.0722], (3, 1)),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]]
    ),
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(colour: str, seen: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns a colour in CIE L*a*b*, as it is seen."""
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(seen @ linear, 0, 1) / TO_XYZ.sum(axis=1)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("eye", SEEN)
def test_colours_can_be_told_apart_by_any_eye(eye: str) -> None:
    for one, other in combinations(curves.COLOURS, 2):
        distance = np.linalg.norm(lab(one, SEEN[eye]) - lab(other, SEEN[eye]))
        assert distance > (6 if eye == "grey" else 15), (one, other)


@pytest.mark.parametrize("form", ["columns", "heat-map"])
def test_other_forms_on_the_command_line(distpro: Run, workplace: Path, form: str) -> None:
    from distpro_cli.process.file import save_process

    for seed, name in enumerate("ab"):
        save_process(make_process(seed=seed, pathways=lower_pathways(2)), workplace / f"{name}.safetensors")
    both = ["inspect", "a.safetensors", "b.safetensors"]
    made = [distpro(*both, "--plot", f"{n}.svg", "--form", form, "--normalized").status for n in (1, 2)]
    assert made == [0, 0]
    assert Path("1.svg").read_bytes() == Path("2.svg").read_bytes()


def test_a_form_that_is_none_is_refused(distpro: Run, workplace: Path) -> None:
    wrong = distpro("inspect", "--plot", "p.png", "--form", "heatmap")
    assert wrong.status == 2 and "--form is 'heatmap'; allowed: overlaid, columns, heat-map (did you" in wrong.err
    alone = distpro("inspect", "--normalized")
    assert alone.status == 2 and "give --plot FILE" in alone.err
