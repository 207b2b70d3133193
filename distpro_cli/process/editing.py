"""Processes made of processes: averaged, smoothed, scaled, cut, edited by hand. Each step goes into the history.

Shape legend: t rows, k pathways.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distpro_cli.errors import DistproError, ProcessError, nearest
from distpro_cli.process.fields import MAX_NAME
from distpro_cli.process.file import MAX_ROWS, to_bytes
from distpro_cli.process.fitting import fit, moved_parts
from distpro_cli.process.library import facts_of
from distpro_cli.process.process import Process
from distpro_cli.process.schedule import MOST_ROWS, Float32, rows_at
from distpro_cli.process.tables import Table

BY_HAND = "none"  # normalisation where the scores are the weights in their unit


def edit(
    processes: Sequence[Process],
    *,
    table: Table | None = None,
    pathways: Sequence[str] | None = None,
    time: tuple[float, float] | None = None,
    smooth: float | None = None,
    factor: float | None = None,
    rows: int | None = None,
) -> Process:
    """Does what is asked for, in this order: average, table, pathways, time, smooth, factor, rows.

    Args:
        processes: One, or several to average.
        table: See `with_table`.
        pathways: See `only`.
        time: See `between`.
        smooth: See `smoothed`.
        factor: See `scaled`.
        rows: See `resampled`.

    Raises:
        DistproError: a value is out of range, or the processes do not fit each other.
    """
    process = processes[0] if len(processes) == 1 else average(processes)
    steps: list[tuple[Callable[..., Process], Any]] = [
        (with_table, table),
        (only, pathways),
        (between, time),
        (smoothed, smooth),
        (scaled, factor),
        (resampled, rows),
    ]
    for change, value in steps:
        if value is not None:
            process = change(process, value)
    return process


def average(processes: Sequence[Process]) -> Process:
    """Returns the mean of several processes, entry by entry, at all of their rows; the columns of the first decide.

    Weights, alpha and scale are averaged each on its own. What only one search can say (figures, length) is left out.

    Raises:
        ProcessError: their pathways, their normalisations or their units differ.
    """
    first = processes[0]
    fitted = [first, *(fit(process, first.pathways) for process in processes[1:])]
    for what, values in (
        ("normalisations", {process.normalization for process in fitted}),
        ("scales", {process.searched.get("scale", process.scale is not None) for process in fitted}),
        ("units", {process.scale is not None for process in fitted}),
    ):
        if len(values) > 1:
            raise ProcessError(f"the processes have different {what} ({', '.join(sorted(map(str, values)))}); no mean")
    progress = np.unique(np.concatenate([process.progress for process in fitted]))
    if len(progress) > MOST_ROWS:
        progress = np.linspace(0, 1, MOST_ROWS, dtype=np.float32)
    of_each = [_tables_at(process, progress) for process in fitted]
    tables: dict[str, Any] = {name: np.mean([tables[name] for tables in of_each], axis=0) for name in of_each[0]}
    facts = [facts_of(process) for process in processes]
    common = {key: value for key, value in facts[0].items() if all(one.get(key) == value for one in facts)}
    named = ", ".join(digest(process) for process in processes)
    note = f"average of {len(processes)} processes: {named}"
    return replace(first, progress=progress, **tables, searched=common, measured={}, gained={}, history=(_cut(note),))


def smoothed(process: Process, width: float) -> Process:
    """Returns the process with every entry replaced by the mean of the `width` around it.

    Args:
        process: Whose rows stay where they are.
        width: Share of the run, in (0, 1]; at the ends only what lies inside the run counts.

    Raises:
        DistproError: the width is out of range.
    """
    if not 0 < width <= 1:
        raise DistproError(f"--smooth is {width:g}; allowed: more than 0, up to 1 (a share of the run)")
    u_t = process.progress.astype(np.float64)
    low_t, high_t = np.maximum(u_t - width / 2, 0), np.minimum(u_t + width / 2, 1)

    def mean(table_tk: Float32) -> NDArray[np.float64]:
        integral_tk = _integral(u_t, table_tk, high_t) - _integral(u_t, table_tk, low_t)
        found: NDArray[np.float64] = integral_tk / (high_t - low_t)[:, None]
        return found

    tables: dict[str, Any] = {name: mean(table) for name, table in _tables(process).items()}
    tables["weights"] = np.maximum(tables["weights"], 0)  # rounding
    return _noted(replace(process, **tables), f"smoothed over {width:g} of the run")


def scaled(process: Process, factor: float) -> Process:
    """Returns the process with its weights multiplied by `factor` > 0, and κ likewise; alpha stays.

    Raises:
        DistproError: the factor is out of range.
    """
    if not 0 < factor <= 1e6:
        raise DistproError(f"--factor is {factor:g}; allowed: more than 0, up to 1e6")
    searched = dict(facts_of(process))
    kappa = searched.get("kappa")
    if isinstance(kappa, int | float):
        searched["kappa"] = kappa * factor
    return _noted(replace(process, weights=process.weights * factor, searched=searched), f"weights times {factor:g}")


def only(process: Process, ids: Sequence[str]) -> Process:
    """Returns the process with these pathways alone, in its own order; thresholds count only what is left.

    Raises:
        DistproError: it has no such pathway.
    """
    own = [info.id for info in process.pathways]
    problems = [
        f"--pathways: there is no {name}{nearest(name, own)}; there are: {', '.join(own)}"
        for name in ids
        if name not in own
    ]
    if problems or not ids:
        raise DistproError(*(problems or ["--pathways names none"]))
    columns = [column for column, name in enumerate(own) if name in ids]
    tables: dict[str, Any] = {name: table[:, columns] for name, table in _tables(process).items()}
    pathways, parts = tuple(process.pathways[column] for column in columns), moved_parts(process.parts, columns)
    named = ", ".join(info.id for info in pathways)
    note = f"only {len(columns)} of {len(own)} pathways: {named}"
    return _noted(replace(process, **tables, pathways=pathways, parts=parts), note)


def between(process: Process, time: tuple[float, float]) -> Process:
    """Returns the part of the process from one progress to another, stretched over the whole run.

    Raises:
        DistproError: these are no two moments in [0, 1], the first before the second.
    """
    start, end = time
    if not 0 <= start < end <= 1 or end - start < 1e-3:
        raise DistproError(f"--time is {start:g}:{end:g}; allowed: two moments from 0 to 1, such as 0.2:0.8")
    inside = process.progress[(process.progress > start) & (process.progress < end)]
    progress = np.concatenate([[start], inside, [end]])
    stretched = ((progress.astype(np.float64) - start) / (end - start)).astype(np.float32)
    stretched[-1] = 1
    kept = np.concatenate([[True], np.diff(stretched[:-1]) > 0, [True]])
    kept[1:-1] &= stretched[1:-1] < 1
    tables = _tables_at(process, progress[kept])
    return _noted(
        replace(process, progress=stretched[kept], **tables), f"the part from {start:g} to {end:g} of the run"
    )


def resampled(process: Process, rows: int) -> Process:
    """Returns the process at `rows` moments, evenly spread and interpolated; what lies between them is lost.

    Raises:
        DistproError: the number is out of range.
    """
    if not 2 <= rows <= MAX_ROWS:
        raise DistproError(f"--rows is {rows}; allowed: 2 to {MAX_ROWS}")
    progress = np.linspace(0, 1, rows, dtype=np.float32)
    tables = _tables_at(process, progress)
    return _noted(replace(process, progress=progress, **tables), f"read at {rows} rows")


def with_table(process: Process, table: Table) -> Process:
    """Returns the process with the numbers of a table that was edited by hand; pathways without a column are cut.

    Where weights were changed and alpha was not, or the table has no alpha, the weights in their unit take alpha's
    place, so that thresholds and shares see what was edited. Without a scale in the table the old one stays.

    Raises:
        DistproError: the table names pathways that the process does not have, or holds what no process can.
    """
    own = [info.id for info in process.pathways]
    named = list(dict.fromkeys([*table.weights, *table.alpha, *table.scale]))
    problems = [
        f"{table.label}: the process has no pathway {name}{nearest(name, own)}" for name in named if name not in own
    ]
    problems += [
        f"{table.label}: pathway {name} has no column of weights" for name in named if name not in table.weights
    ]
    if problems:
        raise DistproError(*problems)
    kept = process if len(table.weights) == len(own) else only(process, list(table.weights))
    ids = [info.id for info in kept.pathways]
    progress = table.progress.astype(np.float32)
    before = _tables_at(kept, progress)

    def given(name: str, columns: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        found = [columns[i] if i in columns else before[name][:, k] for k, i in enumerate(ids)]
        return np.stack(found, axis=1).astype(np.float32)

    tables: dict[str, Any] = {"weights": given("weights", table.weights), "alpha": given("alpha", table.alpha)}
    if kept.scale is not None:
        tables["scale"] = given("scale", table.scale)
    same = np.array_equal(progress, kept.progress) and all(
        np.array_equal(tables[name], values) for name, values in _tables(kept).items()
    )
    if same:
        return kept
    edited = not np.array_equal(tables["weights"], before["weights"].astype(np.float32))
    scores: dict[str, Any] = {}
    if edited and np.array_equal(tables["alpha"], before["alpha"].astype(np.float32)):
        scores = {"alpha": tables["weights"] / tables.get("scale", np.float32(1)), "normalization": BY_HAND}
    try:
        made = replace(kept, progress=progress, **{**tables, **scores})
    except ProcessError as error:
        raise ProcessError(f"{table.label}: {error.lines[0]}") from None
    return _noted(made, "edited by hand")


def digest(process: Process) -> str:
    """Returns what tells a process from others: the start of the SHA-256 of its file."""
    return f"sha256 {hashlib.sha256(to_bytes(process)).hexdigest()[:12]}"


def _noted(process: Process, text: str) -> Process:
    """Returns the process with one more line of history; what it gained before, this one did not."""
    return replace(process, searched=facts_of(process), history=(*process.history, _cut(text)), gained={})


def _cut(text: str) -> str:
    return text if len(text) <= MAX_NAME else f"{text[: MAX_NAME - 3]}..."


def _tables(process: Process) -> dict[str, Float32]:
    """Returns the tables that change together, by field."""
    scale = {} if process.scale is None else {"scale": process.scale}
    return {"weights": process.weights, "alpha": process.alpha, **scale}


def _tables_at(process: Process, progress: NDArray[Any]) -> dict[str, Any]:
    """Returns those tables at other moments, [len(progress), K] each."""
    return {name: rows_at(process.progress, table, progress) for name, table in _tables(process).items()}


def _integral(u_t: NDArray[np.float64], table_tk: Float32, ends: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the integral of the interpolated table from 0 to each of `ends`, exact; [len(ends), K]."""
    table = table_tk.astype(np.float64)
    widths = np.diff(u_t)[:, None]
    sums = np.concatenate([np.zeros((1, table.shape[1])), np.cumsum(widths * (table[:-1] + table[1:]) / 2, axis=0)])
    row = np.clip(np.searchsorted(u_t, ends, side="right") - 1, 0, len(u_t) - 2)
    rest = (ends - u_t[row])[:, None]
    slope = (table[row + 1] - table[row]) / widths[row]
    found: NDArray[np.float64] = sums[row] + rest * table[row] + slope * rest**2 / 2
    return found
