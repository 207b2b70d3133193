"""What a run shows while it goes: a live panel on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType
    from rich.progress import Progress, TaskID

PLAIN_LINE_SECONDS = 10.0
STRONGEST = 3


class Reporter:
    """Quiet reporter, and the interface of the others. Everything goes to stderr."""

    def message(self, text: str) -> None:
        """Shows one line."""

    def start(self, title: str, total_steps: int, first_step: int) -> None:
        """A run begins, or goes on, at `first_step`."""

    def step(self, steps_done: int, row: dict[str, Any]) -> None:
        """Steps were done; `row` is what metrics.jsonl holds of the last."""

    def epoch(self, epoch: int, epochs: int, top1: float) -> None:
        """An epoch (from 1) was evaluated; `top1` in percent."""

    def stop(self) -> None:
        """The run ended, well or not."""


class PlainReporter(Reporter):
    """One line every few seconds and one an epoch, for logs and pipes."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._total_steps = 0
        self._first_step = 0
        self._title = ""
        self._started = self._shown = 0.0

    def message(self, text: str) -> None:
        """See `Reporter`."""
        print(text, file=self.stream, flush=True)

    def start(self, title: str, total_steps: int, first_step: int) -> None:
        """See `Reporter`."""
        self._title, self._total_steps, self._first_step = title, total_steps, first_step
        self._started = self._shown = time.monotonic()
        resumed = f", going on at step {first_step}" if first_step else ""
        self.message(f"{title}: {total_steps} steps{resumed}")

    def step(self, steps_done: int, row: dict[str, Any]) -> None:
        """See `Reporter`."""
        now = time.monotonic()
        if now - self._shown >= PLAIN_LINE_SECONDS:
            self._shown = now
            speed = (steps_done - self._first_step) / (now - self._started)
            left = (self._total_steps - steps_done) / max(speed, 1e-9)
            self.message(
                f"{self._title}: step {steps_done}/{self._total_steps}  {describe(row)}  "
                f"{speed:.1f} steps/s  {duration(left)} left"
            )

    def epoch(self, epoch: int, epochs: int, top1: float) -> None:
        """See `Reporter`."""
        self.message(f"{self._title}: epoch {epoch}/{epochs}  test top-1 {top1:.2f} %")


class LiveReporter(Reporter):
    """A progress bar with speed and time left; below it loss, accuracies and the strongest pathways."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._started = 0.0
        self._first_step = 0
        self._status = self._last_epoch = ""

    def message(self, text: str) -> None:
        """See `Reporter`."""
        self.console.print(text, markup=False, highlight=False)

    def start(self, title: str, total_steps: int, first_step: int) -> None:
        """See `Reporter`."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.text import Text

        reporter = self

        class Panel(Progress):
            def get_renderables(self) -> Iterator[RenderableType]:
                yield self.make_tasks_table(self.tasks)
                yield Text(reporter._status, overflow="ellipsis", no_wrap=True)

        columns = (
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}", markup=False),
            TimeRemainingColumn(),
        )
        self._bar = Panel(*columns, console=self.console, refresh_per_second=4)
        self._started, self._first_step = time.monotonic(), first_step
        self._status = self._last_epoch = ""
        self._task = self._bar.add_task(title, total=total_steps, completed=first_step, speed="")
        self._bar.start()

    def step(self, steps_done: int, row: dict[str, Any]) -> None:
        """See `Reporter`."""
        if self._bar is not None and self._task is not None:
            speed = (steps_done - self._first_step) / max(time.monotonic() - self._started, 1e-9)
            self._status = f"{describe(row)}{self._last_epoch}"
            self._bar.update(self._task, completed=steps_done, speed=f"{speed:.1f} steps/s")

    def epoch(self, epoch: int, epochs: int, top1: float) -> None:
        """See `Reporter`."""
        self._last_epoch = f"  test {top1:.2f} % after epoch {epoch}/{epochs}"

    def stop(self) -> None:
        """See `Reporter`."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def make_reporter(quiet: bool) -> Reporter:
    """Returns the reporter that fits where stderr goes."""
    if quiet:
        return Reporter()
    if sys.stderr.isatty():
        return LiveReporter()
    return PlainReporter(sys.stderr)


def describe(row: dict[str, Any]) -> str:
    """Returns a step's metrics in a few words: loss, accuracies, the strongest pathways."""
    parts = [f"loss {row['task']:.3f}"]
    if "train_top1" in row:
        parts.append(f"inner {row['train_top1']:.1f} %" if "outer_top1" in row else f"train {row['train_top1']:.1f} %")
    if "outer_top1" in row:
        parts.append(f"outer {row['outer_top1']:.1f} %")
    weights: dict[str, float] = row.get("weights") or {}
    strongest = sorted(weights, key=lambda name: -weights[name])[:STRONGEST]
    if strongest:
        parts.append("strongest " + " ".join(f"{name} {weights[name]:.2f}" for name in strongest))
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """Returns seconds as `12 s`, `3 min 20 s` or `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
