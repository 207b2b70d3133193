"""What a comparison compares: the student alone, schemes, processes whole, averaged, or with a part left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from distpro_cli.process.process import Process
from distpro_cli.report.comparison import STUDENT
from distpro_cli.workflows.transfer import Dropping

SEARCHED = "process"
AVERAGED = "process-mean"
NOTHING_DROPPED = Dropping()


@dataclass(frozen=True)
class Method:
    """One line of the comparison.

    Attributes:
        name: As the table shows it.
        origin: Name of a scheme, or a process; None: the one that the comparison is to search itself.
        averaged: Whether the process is averaged over time.
        dropping: What of the process is left out.
    """

    name: str
    origin: Process | str | None
    averaged: bool = False
    dropping: Dropping = NOTHING_DROPPED

    @property
    def source(self) -> Process | str | None:
        """What drives the runs."""
        return self.origin.mean_over_time() if self.averaged and isinstance(self.origin, Process) else self.origin

    @property
    def is_whole(self) -> bool:
        """Whether it is a process as it was found."""
        return isinstance(self.origin, Process) and not self.averaged and self.dropping == NOTHING_DROPPED

    def with_process(self, searched: Process) -> Method:
        """Returns the method with `searched` in the place of a process that is still to be searched."""
        return self if self.origin is not None else replace(self, origin=searched)


def make_methods(
    names: Sequence[str],
    processes: Sequence[tuple[str, Process]],
    thresholds: Sequence[float],
    keeps: Sequence[float],
) -> list[Method]:
    """Returns the methods by name; thresholds and shares kept come after every `process`.

    Args:
        names: `student`, names of schemes, `process`, `process-mean`.
        processes: Label and process; empty: one is to be searched.
        thresholds: Of the processes, see `Process.schedule`.
        keeps: Likewise.
    """
    found: list[Method] = []
    known: list[tuple[str, Process | None]] = [*processes] or [("", None)]
    for name in names:
        if name not in (SEARCHED, AVERAGED):
            found.append(Method(name, "plain" if name == STUDENT else name))
            continue
        for label, process in known:
            full = f"{name}:{label}" if len(processes) > 1 else name
            found.append(Method(full, process, averaged=name == AVERAGED))
            if name == SEARCHED:
                found += [
                    Method(f"{full} threshold {x:g}", process, dropping=Dropping(x)) for x in dict.fromkeys(thresholds)
                ]
                found += [
                    Method(f"{full} keep {x:g}", process, dropping=Dropping(keep=x)) for x in dict.fromkeys(keeps)
                ]
    return found
