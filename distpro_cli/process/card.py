"""The card of a published process, in Markdown, from what the file says of itself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from distpro_cli.errors import escaped
from distpro_cli.process.library import about, facts_of
from distpro_cli.process.process import Process

_HEADER = """\
---
library_name: distpro
tags:
- knowledge-distillation
- distpro
---
"""
# What stands first, by key of `searched`, and what it is called.
_NAMES = {
    "data": "data",
    "train_images": "train images",
    "outer_images": "images that judged the weights",
    "image_size": "image size",
    "epochs": "epochs",
    "steps": "steps",
    "images": "images seen",
    "batch_size": "batch size",
    "optimizer": "optimiser",
    "lr": "learning rate",
    "schedule": "schedule",
    "method": "method",
    "kappa": "κ, the distillation weight",
    "scale": "unit of the weights (`search.scale`)",
    "date": "searched on",
}


def card(process: Process, filename: str, repo: str) -> str:
    """Returns the card of a process.

    Args:
        process: What is published.
        filename: Under which name.
        repo: Where: `owner/name`.
    """
    facts = about(process)
    known = {**facts_of(process), **{key: value for key, value in facts.items() if value is not None}}
    pair = f"{facts['teacher'] or 'a teacher'} → {facts['student'] or 'a student'}"
    address = f"hf://{repo}/{filename}"
    parts = [
        f"{_HEADER}\n# A distillation process: {_text(pair)}",
        "The weight over time of every pathway (teacher level → transform block → student level), found by "
        f"distpro on held-out train images. {len(process.pathways)} pathways, {len(process.progress)} moments.",
        "## Use",
        _fenced(
            f"distpro inspect {address}\ndistpro inspect {address} recipe.yaml\n"
            f"distpro transfer recipe.yaml --process {address}",
            "",
        ),
        "It drives runs of any length, and pairs whose pathways correspond.",
        "## What it gained",
        _gained(process.gained),
        "## What its weights mean",
        _table(("", ""), [(name, known[key]) for key, name in _NAMES.items() if known.get(key) is not None]),
        _measured(process),
        "## Pathways",
        _pathways(process),
        *(["## History", "\n".join(f"- {_text(line)}" for line in process.history)] if process.history else []),
        "## Recipe of its search",
        _fenced(process.recipe.rstrip("\n"), "yaml"),
    ]
    return "\n\n".join(parts) + "\n"


def _gained(gained: Mapping[str, float | int | str]) -> str:
    if not gained:
        return "Not measured yet."
    lines = []
    numbers = {key: value for key, value in gained.items() if isinstance(value, int | float)}
    if "last" in numbers:
        lines.append(
            f"{gained.get('metric', 'figure')} {numbers['last']:.6g} {gained.get('unit', '')} after the last of "
            f"{gained.get('epochs', '?')} epochs, {gained.get('teacher', '?')} → {gained.get('student', '?')}, mean "
            f"over {gained.get('seeds', '?')} seeds"
        )
    if "over_student" in numbers:
        known = "low" in numbers and "high" in numbers
        interval = f" (95 % interval {numbers['low']:+.2f} to {numbers['high']:+.2f})" if known else ""
        lines.append(f"{numbers['over_student']:+.2f} over the student alone{interval}")
    if "over_best_other" in numbers:
        best = gained.get("best_other", "?")
        lines.append(f"{numbers['over_best_other']:+.2f} over {best}, the best of the other methods")
    return "\n".join(f"- {_text(line)}" for line in lines)


def _measured(process: Process) -> str:
    measured = [f"{key} {_number(value)}" for key, value in process.measured.items()]
    versions = [f"{name} {version}" for name, version in process.versions.items()]
    return _text(
        f"In the search: {', '.join(measured) or 'nothing noted'}. Seed {process.seed}. {', '.join(versions)}."
    )


def _pathways(process: Process) -> str:
    rows = [
        (
            info.id,
            f"{info.teacher.name} ({info.teacher.kind})",
            f"{info.student.name} ({info.student.kind})",
            f"{info.transform}, {info.distance}",
            f"{mean:.4g}",
            f"{100 * share:.1f} %",
        )
        for info, mean, share in zip(process.pathways, process.mean, process.share, strict=True)
    ]
    return _table(("pathway", "teacher level", "student level", "transform, distance", "mean weight", "share"), rows)


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [heads, ["---"] * len(heads), *([_number(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(_text(cell) for cell in line)} |" for line in lines)


def _number(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _text(text: str) -> str:
    """Returns a text that Markdown and HTML leave alone."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", escaped(text))


def _fenced(text: str, language: str) -> str:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{escaped(text, keep=chr(10))}\n{fence}"
