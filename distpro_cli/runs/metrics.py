"""metrics.jsonl: one JSON object per line, each with the step it belongs to."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from distpro_cli.errors import DistproError


class MetricsFile:
    """Appends to a JSON-lines file; without a path it writes nothing.

    Numbers that JSON does not have (NaN, infinities) are written as null.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._lines: list[str] = []

    def write(self, row: dict[str, Any]) -> None:
        """Adds a row; it is on disk after the next `flush`."""
        self._lines.append(json.dumps(_finite(row)) + "\n")
        if len(self._lines) >= 50:
            self.flush()

    def flush(self) -> None:
        """Appends what was written since the last flush.

        Raises:
            DistproError: the file cannot be written.
        """
        if self.path is not None and self._lines:
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.writelines(self._lines)
            except OSError as error:
                raise DistproError(f"{self.path}: cannot be written ({error.strerror})") from None
        self._lines.clear()

    def truncate_after(self, step: int, epochs: int) -> None:
        """Drops what a stopped run wrote after its checkpoint, and the half line that a kill may leave.

        Args:
            step: Steps done at the checkpoint.
            epochs: Epochs evaluated by then.
        """
        if self.path is None or not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True):
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            done = row["epoch"] <= epochs if "test_top1" in row else row["step"] < step
            if done:
                kept.append(line)
        self.path.write_text("".join(kept), encoding="utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
