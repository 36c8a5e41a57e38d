"""Shows the progress of long work: a live progress bar on a terminal, plain lines elsewhere."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from experiments.process import discard_output
from transformer.data import progress as data_progress
from transformer.training.metric_log import Record
from transformer.training.processes import is_first

MIN_WAITING = 0.05  # share of time waiting for data from which on it is shown
PLAIN_WIDTH = 160  # columns of a table that is not printed on a terminal
PLAIN_SECONDS = 30.0  # between two lines of `counting`
# Formats of validation results. A result that the task does not have is not shown.
VALIDATION_FORMATS = {
    "perplexity": "perplexity {:.3f} per token",
    "perplexity_per_character": "{:.4f} per character",
    "accuracy": "accuracy {:.1%}",
}


def console() -> Console:
    """Returns a console on standard output. If that is not a terminal, lines have `PLAIN_WIDTH` columns."""
    return Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)


def record_line(record: Record) -> str:
    """Returns a record of the metric log as one line of text."""
    loss = f"loss {record['loss']:.4f}" if "loss" in record else "no update"
    if skipped := record.get("skipped"):
        loss += f" ({skipped} skipped)"
    if record["kind"] == "validation":
        results = [form.format(record[key]) for key, form in VALIDATION_FORMATS.items() if key in record]
        return f"step {record['step']}  validation: {', '.join(results) or loss}"
    perplexity = f"perplexity {record['perplexity']:.3f}  " if "perplexity" in record else ""
    place = f"step {record['step']}  epoch {record['epoch']:.2f}"
    return "  ".join([place, f"{loss}  {perplexity}lr {record['learning_rate']:.2e}", *_speed(record)])


def _speed(record: Record) -> list[str]:
    """Returns the speed, such as "1,200 tokens/s", the time left and, if large, the time without data.

    The list is empty for the first step alone, whose time includes compilation.
    """
    units = [key for key in record if key.endswith("_per_second")]
    texts = [f"{record[key]:,.0f} {key.removesuffix('_per_second')}/s" for key in units]
    if "seconds_left" in record:
        texts.append(f"{clock(record['seconds_left'])} left")
    if "utilization" in record:
        texts.append(f"{record['utilization']:.0%} of peak")
    if (share := record.get("waiting_for_data", 0)) >= MIN_WAITING:
        texts.append(f"({share:.0%} of the time waiting for data)")
    return texts


def clock(seconds: float) -> str:
    """Returns a duration as hours, minutes and seconds, such as 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class TrainingLines:
    """Training observer that prints one line per record."""

    def __init__(self, on_closed: Callable[[], None] = lambda: None, prefix: str = ""):
        """Sets the start of each line, and what to call when the process that reads the lines has ended."""
        self._on_closed, self._prefix = on_closed, prefix

    def step(self, step: int) -> None:
        """Prints nothing."""

    def record(self, record: Record) -> None:
        """Prints the record."""
        try:
            print(self._prefix + record_line(record), flush=True)
        except BrokenPipeError:
            discard_output()
            self._on_closed()

    def __enter__(self) -> "TrainingLines":
        return self

    def __exit__(self, *_) -> None:
        pass


class TrainingBar:
    """Training observer for a terminal. Prints validation records; a progress bar shows training records."""

    def __init__(self, num_steps: int):
        self._progress = Progress(
            BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
        )
        self._task = self._progress.add_task("compiling", total=num_steps)

    def step(self, step: int) -> None:
        """Moves the progress bar."""
        self._progress.update(self._task, completed=step)

    def record(self, record: Record) -> None:
        """Prints a validation record; shows a training record beside the progress bar."""
        if record["kind"] == "validation":
            self._progress.console.print(record_line(record), highlight=False)
        else:
            name = "perplexity" if "perplexity" in record else "loss"
            value = f"{name} {record[name]:.2f}" if name in record else "no update"
            self._progress.update(self._task, description=", ".join([value, *_speed(record)]))

    def __enter__(self) -> "TrainingBar":
        self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        self._progress.stop()


class NoProgress:
    """Training observer that shows nothing."""

    def step(self, step: int) -> None:
        """Shows nothing."""

    def record(self, record: Record) -> None:
        """Shows nothing."""


def training_observer(
    num_steps: int, on_closed: Callable[[], None]
) -> AbstractContextManager[TrainingLines | TrainingBar | NoProgress]:
    """Returns a progress bar if standard output is a terminal, otherwise an observer that prints lines.

    Of several processes that train together, only the first shows progress.

    Args:
      num_steps: number of steps of the training.
      on_closed: called when the process that reads standard output has ended.
    """
    if not is_first():
        return contextlib.nullcontext(NoProgress())
    return TrainingBar(num_steps) if sys.stdout.isatty() else TrainingLines(on_closed)


@contextlib.contextmanager
def counting(total: int | None, label: str, kind: str) -> Iterator[Callable[[int], None]]:
    """Yields a function that sets the number of finished items.

    If standard error is a terminal, a progress bar shows this number. Otherwise, a line is logged every
    `PLAIN_SECONDS`; shorter work logs nothing.

    Args:
      total: number of all items; None if it is unknown.
      label: description of the work.
      kind: word for the items, such as "sentences".
    """
    if not sys.stderr.isatty():
        lines = data_progress.LogLines(PLAIN_SECONDS)
        lines(label, kind, 0, total)
        yield lambda done: lines(label, kind, done, total)
        return
    progress = Progress(
        TextColumn(label), BarColumn(), MofNCompleteColumn(), console=Console(stderr=True), transient=True
    )
    task = progress.add_task(label, total=total)
    with progress:
        yield lambda done: progress.update(task, completed=done)


class PreparationBars:
    """Shows data preparation on a terminal, with a bar for each kind of work, such as tokenizing."""

    def __init__(self):
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bars = Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False)
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, what: str, kind: str, done: int, total: int | None) -> None:
        """Shows that `done` of `total` records are finished in the work `what`. The bars have no `kind`."""
        self._bars.start()  # not before the first call, because TFDS may still show bars
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total)
        self._bars.update(self._tasks[what], completed=done, total=total)

    def stop(self) -> None:
        """Removes all bars."""
        self._bars.stop()


@contextlib.contextmanager
def preparing() -> Iterator[Any]:
    """Yields an observer of data preparation.

    The observer shows bars if standard error is a terminal, and otherwise prints log lines.
    """
    if not sys.stderr.isatty():
        yield data_progress.LogLines()
        return
    bars = PreparationBars()
    try:
        yield bars
    finally:
        bars.stop()
