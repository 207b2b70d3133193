"""What a comparison found: plain values, a table for the terminal, the same in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distpro_cli.metric import Metric
from distpro_cli.report.statistics import paired_difference, spread
from distpro_cli.report.terminal import add_columns, encodable, make_console, make_table, print_table

STUDENT = "student"
HEADS = ("method", "last", "best", "Δ student", "left %", "wall s", "device s", "search s")
WIDE = 120  # columns where no terminal sets a limit


@dataclass(frozen=True)
class SearchCost:
    """What finding a process took: wall seconds and device seconds, None if unknown; whether that is an estimate."""

    seconds: float | None
    device_seconds: float | None
    estimated: bool = False


NO_SEARCH = SearchCost(0.0, 0.0)
UNKNOWN_COST = SearchCost(None, None)


def summarize_method(
    name: str,
    summaries: Sequence[Mapping[str, Any]],
    baseline: Sequence[float] | None,
    search: SearchCost,
    metric: Metric,
) -> dict[str, Any]:
    """Returns what is known of one method.

    Args:
        name: Of the method.
        summaries: Of its runs, one per seed.
        baseline: Last figure of the student alone under the same seeds; None if that was not run.
        search: What finding its process took.
        metric: What the student is judged by.

    Returns:
        `name`, `<metric>_last` and `<metric>_best` (`mean`, `std`, `values`), `difference` (`mean`, `low`,
        `high`, `values`, or None), `seconds` and `device_seconds` (means over the runs, with all values beside
        them), `remaining_percent`, `pathways_used`, `search_seconds`, `search_device_seconds`,
        `search_estimated`, `run_dirs`.
    """
    last, best = ([summary["student"][f"{metric.name}_{end}"] for summary in summaries] for end in ("last", "best"))
    seconds = spread([summary["seconds"] for summary in summaries])
    device = spread([summary["device_seconds"] for summary in summaries])
    return {
        "name": name,
        f"{metric.name}_last": spread(last),
        f"{metric.name}_best": spread(best),
        "difference": None if baseline is None or name == STUDENT else paired_difference(last, baseline),
        "seconds": seconds["mean"],
        "seconds_values": seconds["values"],
        "device_seconds": device["mean"],
        "device_seconds_values": device["values"],
        "remaining_percent": summaries[0]["remaining_percent"],
        "pathways_used": summaries[0]["pathways_used"],
        "search_seconds": search.seconds,
        "search_device_seconds": search.device_seconds,
        "search_estimated": search.estimated,
        "run_dirs": [summary["run_dir"] for summary in summaries],
    }


def print_comparison(summary: Mapping[str, Any]) -> None:
    """Prints a comparison to stdout: the teacher, one line per method, what did worse than the student alone,
    where the files are and, last, the verdict.
    """
    console = make_console()
    metric = Metric(**summary["metric"])
    console.print(encodable(_heading(summary, metric), console.encoding))
    if not console.is_terminal:
        console.width = WIDE
    table = make_table()
    table.add_column(HEADS[0], min_width=9)
    add_columns(table, *(encodable(head, console.encoding).replace(" ", "\n") for head in HEADS[1:]), numbers=True)
    for method in summary["methods"]:
        table.add_row(*(encodable(cell, console.encoding) for cell in _cells(method, metric)))
    print_table(console, table)
    files = f"table, plot and summary: {summary['run_dir']}"
    for line in [_legend(summary, metric), *worse_lines(summary), files, summary["verdict"]["sentence"]]:
        console.print(encodable(line, console.encoding), soft_wrap=True)


def markdown(summary: Mapping[str, Any]) -> str:
    """Returns a comparison as a Markdown table, ready to paste."""
    metric = Metric(**summary["metric"])
    rows = [HEADS, ("---", *("---:" for _ in HEADS[1:])), *(_cells(method, metric) for method in summary["methods"])]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    lines = "".join(f"\n{line}\n" for line in [*worse_lines(summary), summary["verdict"]["sentence"]])
    return f"{_heading(summary, metric)}\n\n{table}\n\n{_legend(summary, metric)}\n{lines}"


def worse_lines(summary: Mapping[str, Any]) -> list[str]:
    """Returns in words which methods diverged, which did worse than the student alone, and the known reasons."""
    metric = Metric(**summary["metric"])
    unit = "points" if metric.unit == "%" else metric.unit
    lines = [f"omitted: diverged: {one['message']}" for one in summary["diverged"]]
    for worse in summary["worse"]:
        difference = f"{metric.text(worse['difference'], sign=True)} {unit}".rstrip()
        sure = "" if worse["certain"] is None else ", beyond chance" if worse["certain"] else ", within chance"
        text = f"{worse['name']} did worse than the student alone ({difference}{sure})"
        lines.append(f"{text}: {'; '.join(worse['reasons'])}")
    return lines


def label_with_unit(metric: Metric) -> str:
    """Returns what a table or an axis shows: `accuracy in %`."""
    return f"{metric.label} in {metric.unit}" if metric.unit else metric.label


def _heading(summary: Mapping[str, Any], metric: Metric) -> str:
    teacher = summary["teacher"]
    figure = teacher[metric.name]
    unknown = "not needed by any of these" if teacher.get("head", True) else "without a head"
    shown = unknown if figure is None else f"{metric.label} {metric.with_unit(figure)}"
    return f"teacher {teacher['name']}: {shown}; student {summary['student']}"


def _legend(summary: Mapping[str, Any], metric: Metric) -> str:
    seeds = ", ".join(map(str, summary["seeds"]))
    text = f"{label_with_unit(metric)}{'' if metric.higher_is_better else ' (lower is better)'} "
    text += f"after {summary['epochs']} epochs, mean ± std over "
    text += f"seeds {seeds}; " if len(summary["seeds"]) > 1 else f"seed {seeds} alone; "
    text += "Δ student: mean of the differences to the student alone, seed by seed, ± 95 % t interval; left: entries "
    text += f"of the process in percent; times: mean of a run on {summary['device']}"
    device = "CPU time of all threads" if summary["device"].startswith("cpu") else "the time the device computes"
    text += f", device s is {device}; search s: once for all runs"
    return text + (", ≈ an estimate" if any(method["search_estimated"] for method in summary["methods"]) else "")


def _cells(method: Mapping[str, Any], metric: Metric) -> tuple[str, ...]:
    return (
        method["name"],
        _spread_text(method[f"{metric.name}_last"], metric),
        _spread_text(method[f"{metric.name}_best"], metric),
        _difference_text(method["difference"], metric),
        f"{method['remaining_percent']:.0f}",
        _seconds_text(method["seconds"]),
        _seconds_text(method["device_seconds"]),
        _search_text(method),
    )


def _spread_text(values: Mapping[str, Any], metric: Metric) -> str:
    deviation = f" ±{metric.text(values['std'])}" if len(values["values"]) > 1 else ""
    return f"{metric.text(values['mean'])}{deviation}"


def _difference_text(difference: Mapping[str, Any] | None, metric: Metric) -> str:
    if difference is None:
        return ""
    half = "" if difference["low"] is None else f" ±{metric.text((difference['high'] - difference['low']) / 2)}"
    return f"{metric.text(difference['mean'], sign=True)}{half}"


def _search_text(method: Mapping[str, Any]) -> str:
    seconds = method["search_seconds"]
    if seconds is None:
        return "unknown"
    return f"{'≈' if method['search_estimated'] else ''}{_seconds_text(seconds)}" if seconds else ""


def _seconds_text(seconds: float) -> str:
    return f"{seconds:.1f}" if seconds < 10 else f"{seconds:.0f}"
