"""Local queue of jobs. Each job has separate processes, processor cores and GPUs.

A job locks its run folder, and its processes inherit the lock. If the launcher is killed, the folder stays
locked until these processes end, so no other launcher starts the same run beside them.
"""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from experiments.machine import cores, gpus
from experiments.stop_signal import PREEMPTED, SIGNALS
from transformer.config import UserError
from transformer.files import try_lock

POLL_SECONDS = 0.2
LOCK_FILE = ".job"


class Slot(NamedTuple):
    """Devices of a job: indices of processor cores, and names of GPUs. Without GPUs, JAX chooses devices."""

    cores: list[int]
    gpus: list[str]


def make_slots(jobs: int, devices_per_run: int | None) -> list[Slot]:
    """Divides the devices of this machine among jobs: its GPUs, or its processor cores if it has no GPUs.

    Args:
      jobs: number of jobs at the same time.
      devices_per_run: number of devices of a job; None for an equal share of all devices.

    Raises:
      UserError: the jobs need more devices than this machine has.
    """
    all_cores, all_gpus = cores(), gpus()
    devices, kind = (all_gpus, "GPUs") if all_gpus else (all_cores, "processor cores")
    needed = jobs * (devices_per_run or 1)
    if needed > len(devices):
        given = f"--jobs is {jobs}"
        if devices_per_run is not None:
            given = f"--jobs={jobs} with --devices_per_run={devices_per_run} needs {needed} {kind}"
        advice = "lower --jobs"
        if devices_per_run is not None:
            advice += " or --devices_per_run"
        raise UserError(f"{given}, but this machine has {len(devices)} {kind}; {advice}")

    def share(items, number, count):
        return items[number::jobs] if count is None else items[number * count : (number + 1) * count]

    if all_gpus:
        return [
            Slot(all_cores[number::jobs] or all_cores, share(all_gpus, number, devices_per_run))
            for number in range(jobs)
        ]
    return [Slot(share(all_cores, number, devices_per_run), []) for number in range(jobs)]


@dataclasses.dataclass(frozen=True)
class Job:
    """Commands that run one after the other. All their output is appended to log.txt in the folder.

    Attributes:
      name: the name of the job.
      folder: the run folder, which is locked while the job is at work.
      commands: the arguments of each command.
      begin: called before the first command.
      is_done: called before `begin`; returns true if another launcher has finished the job in the meantime.
      stop_signal: asks a command to save its state and to end.
      more_folders: further run folders that the commands write, which are locked, too.
    """

    name: str
    folder: Path
    commands: Sequence[Sequence[str]]
    begin: Callable[[], object] = lambda: None
    is_done: Callable[[], bool] = lambda: False
    stop_signal: signal.Signals = signal.SIGTERM
    more_folders: Sequence[Path] = ()

    @property
    def log(self) -> Path:
        """The file to which the output is appended."""
        return self.folder / "log.txt"


class Ended(NamedTuple):
    """A job that has ended.

    Attributes:
      job: the job.
      status: exit status of the first command that failed, or minus the number of the signal that ended it; 0
        if all commands succeeded.
      seconds: duration of the job.
      elsewhere: whether another launcher ran the job.
    """

    job: Job
    status: int
    seconds: float
    elsewhere: bool = False


class RunningJob:
    """A job at work.

    Attributes:
      job: the job.
      slot: the devices of the job.
      started: time at which the job started, in seconds of `time.time`.
    """

    def __init__(self, job: Job, slot: Slot, locks: Sequence[BinaryIO]):
        """Starts the first command. The processes of the job inherit the locks."""
        self.job, self.slot, self.started = job, slot, time.time()
        self._locks, self._remaining = locks, list(job.commands)
        with job.log.open("a", encoding="utf-8") as log:
            if log.tell():  # keeps the output of earlier launches
                log.write(time.strftime("\n--- started again at %Y-%m-%d %H:%M:%S ---\n"))
        self._start_next()

    def _start_next(self) -> None:
        visible = {"CUDA_VISIBLE_DEVICES": ",".join(self.slot.gpus)} if self.slot.gpus else {}
        with self.job.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._remaining.pop(0),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | visible,
                pass_fds=[lock.fileno() for lock in self._locks],
            )
        if hasattr(os, "sched_setaffinity"):
            with contextlib.suppress(ProcessLookupError):  # the process has ended
                os.sched_setaffinity(self._process.pid, self.slot.cores)

    def poll(self) -> int | None:
        """Starts the next command if the current one has succeeded.

        Returns:
          The exit status of the job; None if it has not ended.
        """
        status = self._process.poll()
        if status == 0 and self._remaining:
            self._start_next()
            return None
        if status is not None:
            _close(self._locks)
        return status

    def stop(self) -> None:
        """Asks the process to save its state and to end."""
        self._process.send_signal(self.job.stop_signal)

    def wait(self) -> None:
        """Waits for the end of the process."""
        self._process.wait()
        _close(self._locks)


