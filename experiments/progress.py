"""Shows work that takes long: a live line on a terminal, plain lines elsewhere."""

import contextlib
import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from transformer.data.progress import LogLines
from transformer.training.metrics import Record


def describe(record: Record) -> str:
    """A record in one line."""
    if record["kind"] == "validation":
        return (
            f"step {record['step']}  validation: perplexity {record['perplexity']:.3f} a piece, "
            f"{record['perplexity_per_character']:.4f} a character, accuracy {record['accuracy']:.1%}"
        )
    return (
        f"step {record['step']}  epoch {record['epoch']:.2f}  loss {record['loss']:.4f}  "
        f"perplexity {record['perplexity']:.3f}  lr {record['learning_rate']:.2e}  "
        f"{record['tokens_per_second']:,.0f} tokens/s  {clock(record['seconds_left'])} left"
    )


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class TrainingLines:
    """An observer of training that prints a line a record."""

    def step(self, step: int) -> None:
        pass

    def record(self, record: Record) -> None:
        print(describe(record), flush=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class TrainingBar:
    """An observer of training for a terminal: validations stay, the rest is one live line."""

    def __init__(self, steps: int):
        self._progress = Progress(
            BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
        )
        self._task = self._progress.add_task("compiling", total=steps)

    def step(self, step: int) -> None:
        self._progress.update(self._task, completed=step)

    def record(self, record: Record) -> None:
        if record["kind"] == "validation":
            self._progress.console.print(describe(record), highlight=False)
        else:
            text = (
                f"perplexity {record['perplexity']:.2f}, {record['tokens_per_second']:,.0f} tokens/s, "
                f"{clock(record['seconds_left'])} left"
            )
            self._progress.update(self._task, description=text)

    def __enter__(self):
        self._progress.start()
        return self

    def __exit__(self, *_):
        self._progress.stop()


def training_observer(steps: int) -> TrainingLines | TrainingBar:
    """The observer that fits where the output goes."""
    return TrainingBar(steps) if sys.stdout.isatty() else TrainingLines()


def counting(total: int, what: str):
    """A context manager that yields a function to call with how many are done."""
    return _Counter(total, what)


class _Counter:
    def __init__(self, total, what):
        self._progress = Progress(
            TextColumn(what), BarColumn(), MofNCompleteColumn(), console=Console(stderr=True), transient=True
        )
        self._task = self._progress.add_task(what, total=total)

    def __enter__(self):
        if sys.stderr.isatty():
            self._progress.start()
        return lambda done: self._progress.update(self._task, completed=done)

    def __exit__(self, *_):
        self._progress.stop()


@contextlib.contextmanager
def preparing():
    """Yields who is to be told of data preparation: bars on a terminal, log lines elsewhere."""
    if not sys.stderr.isatty():
        yield LogLines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bars = Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False)
    tasks = {}

    def tell(what: str, done: int, total: int | None) -> None:
        bars.start()  # at the first call, not before: TFDS may have bars of its own
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=total)
        bars.update(tasks[what], completed=done, total=total)

    try:
        yield tell
    finally:
        bars.stop()
