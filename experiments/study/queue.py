"""Local queue: a limited number of jobs at once, each in separate processes on its share of the cores."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

POLL_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class Job:
    """Commands to run one after the other, with their output in one file."""

    name: str
    commands: Sequence[Sequence[str]]
    log: Path


class Ended(NamedTuple):
    """The end of a job.

    Attributes:
      job: the job.
      status: exit status of its first command that failed, or 0.
      seconds: its duration.
    """

    job: Job
    status: int
    seconds: float


class ShouldStop(Protocol):
    """Returns whether the queue should stop."""

    def __call__(self) -> bool: ...


def run_jobs(jobs: Sequence[Job], slots: int, should_stop: ShouldStop = lambda: False) -> Iterator[Ended]:
    """Runs all jobs and yields each one as it ends; a job that fails does not stop the others.

    Args:
      jobs: in the order in which they start.
      slots: number of jobs at once; each gets an equal share of the cores of this process.
      should_stop: called several times per second. A signal handler that raises would not do: an exception
        within Popen.poll can leave its lock held, and then waiting for the process never ends.

    Raises:
      KeyboardInterrupt: should_stop returned true; the running jobs were asked to save, and have ended.
    """
    cores = sorted(os.sched_getaffinity(0))
    slots = min(slots, len(cores))
    free = [set(cores[slot::slots]) for slot in range(slots)]
    waiting, running = list(jobs), []
    while waiting or running:
        while waiting and free:
            running.append(_RunningJob(waiting.pop(0), free.pop(0)))
        time.sleep(POLL_SECONDS)
        if should_stop():
            for job in running:
                job.process.send_signal(signal.SIGTERM)
            for job in running:
                job.process.wait()
            raise KeyboardInterrupt
        for job in list(running):
            if (status := job.poll()) is not None:
                running.remove(job)
                free.append(job.cores)
                yield Ended(job.job, status, time.monotonic() - job.started)


class _RunningJob:
    def __init__(self, job: Job, cores: set[int]):
        self.job, self.cores, self.started = job, cores, time.monotonic()
        self._remaining = list(job.commands)
        job.log.parent.mkdir(parents=True, exist_ok=True)
        job.log.write_bytes(b"")
        self._start_next()

    def _start_next(self) -> None:
        with self.job.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._remaining.pop(0),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        os.sched_setaffinity(self.process.pid, self.cores)

    def poll(self) -> int | None:
        """Starts the next command when one has ended well; returns the status once the job has ended."""
        status = self.process.poll()
        if status == 0 and self._remaining:
            self._start_next()
            return None
        return status


def command(name: str, *arguments: str) -> list[str]:
    """Returns the command line of one of our commands."""
    return [sys.executable, "-m", f"experiments.{name}", *arguments]
