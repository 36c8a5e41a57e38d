"""Local queue that runs a limited number of jobs at once. Each job has separate processes and CPU cores."""

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
    """Commands that run one after the other. All output of the commands goes to the file `log`."""

    name: str
    commands: Sequence[Sequence[str]]
    log: Path


class Ended(NamedTuple):
    """A job that has ended.

    Attributes:
      job: the job.
      status: exit status of the first command that failed; 0 if all commands succeeded.
      seconds: duration of the job.
    """

    job: Job
    status: int
    seconds: float


class ShouldStop(Protocol):
    """Returns whether the queue should stop."""

    def __call__(self) -> bool: ...


def run_jobs(jobs: Sequence[Job], slots: int, should_stop: ShouldStop = lambda: False) -> Iterator[Ended]:
    """Runs all jobs, and yields an `Ended` whenever a job ends. A failed job does not stop the other jobs.

    Args:
      jobs: the jobs, in the order in which they start.
      slots: number of jobs that run at once; each job gets an equal share of the cores of this process.
      should_stop: called several times per second. A signal handler that raises an exception cannot replace
        `should_stop`: an exception inside Popen.poll can leave a lock held, and waiting for the process would
        then never end.

    Raises:
      KeyboardInterrupt: `should_stop` returned true. The running jobs got SIGTERM and have ended.
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
        with job.log.open("a", encoding="utf-8") as log:
            if log.tell():  # keeps the output of earlier launches
                log.write(time.strftime("\n--- started again at %Y-%m-%d %H:%M:%S ---\n"))
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
        """Starts the next command if one has succeeded. Returns the exit status once the job has ended."""
        status = self.process.poll()
        if status == 0 and self._remaining:
            self._start_next()
            return None
        return status


def command(name: str, *arguments: str) -> list[str]:
    """Returns the arguments that start `python -m experiments.<name>`."""
    return [sys.executable, "-m", f"experiments.{name}", *arguments]
