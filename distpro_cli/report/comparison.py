"""What a comparison found: plain values, a table for the terminal, the same in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distpro_cli.report.statistics import paired_difference, spread
from distpro_cli.report.terminal import add_columns, make_console, make_table

STUDENT = "student"
HEADS = ("method", "last", "best", "- student", "left %", "wall s", "device s", "search s")
WIDE = 120  # columns where nobody's terminal sets a limit


def summarize_method(
    name: str,
    summaries: Sequence[Mapping[str, Any]],
    baseline: Sequence[float] | None,
    search: tuple[float | None, bool],
) -> dict[str, Any]:
    """Returns what is known of one method.

    Args:
        name: Of the method.
        summaries: Of its runs, one a seed.
        baseline: Last accuracy of the student alone under the same seeds; None if that was not run.
        search: Seconds that finding its process took, None if unknown, and whether that is an estimate.

    Returns:
        `name`, `top1_last` and `top1_best` in percent (`mean`, `std`, `values`), `difference` (`mean`, `low`,
        `high`, `values`, or None), `seconds` and `device_seconds` (means over the runs, with all values beside
        them), `remaining_percent`, `pathways_used`, `search_seconds`, `search_estimated`.
    """
    last = [summary["student"]["top1_last"] for summary in summaries]
    seconds = spread([summary["seconds"] for summary in summaries])
    device = spread([summary["device_seconds"] for summary in summaries])
    return {
        "name": name,
        "top1_last": spread(last),
        "top1_best": spread([summary["student"]["top1_best"] for summary in summaries]),
        "difference": None if baseline is None or name == STUDENT else paired_difference(last, baseline),
        "seconds": seconds["mean"],
        "seconds_values": seconds["values"],
        "device_seconds": device["mean"],
        "device_seconds_values": device["values"],
        "remaining_percent": summaries[0]["remaining_percent"],
        "pathways_used": summaries[0]["pathways_used"],
        "search_seconds": search[0],
        "search_estimated": search[1],
        "run_dirs": [summary["run_dir"] for summary in summaries],
    }


def print_comparison(summary: Mapping[str, Any]) -> None:
    """Prints a comparison to stdout: the teacher, a line a method, what did worse than the student alone."""
    console = make_console()
    console.print(_heading(summary))
    if not console.is_terminal:
        console.width = WIDE
    table = make_table()
    table.add_column(HEADS[0], min_width=9)
    add_columns(table, *(head.replace(" ", "\n") for head in HEADS[1:]), numbers=True)
    for method in summary["methods"]:
        table.add_row(*_cells(method))
    console.print()
    console.print(table)
    console.print()
    console.print(_legend(summary), soft_wrap=True)
    for line in worse_lines(summary):
        console.print(line, soft_wrap=True)


def markdown(summary: Mapping[str, Any]) -> str:
    """Returns a comparison as a Markdown table, ready to paste."""
    rows = [HEADS, ("---", *("---:" for _ in HEADS[1:])), *(_cells(method) for method in summary["methods"])]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    lines = "".join(f"\n{line}\n" for line in worse_lines(summary))
    return f"{_heading(summary)}\n\n{table}\n\n{_legend(summary)}\n{lines}"


def worse_lines(summary: Mapping[str, Any]) -> list[str]:
    """Returns in words which methods diverged, which did worse than the student alone, and what is known of why."""
    lines = [f"left out, for it diverged: {one['message']}" for one in summary["diverged"]]
    for worse in summary["worse"]:
        sure = "" if worse["certain"] is None else ", beyond chance" if worse["certain"] else ", within chance"
        text = f"{worse['name']} did worse than the student alone ({worse['difference']:+.2f} points{sure})"
        lines.append(f"{text}: {'; '.join(worse['reasons'])}")
    return lines


def _heading(summary: Mapping[str, Any]) -> str:
    teacher = summary["teacher"]
    shown = "not needed by any of these" if teacher["top1"] is None else f"top-1 {teacher['top1']:.2f} %"
    return f"teacher {teacher['name']}: {shown}; student {summary['student']}"


def _legend(summary: Mapping[str, Any]) -> str:
    seeds = ", ".join(map(str, summary["seeds"]))
    text = f"top-1 in percent after {summary['epochs']} epochs, mean ± std over "
    text += f"seeds {seeds}; " if len(summary["seeds"]) > 1 else f"seed {seeds} alone; "
    text += "- student: mean of the differences seed by seed ± 95 % t interval; left: entries of the process in "
    text += f"percent; times: mean of a run on {summary['device']}"
    device = "CPU time of all threads" if summary["device"].startswith("cpu") else "the time the device computes"
    text += f", device s is {device}; search s: once for all runs"
    return text + (", ≈ an estimate" if any(method["search_estimated"] for method in summary["methods"]) else "")


def _cells(method: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        method["name"],
        _spread_text(method["top1_last"]),
        _spread_text(method["top1_best"]),
        _difference_text(method["difference"]),
        f"{method['remaining_percent']:.0f}",
        _seconds_text(method["seconds"]),
        _seconds_text(method["device_seconds"]),
        _search_text(method),
    )


def _spread_text(values: Mapping[str, Any]) -> str:
    deviation = f" ±{values['std']:.2f}" if len(values["values"]) > 1 else ""
    return f"{values['mean']:.2f}{deviation}"


def _difference_text(difference: Mapping[str, Any] | None) -> str:
    if difference is None:
        return ""
    half = "" if difference["low"] is None else f" ±{(difference['high'] - difference['low']) / 2:.2f}"
    return f"{difference['mean']:+.2f}{half}"


def _search_text(method: Mapping[str, Any]) -> str:
    seconds = method["search_seconds"]
    if seconds is None:
        return "unknown"
    return f"{'≈' if method['search_estimated'] else ''}{_seconds_text(seconds)}" if seconds else ""


def _seconds_text(seconds: float) -> str:
    return f"{seconds:.1f}" if seconds < 10 else f"{seconds:.0f}"
