"""Progress of long work: a live line on a terminal, plain lines elsewhere."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from transformer.data import progress as data_progress
from transformer.training.metric_log import Record


def record_line(record: Record) -> str:
    """Returns a record of training as one line."""
    if record["kind"] == "validation":
        return f"step {record['step']}  validation: {_validation_figures(record)}"
    return (
        f"step {record['step']}  epoch {record['epoch']:.2f}  loss {record['loss']:.4f}  "
        f"perplexity {record['perplexity']:.3f}  lr {record['learning_rate']:.2e}  "
        f"{record['tokens_per_second']:,.0f} tokens/s  {clock(record['seconds_left'])} left"
    )


def _validation_figures(record: Record) -> str:
    return (
        f"perplexity {record['perplexity']:.3f} per token, "
        f"{record['perplexity_per_character']:.4f} per character, accuracy {record['accuracy']:.1%}"
    )


def clock(seconds: float) -> str:
    """Returns a duration as hours, minutes and seconds: 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class TrainingLines:
    """Training observer that prints one line per record."""

    def step(self, step: int) -> None:
        """Prints nothing."""

    def record(self, record: Record) -> None:
        """Prints the record."""
        print(record_line(record), flush=True)

    def __enter__(self) -> "TrainingLines":
        return self

    def __exit__(self, *_) -> None:
        pass


class TrainingBar:
    """Training observer for a terminal: prints validations, and shows everything else in one live line."""

    def __init__(self, num_steps: int):
        self._progress = Progress(
            BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
        )
        self._task = self._progress.add_task("compiling", total=num_steps)

    def step(self, step: int) -> None:
        """Moves the bar."""
        self._progress.update(self._task, completed=step)

    def record(self, record: Record) -> None:
        """Prints a validation, or updates the live line."""
        if record["kind"] == "validation":
            self._progress.console.print(record_line(record), highlight=False)
        else:
            text = (
                f"perplexity {record['perplexity']:.2f}, {record['tokens_per_second']:,.0f} tokens/s, "
                f"{clock(record['seconds_left'])} left"
            )
            self._progress.update(self._task, description=text)

    def __enter__(self) -> "TrainingBar":
        self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        self._progress.stop()


def training_observer(num_steps: int) -> TrainingLines | TrainingBar:
    """Returns the observer that fits standard output."""
    return TrainingBar(num_steps) if sys.stdout.isatty() else TrainingLines()


@contextlib.contextmanager
def counting(total: int, label: str) -> Iterator[Callable[[int], None]]:
    """Shows a bar on a terminal; yields a function to call with the number of items that are done."""
    progress = Progress(
        TextColumn(label), BarColumn(), MofNCompleteColumn(), console=Console(stderr=True), transient=True
    )
    task = progress.add_task(label, total=total)
    if sys.stderr.isatty():
        progress.start()
    try:
        yield lambda done: progress.update(task, completed=done)
    finally:
        progress.stop()


class PreparationBars:
    """Progress of data preparation for a terminal: one bar per kind of work."""

    def __init__(self):
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bars = Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False)
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, what: str, done: int, total: int | None) -> None:
        """Reports that `done` of `total` pairs are through the work `what`."""
        self._bars.start()  # at the first call, not earlier: TFDS may show bars itself
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total)
        self._bars.update(self._tasks[what], completed=done, total=total)

    def stop(self) -> None:
        """Removes the bars."""
        self._bars.stop()


@contextlib.contextmanager
def preparing() -> Iterator[Any]:
    """Yields the progress of data preparation: bars on a terminal, log lines elsewhere."""
    if not sys.stderr.isatty():
        yield data_progress.LogLines()
        return
    bars = PreparationBars()
    try:
        yield bars
    finally:
        bars.stop()
