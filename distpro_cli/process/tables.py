"""The tables of a process as text to edit by hand: CSV, a row per moment, or YAML, a list per pathway.

CSV has the columns `progress`, one per pathway with its weights, and `alpha ID` and `scale ID` for the rest. YAML has
the same under `progress`, `weights`, `alpha` and `scale`. Numbers are written so that reading gives the same bits.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distpro_cli.errors import DistproError, nearest
from distpro_cli.files import check_writable, write_atomically
from distpro_cli.process.process import Process
from distpro_cli.recipe.strict_yaml import MAX_BYTES as MAX_YAML_BYTES
from distpro_cli.recipe.strict_yaml import MAX_VALUES, StrictYamlError, read_yaml, write_yaml

SUFFIXES = (".csv", ".yaml", ".yml")
MAX_BYTES = 64 * 2**20
KINDS = ("weights", "alpha", "scale")
Columns = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Table:
    """What a text says of a process.

    Attributes:
        label: What the user calls it.
        progress: [T], as written.
        weights: [T] by pathway id.
        alpha: [T] by pathway id, of those that have one.
        scale: Likewise.
    """

    label: str
    progress: NDArray[np.float64]
    weights: Columns
    alpha: Columns = field(default_factory=dict)
    scale: Columns = field(default_factory=dict)


def check_table_path(path: Path, option: str) -> None:
    """Refuses a suffix that is no table's.

    Raises:
        DistproError: with what is allowed.
    """
    if path.suffix.lower() not in SUFFIXES:
        hint = nearest(path.suffix.lower(), SUFFIXES)
        raise DistproError(f"{option} {path}: the suffix is '{path.suffix}'; allowed: {', '.join(SUFFIXES)}{hint}")


def export_table(process: Process, path: Path, *, force: bool = False) -> None:
    """Writes the tables of a process as `.csv`, `.yaml` or `.yml`.

    Raises:
        DistproError: the suffix is another, the file exists, or YAML of that size would not be read back.
    """
    check_table_path(path, "--export")
    check_writable(path, force=force)
    text = _csv(process) if path.suffix.lower() == ".csv" else _yaml(process)
    write_atomically(path, text)


def read_table(path: Path) -> Table:
    """Reads what `export_table` writes, and what was made of it by hand.

    Raises:
        DistproError: it cannot be read, or is no such table; with the place.
    """
    check_table_path(path, "--table")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise DistproError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise DistproError(f"{path}: not UTF-8 text") from None
    if len(content) > MAX_BYTES:
        raise DistproError(f"{path}: larger than {MAX_BYTES // 2**20} MiB")
    return _from_csv(text, path) if path.suffix.lower() == ".csv" else _from_yaml(text, path)


def _tables(process: Process) -> dict[str, NDArray[np.float32]]:
    tables = {"weights": process.weights, "alpha": process.alpha}
    return tables if process.scale is None else {**tables, "scale": process.scale}


def _csv(process: Process) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    ids, tables = [info.id for info in process.pathways], _tables(process)
    heads = [name if kind == "weights" else f"{kind} {name}" for kind in tables for name in ids]
    writer.writerow(["progress", *heads])
    rows = np.concatenate([process.progress[:, None], *tables.values()], axis=1)
    writer.writerows([_written(value) for value in row] for row in rows)
    return text.getvalue()


def _written(value: np.float32) -> str:
    return str(value)  # the shortest text that gives the same float32


def _yaml(process: Process) -> str:
    tables = _tables(process)
    values = {
        "progress": [float(_written(value)) for value in process.progress],
        **{
            kind: {
                info.id: [float(_written(value)) for value in table[:, k]] for k, info in enumerate(process.pathways)
            }
            for kind, table in tables.items()
        },
    }
    count = len(process.progress) * (1 + len(tables) * len(process.pathways))
    text = write_yaml(values, flow=None) if count <= MAX_VALUES else ""
    if not text or count + 50 > MAX_VALUES or len(text.encode()) > MAX_YAML_BYTES:
        raise DistproError(
            f"--export: {len(process.progress)} rows of {len(process.pathways)} pathways are too many for YAML; "
            "export .csv, or fewer rows: distpro edit --rows 101"
        )
    return text


def _from_csv(text: str, path: Path) -> Table:
    try:
        lines = [line for line in csv.reader(io.StringIO(text), strict=True) if line]
    except csv.Error as error:
        raise DistproError(f"{path}: not CSV: {error}") from None
    if len(lines) < 3 or lines[0][0].strip() != "progress":
        raise DistproError(f"{path}: expected a line of heads that starts with progress, and at least two rows")
    heads = [head.strip() for head in lines[0]]
    twice = [head for head in dict.fromkeys(heads) if heads.count(head) > 1]
    if twice:
        raise DistproError(f"{path}: the column {twice[0]} occurs twice")
    values = np.empty((len(lines) - 1, len(heads)))
    for n, line in enumerate(lines[1:]):
        if len(line) != len(heads):
            raise DistproError(f"{path}: row {n + 1} has {len(line)} values where there are {len(heads)} columns")
        for column, cell in enumerate(line):
            values[n, column] = _number(cell, f"{path}: row {n + 1}, column {heads[column]}")
    found: dict[str, dict[str, NDArray[np.float64]]] = {kind: {} for kind in KINDS}
    for column, head in enumerate(heads[1:], start=1):
        kind, _, name = head.partition(" ")
        of_kind, key = (found[kind], name) if name and kind in ("alpha", "scale") else (found["weights"], head)
        of_kind[key] = values[:, column]
    return Table(str(path), values[:, 0], **found)


def _from_yaml(text: str, path: Path) -> Table:
    try:
        document = read_yaml(text)
    except StrictYamlError as error:
        raise DistproError(f"{path}: {error.message}") from None
    if document.mistakes:
        raise DistproError(*(f"{path}:{mistake.line}: {mistake.message}" for mistake in document.mistakes[:5]))
    value = document.value
    if not isinstance(value, dict) or "progress" not in value or "weights" not in value:
        raise DistproError(f"{path}: expected the keys progress and weights")
    if unknown := set(value) - {"progress", *KINDS}:
        raise DistproError(f"{path}: unknown key '{sorted(unknown)[0]}'; there are: progress, {', '.join(KINDS)}")
    progress = _list(value["progress"], f"{path}: progress", None)
    found: dict[str, dict[str, NDArray[np.float64]]] = {}
    for kind in KINDS:
        columns = value.get(kind) or {}
        if not isinstance(columns, dict):
            raise DistproError(f"{path}: {kind} is no section of a list per pathway")
        found[kind] = {key: _list(column, f"{path}: {kind} of {key}", len(progress)) for key, column in columns.items()}
    return Table(str(path), progress, **found)


def _list(value: object, where: str, length: int | None) -> NDArray[np.float64]:
    if not isinstance(value, list) or len(value) < 2 or length not in (None, len(value)):
        raise DistproError(f"{where} is no list of {length or 'at least 2'} numbers")
    return np.array([_number(item, where) for item in value])


def _number(value: object, where: str) -> float:
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else np.nan
    except (ValueError, OverflowError):
        number = np.nan
    if not np.isfinite(number) or abs(number) > np.finfo(np.float32).max:
        raise DistproError(f"{where}: '{str(value)[:40]}' is no finite number")
    return number
