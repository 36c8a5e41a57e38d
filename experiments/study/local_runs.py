"""Runs of a study on this machine: jobs of the local queue, and a display of their states."""

import contextlib
import dataclasses
import functools
import signal
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.run_folder import Run
from experiments.stop_signal import StopSignal
from experiments.study.groups import group_job, make_groups
from experiments.study.live import StatusBoard
from experiments.study.queue import Job, Slot, command, run_jobs
from experiments.study.results import has_diverged, has_ended, is_complete
from experiments.study.slurm import SRUN_STOP_SIGNAL, on_nodes
from experiments.study.sweep import PlannedRun, Sweep
from experiments.study.tuning import unfinished
from transformer.config import UserError
from transformer.training.divergence import Diverged


@dataclasses.dataclass(frozen=True)
class LocalRuns:
    """Trains and evaluates runs on this machine.

    Attributes:
      root: the folder of the study.
      sweeps: the study of each task.
      runs: all runs of the study. Those that are trained already tell how long the others may take.
      slots: the devices of each run at the same time.
      retries: largest number of restarts of a run that is preempted.
      nodes: number of nodes per run.
      vectorize: largest number of runs per program.
      fail_fast: whether to stop at the first failure.
    """

    root: Path
    sweeps: Mapping[str, Sweep]
    runs: Sequence[PlannedRun]
    slots: Sequence[Slot]
    retries: int
    nodes: int
    vectorize: int
    fail_fast: bool

    def train(self, missing: Sequence[PlannedRun], evaluate: bool) -> list[int]:
        """Trains runs, evaluates them unless they are trials, and returns the statuses of failed runs."""
        # A trial may diverge: the study then uses other values.
        accepted = (0,) if evaluate else (0, Diverged.exit_status)
        failures = []
        if self.vectorize > 1:
            groups = make_groups(self.root, missing, self.vectorize)
            jobs = [group_job(self.root, group) for group in groups]
            failures = self._run_queue(jobs, (0, Diverged.exit_status))
            if failures and self.fail_fast:
                return failures
            grouped = {run.path for group in groups for run in group}
            diverged = [run for run in missing if has_diverged(Run(self.root / run.path), run)]
            failures += [Diverged.exit_status for run in diverged if evaluate]
            failed = unfinished(self.root, [run for run in missing if run.path in grouped])
            missing = [run for run in missing if run not in diverged and run not in failed]
        return failures + self._run_queue([self._job(run, evaluate) for run in missing], accepted)

    def _run_queue(self, jobs: Sequence[Job], accepted: Sequence[int]) -> list[int]:
        """Runs jobs, and returns the exit statuses that are not accepted."""
        failures = []
        with (
            StopSignal("stopping: current runs save a checkpoint first") as should_stop,
            StatusBoard(jobs, len(self.slots), self._durations()) as board,
            contextlib.closing(run_jobs(jobs, self.slots, should_stop, self.retries, board.observe)) as ends,
        ):
            for ended in ends:
                board.ended(ended)
                if ended.status not in accepted:
                    failures.append(ended.status)
                if failures and self.fail_fast:
                    print("stopping at the first failure: current runs save a checkpoint first", flush=True)
                    break
        return failures

    def _durations(self) -> dict[str, list[float]]:
        """Returns the seconds that the trained runs of each row took."""
        durations = defaultdict(list)
        for run in self.runs:
            with contextlib.suppress(UserError):
                result = Run(self.root / run.path).result
                if result.get("status") == "done":
                    durations[run.row].append(result["seconds"])
        return durations

    def _job(self, planned: PlannedRun, evaluate: bool) -> Job:
        run, sweep = Run(self.root / planned.path), self.sweeps[planned.task]
        workdir = f"--workdir={run.folder}"
        evaluation = [command("evaluate", workdir, f"--split={','.join(sweep.splits)}")] if evaluate else []

        training, stop_signal = command("train", workdir), signal.SIGTERM
        if self.nodes > 1:
            training, stop_signal = on_nodes(training, self.nodes), SRUN_STOP_SIGNAL

        def is_done() -> bool:
            if not evaluate:
                return has_ended(run, planned)
            return is_complete(run, planned, sweep.splits, sweep.metrics)

        return Job(
            name=planned.path,
            folder=run.folder,
            commands=[training, *evaluation],
            begin=functools.partial(run.begin, planned.config),
            is_done=is_done,
            stop_signal=stop_signal,
        )
