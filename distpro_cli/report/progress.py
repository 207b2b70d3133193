"""What a run shows while it goes: a live panel on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

from typing_extensions import override

from distpro_cli.errors import escaped
from distpro_cli.metric import Metric
from distpro_cli.report.terminal import make_console

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

PLAIN_LINE_SECONDS = 10.0
STRONGEST = 3


class Reporter:
    """Quiet reporter, and the interface of the others. Everything goes to stderr."""

    def message(self, text: str) -> None:
        """Shows one line."""

    def start(self, title: str, total_steps: int, first_step: int, metric: Metric) -> None:
        """A run begins, or resumes, at `first_step`; `metric` judges the network."""

    def step(self, steps_done: int, row: dict[str, Any]) -> None:
        """Steps were done; `row` is what metrics.jsonl holds of the last."""

    def epoch(self, epoch: int, epochs: int, figure: float) -> None:
        """An epoch (from 1) was evaluated: the metric's `figure` on the test images."""

    def stop(self) -> None:
        """The run ended, well or not."""


class PlainReporter(Reporter):
    """One line every few seconds and one per epoch, for logs and pipes."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    @override
    def message(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # whoever read along has left; the run goes on
            print(escaped(text), file=self.stream, flush=True)

    @override
    def start(self, title: str, total_steps: int, first_step: int, metric: Metric) -> None:
        self._title, self._total_steps, self._first_step, self._metric = title, total_steps, first_step, metric
        self._started = self._shown = time.monotonic()
        resumed = f", resuming at step {first_step}" if first_step else ""
        self.message(f"{title}: {total_steps} steps{resumed}")

    @override
    def step(self, steps_done: int, row: dict[str, Any]) -> None:
        now = time.monotonic()
        if now - self._shown >= PLAIN_LINE_SECONDS:
            self._shown = now
            speed = (steps_done - self._first_step) / (now - self._started)
            left = (self._total_steps - steps_done) / speed
            self.message(
                f"{self._title}: step {steps_done}/{self._total_steps}  {describe(row, self._metric)}  "
                f"{speed:.1f} steps/s  {duration(left)} left"
            )

    @override
    def epoch(self, epoch: int, epochs: int, figure: float) -> None:
        metric = self._metric
        self.message(f"{self._title}: epoch {epoch}/{epochs}  test {metric.label} {metric.with_unit(figure)}")


class LiveReporter(Reporter):
    """A progress bar with speed and time left; below it the loss, the metric and the strongest pathways."""

    def __init__(self) -> None:
        self.console = make_console(stderr=True)

    @override
    def message(self, text: str) -> None:
        self.console.print(escaped(text))

    @override
    def start(self, title: str, total_steps: int, first_step: int, metric: Metric) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.text import Text

        class Panel(Progress):
            def get_renderables(self) -> Iterator[RenderableType]:
                yield self.make_tasks_table(self.tasks)
                for task in self.tasks:
                    yield Text(task.fields["status"], overflow="ellipsis", no_wrap=True)

        columns = (
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}", markup=False),
            TimeRemainingColumn(),
        )
        self._bar = Panel(*columns, console=self.console, refresh_per_second=4)
        self._started, self._first_step, self._metric = time.monotonic(), first_step, metric
        self._last_epoch = ""
        self._task = self._bar.add_task(escaped(title), total=total_steps, completed=first_step, speed="", status="")
        self._bar.start()

    @override
    def step(self, steps_done: int, row: dict[str, Any]) -> None:
        speed = (steps_done - self._first_step) / max(time.monotonic() - self._started, 1e-9)
        status = f"{describe(row, self._metric)}{self._last_epoch}"
        self._bar.update(self._task, completed=steps_done, speed=f"{speed:.1f} steps/s", status=status)

    @override
    def epoch(self, epoch: int, epochs: int, figure: float) -> None:
        self._last_epoch = f"  test {self._metric.with_unit(figure)} after epoch {epoch}/{epochs}"

    @override
    def stop(self) -> None:
        self._bar.stop()


def make_reporter(quiet: bool) -> Reporter:
    """Returns the reporter that fits where stderr goes."""
    if quiet:
        return Reporter()
    if sys.stderr.isatty():
        return LiveReporter()
    return PlainReporter(sys.stderr)


def describe(row: dict[str, Any], metric: Metric) -> str:
    """Returns a step's metrics in a few words: loss, the metric on inner and outer batch, the strongest pathways."""
    parts = [f"loss {row['task']:.3f}"]
    train, outer = (row.get(f"{part}_{metric.name}") for part in ("train", "outer"))
    if train is not None:
        parts.append(f"{'train' if outer is None else 'inner'} {metric.with_unit(train)}")
    if outer is not None:
        parts.append(f"outer {metric.with_unit(outer)}")
    weights: dict[str, float] = row.get("scaled_weights") or row.get("weights") or {}
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