Observe = Callable[[Sequence[RunningJob], Sequence[Job]], object]


def run_jobs(
    jobs: Sequence[Job],
    slots: Sequence[Slot],
    should_stop: Callable[[], bool] = lambda: False,
    retries: int = 0,
    observe: Observe = lambda running, waiting: None,
) -> Iterator[Ended]:
    """Runs all jobs, and yields an `Ended` whenever a job ends. A failed job does not stop the other jobs.

    A job waits while another launcher runs it, and runs here only if that launcher does not finish it.
    Closing the iterator asks the running jobs to stop and waits for their end.

    Args:
      jobs: the jobs, in the order in which they start.
      slots: the devices of each job; their number limits the jobs at the same time.
      should_stop: called several times per second; returns true to stop all jobs. Signal handlers must not
        raise exceptions instead: an exception inside Popen.poll can leave Popen's lock acquired, and waiting
        for the process would then never end.
      retries: how many times a preempted job starts again.
      observe: called several times per second with the jobs at work and the jobs that wait.

    Raises:
      KeyboardInterrupt: `should_stop` returned true. The running jobs were asked to stop and have ended.
    """
    free, waiting, running = list(slots), list(jobs), list[RunningJob]()
    preemptions: Counter[str] = Counter()
    try:
        while waiting or running:
            for job in list(waiting):
                if not free:
                    break
                if (locks := _try_locks(job)) is None:
                    continue
                waiting.remove(job)
                if job.is_done():
                    _close(locks)
                    yield Ended(job, 0, 0.0, elsewhere=True)
                else:
                    job.begin()
                    running.append(RunningJob(job, free.pop(0), locks))
            observe(running, waiting)
            time.sleep(POLL_SECONDS)
            if should_stop():
                raise KeyboardInterrupt
            for at_work in list(running):
                if (status := at_work.poll()) is None:
                    continue
                running.remove(at_work)
                free.append(at_work.slot)
                job = at_work.job
                # Until a command has loaded its packages, a signal ends it with the negative number.
                was_preempted = status == PREEMPTED or -status in SIGNALS
                if was_preempted and preemptions[job.name] < retries:
                    preemptions[job.name] += 1
                    waiting.insert(0, job)
                else:
                    yield Ended(job, status, time.time() - at_work.started)
    finally:
        for at_work in running:
            at_work.stop()
        for at_work in running:
            at_work.wait()


def _try_locks(job: Job) -> list[BinaryIO] | None:
    """Locks the folders of a job; returns None if another job holds one of the locks."""
    locks = []
    for folder in (job.folder, *job.more_folders):
        folder.mkdir(parents=True, exist_ok=True)
        if (lock := try_lock(folder / LOCK_FILE)) is None:
            _close(locks)
            return None
        locks.append(lock)
    return locks


def _close(locks: Sequence[BinaryIO]) -> None:
    for lock in locks:
        lock.close()


def is_at_work(folder: Path) -> bool:
    """Returns whether a launcher, or a process that it started, is at work in a run folder."""
    if not (folder / LOCK_FILE).exists():
        return False
    if (lock := try_lock(folder / LOCK_FILE)) is None:
        return True
    lock.close()
    return False


def command(name: str, *arguments: str) -> list[str]:
    """Returns the arguments that start `python -m experiments.<name>`."""
    return [sys.executable, "-m", f"experiments.{name}", *arguments]
