"""What a run is given besides its recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from distpro_cli.report.progress import Reporter
from distpro_cli.runs.signals import Interruption

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class RunContext:
    """Where a run computes, says how far it is, and looks for signals."""

    device: torch.device
    reporter: Reporter
    interruption: Interruption
    _said: set[str] = field(default_factory=set, repr=False, compare=False)

    def say_once(self, text: str) -> None:
        """Shows one line, if it is not empty and was not shown before."""
        if text and text not in self._said:
            self._said.add(text)
            self.reporter.message(text)
