"""Notes on a process that its search cannot know: what it gained, and when it was searched."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date as calendar_date
from pathlib import Path
from typing import Any

from distpro_cli.errors import DistproError, ProcessError
from distpro_cli.metric import Metric
from distpro_cli.process.library import facts_of
from distpro_cli.process.process import Facts, Process


def with_date(process: Process, date: str) -> Process:
    """Returns the process with the day of its search, as `2026-11-30`.

    Raises:
        DistproError: that is no day.
    """
    try:
        day = calendar_date.fromisoformat(date) if re.fullmatch(r"\d{4}-\d\d-\d\d", date) else None
    except ValueError:
        day = None
    if day is None:
        raise DistproError(f"--date is '{date}'; expected a day such as 2026-11-30")
    return replace(process, searched={**facts_of(process), "date": date})


def with_gain(process: Process, folder: Path, name: str) -> Process:
    """Returns the process with what it gained in a comparison.

    Args:
        process: Which has been compared.
        folder: Of `distpro compare`, or its summary.json.
        name: What the comparison calls the process, where it compared several.

    Raises:
        DistproError: it is not there, or compared no such process.
    """
    path = folder / "summary.json" if folder.is_dir() else folder
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        return replace(process, gained=gain(summary, name))
    except OSError as error:
        raise DistproError(f"--gained {path}: cannot be read: {error.strerror or error}") from None
    except ProcessError as error:
        raise DistproError(f"--gained {path}: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DistproError(f"--gained {path}: not the summary.json of distpro compare") from None


def gain(summary: Mapping[str, Any], name: str) -> Facts:
    """Returns in plain values what a process gained over the student alone, and over the best of the other methods.

    Args:
        summary: What `distpro compare --json` prints.
        name: Of the process, where several were compared.

    Raises:
        ProcessError: there is no such process in it.
    """
    metric, rows = Metric(**summary["metric"]), summary["methods"]
    of_process = [row for row in rows if row["name"] in ("process", f"process:{name}")]
    if not of_process:
        there = ", ".join(row["name"] for row in rows)
        raise ProcessError(f"neither process nor process:{name} was compared; there are: {there}")
    row = of_process[0]
    key = f"{metric.name}_last"
    found: dict[str, float | int | str] = {
        "metric": metric.label,
        "unit": metric.unit,
        "last": row[key]["mean"],
        "seeds": len(row[key]["values"]),
        "epochs": summary["epochs"],
        "teacher": summary["teacher"]["name"],
        "student": summary["student"],
    }
    if row["difference"] is not None:
        over_student = row["difference"]
        found |= {"over_student": over_student["mean"]}
        found |= {end: over_student[end] for end in ("low", "high") if over_student.get(end) is not None}
    others = [one for one in rows if not one["name"].startswith("process")]
    if others:
        best = _best(others, key, metric)
        found |= {"best_other": best["name"], "over_best_other": metric.gain(row[key]["mean"], best[key]["mean"])}
    return found


def _best(rows: Sequence[Mapping[str, Any]], key: str, metric: Metric) -> Mapping[str, Any]:
    return max(rows, key=lambda row: metric.gain(row[key]["mean"], 0.0))
