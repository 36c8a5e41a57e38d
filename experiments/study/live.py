"""Shows the jobs of a launch: a line per finished job, and the jobs at work.

On a terminal, a table shows the jobs at work; elsewhere, a line is printed when a job starts.
"""

import heapq
import itertools
import signal
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from experiments.progress import clock
from experiments.study.queue import Ended, Job, RunningJob
from transformer.config import UserError
from transformer.training.divergence import Diverged
from transformer.training.metric_log import Record, read_metrics

REFRESH_SECONDS = 2.0


class RunProgress(NamedTuple):
    """The progress of a run at work.

    Attributes:
      stage: "starting", "training" or "evaluating".
      step: the step of the last record; 0 if there is none.
      loss: the training loss of that record; None if there is none.
      seconds_left: estimated time until the end of training; None if it cannot be estimated yet.
    """

    stage: str
    step: int
    loss: float | None
    seconds_left: float | None


def run_progress(records: Sequence[Record]) -> RunProgress:
    """Returns the progress of a run, from the training records that this launch has added."""
    if not records:
        return RunProgress("starting", 0, None, None)
    last = records[-1]
    left = last.get("seconds_left")  # missing if the record is of the first step alone
    stage = "evaluating" if left == 0 else "training"
    return RunProgress(stage, last["step"], last.get("loss"), left)


class StatusBoard:
    """Context manager that shows the jobs of a launch on standard output."""

    def __init__(self, jobs: Sequence[Job], num_slots: int, durations: Mapping[str, Sequence[float]]):
        """Shows `jobs`, of which `num_slots` run at the same time.

        Args:
          jobs: the jobs; the name of each is VARIANT/SEED-HASH, or TASK/VARIANT/SEED-HASH.
          num_slots: number of jobs at the same time.
          durations: seconds of earlier runs, by variant or by TASK/VARIANT.
        """
        self._num_jobs, self._num_slots, self._num_ended = len(jobs), num_slots, 0
        self._durations = {variant: list(seconds) for variant, seconds in durations.items()}
        self._first_steps: dict[str, int] = {}  # by job: the last step recorded by earlier launches
        self._waiting: Sequence[Job] = jobs
        self._running: dict[str, tuple[RunningJob, RunProgress]] = {}
        self._refreshed = 0.0
        self._live = (
            Live(console=Console(), auto_refresh=False, transient=True) if sys.stdout.isatty() else None
        )

    def __enter__(self) -> "StatusBoard":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_) -> None:
        if self._live:
            self._live.stop()

    def observe(self, running: Sequence[RunningJob], waiting: Sequence[Job]) -> None:
        """Shows the jobs at work and counts the jobs that wait."""
        self._waiting = list(waiting)
        started = [work.job.name for work in running if work.job.name not in self._running]
        if not started and time.monotonic() - self._refreshed < REFRESH_SECONDS:
            return
        if self._live is None:
            for name in started:
                print(f"{name}: started", flush=True)
        self._refreshed = time.monotonic()
        self._running = {work.job.name: (work, self._progress(work.job)) for work in running}
        if self._live:
            self._live.update(self._table(), refresh=True)

    def _progress(self, job: Job) -> RunProgress:
        records = _training_records(job.folder)
        first = self._first_steps.setdefault(job.name, records[-1]["step"] if records else 0)
        return run_progress([record for record in records if record["step"] > first])

    def ended(self, ended: Ended) -> None:
        """Prints a line for a job that has ended."""
        self._num_ended += 1
        self._running.pop(ended.job.name, None)
        self._first_steps.pop(ended.job.name, None)
        if ended.status == 0 and not ended.elsewhere:
            self._durations.setdefault(_variant(ended.job), []).append(ended.seconds)
        line = f"[{self._num_ended}/{self._num_jobs}] {ended.job.name}: {outcome(ended)}"
        if self._num_ended < self._num_jobs and (left := self._seconds_left()) is not None:
            line += f", about {clock(left)} left"
        if self._live:
            self._live.console.print(line, highlight=False, markup=False, soft_wrap=True)
        else:
            print(line, flush=True)

    def _seconds_left(self) -> float | None:
        """Returns the estimated time left for all jobs; None if it cannot be estimated yet."""
        working = [self._left_of(work, progress) for work, progress in self._running.values()]
        expected = [self._expected(_variant(job)) for job in self._waiting]
        if None in working or None in expected:
            return None
        ends = working + [0.0] * (self._num_slots - len(working))  # of the last job of each slot
        heapq.heapify(ends)
        for seconds in expected:  # a job starts in the first slot that is free
            heapq.heapreplace(ends, ends[0] + seconds)
        return max(ends)

    def _left_of(self, work: RunningJob, progress: RunProgress) -> float | None:
        if progress.seconds_left:  # 0 during the evaluation after training
            return progress.seconds_left
        expected = self._expected(_variant(work.job))
        return None if expected is None else max(expected - (time.time() - work.started), 0.0)

    def _expected(self, variant: str) -> float | None:
        """Returns the expected duration of a job: the mean of the jobs of its variant, or of all jobs."""
        known = self._durations.get(variant) or [*itertools.chain(*self._durations.values())]
        if not known:  # no job has ended: uses the estimates of the jobs at work
            known = [
                time.time() - work.started + progress.seconds_left
                for work, progress in self._running.values()
                if progress.seconds_left is not None
            ]
        return statistics.mean(known) if known else None

    def _table(self) -> Table:
        left = self._seconds_left()
        counts = (
            f"{self._num_ended} of {self._num_jobs} ended, {len(self._running)} at work, "
            f"{len(self._waiting)} waiting"
        )
        title = counts if left is None else f"{counts}, about {clock(left)} left"
        table = Table("run", "state", "step", "loss", "left", title=title, title_justify="left")
        for name, (work, progress) in self._running.items():
            seconds = self._left_of(work, progress)
            table.add_row(
                escape(name),
                progress.stage,
                str(progress.step),
                "" if progress.loss is None else f"{progress.loss:.4f}",
                "" if seconds is None else clock(seconds),
            )
        return table


def outcome(ended: Ended) -> str:
    """Returns a description of the end of a job."""
    if ended.elsewhere:
        return "done by another launcher"
    if ended.status == 0:
        return f"done after {clock(ended.seconds)}"
    if ended.status == Diverged.exit_status:
        reason = "diverged"
    elif ended.status == -signal.SIGKILL:
        reason = "killed (SIGKILL), perhaps because memory ran out; lower --jobs or the batch size"
    elif ended.status < 0:
        reason = f"killed ({signal.Signals(-ended.status).name})"
    else:
        reason = f"failed with status {ended.status}"
    return f"{reason}; see {ended.job.log} (after {clock(ended.seconds)})"


def _variant(job: Job) -> str:
    return job.name.rpartition("/")[0]


def _training_records(folder: Path) -> list[dict[str, Any]]:
    try:
        return [record for record in read_metrics(folder) if record["kind"] == "train"]
    except (UserError, OSError):
        return []
