"""metrics.jsonl: one JSON object per line, each with the step it belongs to."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from distpro_cli.errors import DiskFullError, DistproError
from distpro_cli.files import DISK_FULL, write_atomically
from distpro_cli.world import current_world


class MetricsFile:
    """Appends rows to a JSON-lines file; each is in the file when `write` returns.

    Numbers that JSON does not have (NaN, infinities) are written as null.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, row: dict[str, Any]) -> None:
        """Appends a row; of many ranks, the main one does.

        Raises:
            DistproError: the file cannot be written.
        """
        if not current_world().is_main:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(_finite(row)) + "\n")
        except OSError as error:
            kind = DiskFullError if error.errno in DISK_FULL else DistproError
            raise kind(f"{self.path}: cannot be written ({error.strerror})") from None

    def truncate_after(self, step: int, epochs: int) -> None:
        """Drops what a stopped run wrote after its checkpoint, and the half line that a kill may leave.

        Args:
            step: Steps done at the checkpoint.
            epochs: Epochs evaluated by then.
        """
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
            try:
                row = json.loads(line)
                evaluated = any(name.startswith("test_") for name in row)
                is_before = row["epoch"] <= epochs if evaluated else row["step"] < step
            except (ValueError, KeyError, TypeError):
                continue
            if is_before:
                kept.append(line)
        write_atomically(self.path, "".join(kept))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
