"""Tables of recipes: one resolved, with what every pathway costs, and a list of them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from distpro_cli.errors import escaped
from distpro_cli.report.terminal import (
    add_columns,
    count,
    encodable,
    make_console,
    make_table,
    print_kinds,
    print_table,
    shape,
    size,
)

if TYPE_CHECKING:
    from rich.table import Table


def print_recipe_table(label: str, report: Mapping[str, Any]) -> None:
    """Prints what `costs.complexity.recipe_report` found to stdout: networks, levels, pathways, totals."""
    console = make_console()
    console.print(escaped(label), style="bold", soft_wrap=True)
    for side in ("teacher", "student"):
        network = report[side]
        costs = f"{count(network['parameters'])} parameters, {count(network['multiply_adds'])} multiply-adds"
        grey = ", grey images" if network["channels"] == 1 else ""
        console.print(f"{side}: {network['name']}, {costs}{grey}")
        console.print(f"  {network['weights']}", soft_wrap=True, markup=False)
    print_table(console, _levels(report))
    if report["alignment"] != "number":
        console.print(f"levels are joined by {report['alignment']}: the networks have different numbers of them")
    print_kinds(console, [(row["id"], row["transform"], row["distance"]) for row in report["pathways"]])
    pathways = make_table("pathway", "teacher", "student", title="pathways")
    add_columns(pathways, "params", "mult-adds", "memory", numbers=True)
    for row in report["pathways"]:
        pathways.add_row(
            row["id"],
            shape(row["teacher_shape"], row["teacher_reduction"]),
            shape(row["student_shape"], row["student_reduction"]),
            *_costs(row),
        )
    for block in report["shared"]:
        levels = ", ".join(map(str, block["student_levels"]))
        pathways.add_row(f"shared {block['transform']}", "", f"levels {levels}", *_costs(block))
    totals = report["totals"]
    pathways.add_section()
    pathways.add_row(f"{totals['pathways']} in all", "", "", *_costs(totals), style="bold")
    print_table(console, pathways)
    console.print("multiply-adds: forward, one image; memory: kept for the backward pass, one image")
    console.print(_memory(report["memory"]), soft_wrap=True, markup=False)


def print_fit(process: str, recipe: str, report: Mapping[str, Any]) -> None:
    """Prints what `explain_fit` found: which pathway of the process drives which of the recipe's pair, and why not."""
    console = make_console()
    if "error" in report:
        console.print(f"{process} on {recipe}: {report['error']}", soft_wrap=True)
        return
    fits = "fits" if report["fits"] else "does not fit"
    console.print(escaped(f"{process} {fits} {recipe} (--match {report['mode']})"), style="bold", soft_wrap=True)
    table = make_table("pathway", "of the process", "rule", "teacher's level", "student's level")
    others: dict[str, list[str]] = {}
    for row in report["pathways"]:
        levels = [_moved(row[side]["before"], row[side]["now"]) for side in ("teacher", "student")]
        table.add_row(row["pair"], row["process"], row["rule"], *levels)
        for text in row["differs"]:
            others.setdefault(text, []).append(row["pair"])
    if report["pathways"]:
        print_table(console, table)
    for text, ids in (("drive nothing", report["lost"]), ("left out of the pair", report["left_out"])):
        if ids and report["fits"]:
            console.print(f"{text}: {', '.join(ids)}")
    differing = [f"{text}: {', '.join(ids)}" for text, ids in others.items()]
    for line in (*differing, *report["says"], *report["taps"]):
        console.print(line, soft_wrap=True)


def _moved(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    texts = [f"{level['number']} {shape(level['shape'], level['reduction'])}" for level in (before, now)]
    return texts[0] if texts[0] == texts[1] else encodable(" → ".join(texts), sys.stdout.encoding)


def print_recipe_list(title: str, entries: Sequence[Mapping[str, Any]]) -> None:
    """Prints recipes one per line; an entry has `name`, and `teacher` and `student` or an `error`."""
    console = make_console()
    table = make_table(title=title)
    table.add_column("recipe", no_wrap=True)  # a name to copy is never folded
    add_columns(table, "teacher", "student")
    for entry in entries:
        if "error" not in entry:
            table.add_row(escaped(entry["name"]), entry["teacher"], entry["student"])
    console.print(table)
    console.print()
    for entry in entries:
        if "error" in entry:
            console.print(f"unreadable: {entry['name']}: {entry['error']}", style="red", soft_wrap=True)


def _levels(report: Mapping[str, Any]) -> Table:
    """Levels of both networks; with a column for the tapped point where some stage is not tapped at its output."""
    rows = [(side, level) for side in ("teacher", "student") for level in report[side]["levels"]]
    stages = [level for _, level in rows if level["kind"] in ("map", "tokens")]
    with_points = any(level["point"] != f"output of {level['name']}" for level in stages)
    table = make_table("network", "level", "name", "kind", "shape, reduction", title="levels")
    add_columns(table, *(["tapped"] if with_points else []))
    for side, level in rows:
        point = [level["point"]] if with_points else []
        text = shape(level["shape"], level["reduction"])
        table.add_row(side, str(level["number"]), level["name"], level["kind"], text, *point)
    return table


def _costs(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return count(row["parameters"]), count(row["multiply_adds"]), size(row["backward_bytes"])


def _memory(memory: Mapping[str, Any]) -> str:
    """What a step takes in memory, in two lines."""
    if "error" in memory:
        return f"memory of a step: cannot be estimated ({memory['error']})"
    search, distil = (
        f"{size(memory[f'{kind}_bytes'])} ({memory[f'{kind}_over_plain_student']:.2f}x)"
        for kind in ("search", "distil")
    )
    return (
        f"peak memory, estimated: search {search}, distillation {distil}\n"
        "x: over plain training of the student, the teacher's forward beside it"
    )
