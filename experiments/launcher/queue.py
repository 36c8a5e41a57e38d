"""A local queue: at most so many runs at once, each a process of its own on its share of the cores."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Job:
    """Commands to run one after the other, their output in one file."""

    name: str
    commands: Sequence[Sequence[str]]
    log: Path


def run_jobs(
    jobs: Sequence[Job],
    slots: int,
    ended: Callable[[Job, int, float], None],
    should_stop: Callable[[], bool] = lambda: False,
) -> int:
    """Runs all jobs, `slots` at a time; a job that fails does not stop the others.

    Args:
      jobs: in the order in which they start.
      slots: how many run at once; each gets its own share of this process' cores.
      ended: is told of each job's end: exit status and seconds.
      should_stop: asked all the while. A signal's handler that raises would not do: an exception within
        Popen.poll can leave its lock held, and waiting for the process then never ends.

    Returns:
      How many jobs failed.

    Raises:
      KeyboardInterrupt: should_stop said so; the running jobs were asked to save, and waited for.
    """
    cores = sorted(os.sched_getaffinity(0))
    slots = min(slots, len(cores))
    free = [set(cores[slot::slots]) for slot in range(slots)]
    waiting, running, failed = list(jobs), [], 0
    while waiting or running:
        while waiting and free:
            running.append(_Running(waiting.pop(0), free.pop(0)))
        time.sleep(0.2)
        if should_stop():
            for one in running:
                one.process.send_signal(signal.SIGTERM)
            for one in running:
                one.process.wait()
            raise KeyboardInterrupt
        for one in list(running):
            if (status := one.poll()) is not None:
                running.remove(one)
                free.append(one.cores)
                failed += status != 0
                ended(one.job, status, time.monotonic() - one.started)
    return failed


class _Running:
    def __init__(self, job: Job, cores: set[int]):
        self.job, self.cores, self.started = job, cores, time.monotonic()
        self._left = list(job.commands)
        job.log.parent.mkdir(parents=True, exist_ok=True)
        job.log.write_bytes(b"")
        self._next()

    def _next(self):
        command = self._left.pop(0)
        with self.job.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        os.sched_setaffinity(self.process.pid, self.cores)

    def poll(self) -> int | None:
        """The exit status of the first command that failed, or of the last; None while one is running."""
        status = self.process.poll()
        if status == 0 and self._left:
            self._next()
            return None
        return status


def command(verb: str, *arguments: str) -> list[str]:
    """The command line of one of our entry points."""
    return [sys.executable, "-m", f"experiments.{verb}", *arguments]
