"""Plots of processes: one panel a connection, the same bytes every time, whatever lies over what."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from distpro_cli.errors import DistproError
from distpro_cli.report import plots
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
