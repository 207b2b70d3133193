"""Tables of processes: one in full, several side by side, a folder of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distpro_cli.errors import escaped
from distpro_cli.process.likeness import likenesses
from distpro_cli.process.process import THRESHOLDS, Process
from distpro_cli.process.summary import levels, sample, summarize
from distpro_cli.report.terminal import (
    GAP,
    add_columns,
    encodable,
    make_console,
    make_table,
    number,
    one_line,
    print_kinds,
    print_table,
    sparkline,
    with_reduction,
)

if TYPE_CHECKING:
    from rich.console import Console

_LONGEST_SPARKLINE = 32
_SHORTEST_SPARKLINE = 8
_COLUMN_OF_A_FILE = 26
_LONGEST_NAME = 34


def print_process_table(
    label: str, process: Process, thresholds: Sequence[float] = THRESHOLDS, keeps: Sequence[float] = ()
) -> None:
    """Prints one process in full to stdout: what it is, its pathways over time, what dropping leaves."""
    console = make_console()
    summary = summarize(process, thresholds, keeps)
    _print_heading(console, label, process)
    _print_pathways(console, process, summary["pathways"])
    _print_dropping(console, summary)


def print_side_by_side(
    processes: Sequence[tuple[str, Process]], thresholds: Sequence[float] = THRESHOLDS, keeps: Sequence[float] = ()
) -> None:
    """Prints several processes, by pathway id, as many side by side as the width allows."""
    console = make_console()
    ids = list(dict.fromkeys(pathway.id for _, process in processes for pathway in process.pathways))
    room = console.width - max(len(name) for name in ["pathway", *ids]) - GAP
    at_once = max(1, room // _COLUMN_OF_A_FILE)
    top = max(float(process.scaled_weights.max()) for _, process in processes)
    for first in range(0, len(processes), at_once):
        _print_beside(console, processes[first : first + at_once], ids, top, room)
    console.print(f"mean weight, share of the sum of means, weight over time from 0 to {number(top)}")
    if any(process.scale is not None for _, process in processes):
        console.print("share and weight over time are of weight / scale, where a process has a scale")
    console.print()
    _print_likeness(console, processes)
    _print_thresholds(console, processes, thresholds, keeps)


def print_process_list(title: str, entries: Sequence[Mapping[str, Any]]) -> None:
    """Prints processes one per line; an entry has `path`, and what `summarize` and `library.about` (as `about`) return,
    or an `error`.
    """
    console = make_console()
    table = make_table(title=title)
    sound = [entry for entry in entries if "error" not in entry]
    names = [_name_of(entry["path"]) for entry in sound]
    # A name to copy is not folded, unless little room would be left.
    table.add_column("process", no_wrap=max(map(len, names), default=0) <= _LONGEST_NAME, overflow="fold")
    add_columns(table, "pair", "pathways", "searched", "gained")
    for name, entry in zip(names, sound, strict=True):
        facts = entry["about"]
        pair = [one_line(facts[side] or "?") for side in ("teacher", "student")]
        images = f", {facts['train_images']} images" if facts["train_images"] else ""
        lengths = [f"{facts[key]} {key}" for key in ("epochs", "steps") if facts[key] is not None]
        table.add_row(
            name,
            encodable(" → ".join(pair), console.encoding),
            f"{len(entry['pathways'])}: {one_line(', '.join(facts['transforms']))}",
            ", ".join(
                [f"{one_line(facts['data'] or '?')}{images}", *lengths, *([facts["date"]] if facts["date"] else [])]
            ),
            gain_text(facts["gained"]) or "-",
        )
    if sound:
        console.print(table)
    elif len(entries) == 0:
        console.print(f"{title}: none")
    for entry in entries:
        if "error" in entry:
            console.print(f"unreadable: {entry['error']}", style="red", soft_wrap=True)


def _name_of(path: str) -> str:
    """Returns what `--process` takes: the name of what lies in processes/, else the path, the shorter way."""
    path = min(path, os.path.relpath(path), key=len) if Path(path).is_absolute() else path
    own = path.startswith("processes/") and path.endswith(".safetensors")
    return escaped(path.removeprefix("processes/").removesuffix(".safetensors") if own else path)


def gain_text(gained: Mapping[str, Any]) -> str:
    """Writes what a process gained and against what; empty where that is not known."""
    texts = []
    for key, over in (("over_student", "student"), ("over_best_other", gained.get("best_other"))):
        if isinstance(gained.get(key), int | float):
            texts.append(f"{gained[key]:+.2f} over {one_line(str(over), 30)}")
    return ", ".join(texts)


def _print_heading(console: Console, label: str, process: Process) -> None:
    console.print(escaped(label), style="bold", soft_wrap=True)
    facts = [
        f"{len(process.progress)} rows",
        f"{len(process.pathways)} pathways",
        process.normalization,
        f"seed {process.seed}",
        *_some([f"{one_line(name, 40)} {one_line(version, 40)}" for name, version in process.versions.items()]),
    ]
    console.print(", ".join(facts))
    for side in ("teacher", "student"):
        used = levels([process], side)
        named = [with_reduction(f"{level.number} {one_line(level.name)}", level.reduction) for level in used]
        console.print(f"{side} levels: {', '.join(_some(named))}")
    print_kinds(console, [(pathway.id, pathway.transform, pathway.distance) for pathway in process.pathways])
    _print_origin(console, process)


def _print_origin(console: Console, process: Process) -> None:
    """Prints what the weights mean and where they come from, what the process gained, and what was done to it."""
    for title, facts in (("searched", process.searched), ("measured", process.measured)):
        if facts:
            values = ((k, f"{v:.4g}" if isinstance(v, float) else str(v)) for k, v in facts.items())
            named = [f"{one_line(name)} {one_line(value)}" for name, value in values]
            console.print(f"{title}: {', '.join(_some(named))}")
    if gained := gain_text(process.gained):
        console.print(f"gained: {gained}")
    for line in _some(process.history):
        console.print(f"then: {one_line(line, 200)}")


def _some(texts: Sequence[str], most: int = 20) -> list[str]:
    return [*texts[:most], *([f"and {len(texts) - most} more"] if len(texts) > most else [])]


def _print_pathways(console: Console, process: Process, rows: Sequence[Mapping[str, Any]]) -> None:
    numbers = ("start", "middle", "end", "mean")
    cells = [[row["id"], *(number(row[name]) for name in numbers), f"{100 * row['share']:.1f}%"] for row in rows]
    heads = ["pathway", *numbers, "share"]
    used = sum(max(len(head), *(len(line[i]) for line in cells)) + GAP for i, head in enumerate(heads))
    points = max(_SHORTEST_SPARKLINE, min(_LONGEST_SPARKLINE, console.width - used))
    table = make_table("pathway")
    add_columns(table, *numbers, "share", numbers=True)
    table.add_column("over time", no_wrap=True)
    top = float(process.scaled_weights.max())
    over_time = sample(process, points)
    strongest = max(row["share"] for row in rows)
    for k, (row, line) in enumerate(zip(rows, cells, strict=True)):
        bold = "bold" if row["share"] == strongest and len(rows) > 1 else None
        table.add_row(*line, sparkline(over_time[:, k].tolist(), top, console.encoding), style=bold)
    print_table(console, table)
    weight = "weight" if process.scale is None else "weight / scale"
    console.print(f"over time: {weight} from 0 to {number(top)}, progress 0 to 1 from left to right")
    if process.scale is not None:
        console.print("scale: the unit of the weights, search.scale of the recipe inside; share is of weight / scale")


def _print_dropping(console: Console, summary: Mapping[str, Any]) -> None:
    """Prints what thresholds and shares kept leave of the entries and of the cost of a step."""
    costs, at_keep = summary["relative_cost"], summary["keep"]
    lines = {"entries left at threshold": _percentages(summary["remaining_percent"])}
    if costs is not None:
        lines["cost of a step at threshold"] = _percentages({mark: 100 * cost for mark, cost in costs.items()})
    if costs is not None and at_keep:
        kept = {mark: 100 * left["relative_cost"] for mark, left in at_keep.items()}
        lines["cost of a step at keep"] = _percentages(kept)
    width = max(map(len, lines)) + GAP
    for head, text in lines.items():
        console.print(f"{head:{width}}{text}")
    if costs is None:
        console.print("cost of a step: not in this file; a search by this version of distpro writes it")
    else:
        shares = ", ".join(f"{name} {100 * share:.0f}%" for name, share in summary["step_cost"].items())
        console.print(f"a step with nothing dropped, estimated: {shares}")
        console.print(_told_by(summary["machine"]["name"]))


def _told_by(name: str) -> str:
    """Says which machine tells costs."""
    return f"costs as measured on {one_line(name)}" if name else "costs by built-in constants, a CPU core's in float32"


def _print_likeness(console: Console, processes: Sequence[tuple[str, Process]]) -> None:
    """Prints how alike the processes are, each with those before it; nothing where none can be compared."""
    found = likenesses([process for _, process in processes])
    if all(found[i][j] is None for i in range(len(found)) for j in range(i)):
        return
    table = make_table("process", title="correlation of the pathways' shares over time")
    add_columns(table, *map(str, range(1, len(found))), numbers=True)
    for i, (label, _) in enumerate(processes):
        shown = ["-" if value is None else f"{value:.2f}" for value in found[i][:i]]
        table.add_row(f"{i + 1} {escaped(label)}", *shown)
    console.print(table)
    console.print()


def _print_thresholds(
    console: Console, processes: Sequence[tuple[str, Process]], thresholds: Sequence[float], keeps: Sequence[float]
) -> None:
    """Prints what dropping leaves of each process, entries and cost of a step beside each other."""
    title = "entries left / cost of a step, %, at a threshold" + (" or a share kept" if keeps else "")
    table = make_table("process", title=title)
    add_columns(
        table, *(f"{threshold:g}" for threshold in thresholds), *(f"keep {keep:g}" for keep in keeps), numbers=True
    )
    for label, process in processes:
        schedules = [process.schedule(threshold=threshold) for threshold in thresholds]
        schedules += [process.schedule(keep=keep) for keep in keeps]
        costs = [process.relative_cost(schedule) for schedule in schedules]
        shown = ["-" if cost is None else f"{100 * cost:.0f}" for cost in costs]
        left = [f"{schedule.remaining_percent:.0f}" for schedule in schedules]
        table.add_row(escaped(label), *(f"{a} / {b}" for a, b in zip(left, shown, strict=True)))
    console.print(table)
    known = {label: _told_by(process.machine.name) for label, process in processes if process.parts}
    for text in dict.fromkeys(known.values()):
        labels = ", ".join(escaped(label) for label in known if known[label] == text)
        console.print(text if len(set(known.values())) == 1 else f"{labels}: {text}")


def _percentages(percent_by_mark: Mapping[str, float]) -> str:
    return "   ".join(f"{mark}: {percent:.1f}%" for mark, percent in percent_by_mark.items())


def _print_beside(
    console: Console, processes: Sequence[tuple[str, Process]], ids: Sequence[str], top: float, room: int
) -> None:
    points = min(_LONGEST_SPARKLINE, max(_SHORTEST_SPARKLINE, room // len(processes) - 18))
    cells: dict[str, list[str]] = {name: ["      -"] * len(processes) for name in ids}
    for column, (_, process) in enumerate(processes):
        over_time = sample(process, points)
        for k, (pathway, mean, share) in enumerate(zip(process.pathways, process.mean, process.share, strict=True)):
            bars = sparkline(over_time[:, k].tolist(), top, console.encoding)
            cells[pathway.id][column] = f"{number(mean):>7} {100 * share:5.1f}% {bars}"
    table = make_table("pathway", *(escaped(label) for label, _ in processes))
    for name, row in cells.items():
        table.add_row(name, *row)
    console.print(table)
    console.print()
