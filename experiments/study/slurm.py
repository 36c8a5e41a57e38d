"""Runs a study with Slurm: submits an array job in which each task launches one run of the study.

A task calls `launch` with the same flags and `--only=RUN`, so tuning, evaluation and locks work as in the
local queue. If a task has several nodes, `launch` runs on the first one and starts the training on all. If a
task is preempted, `launch` ends with status 75, and the script asks Slurm to start the task again.

Slurm signals all processes that `srun` has started, but not the script. `srun` itself ends its tasks at once
if it gets SIGTERM, so a `launch` that calls `srun` must not be called by `srun`.
"""

import glob
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.stop_signal import PREEMPTED
from transformer.config import UserError
from transformer.files import atomic_write
from transformer.json_files import check_types, read_sealed, write_sealed

GRACE_SECONDS = 120  # time to save a checkpoint before the time limit of a job
SCRIPT = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array=0-{last}{limit}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@{grace}
#SBATCH --nodes={nodes}
{options}
runs=({runs})
cd {cwd}
trap : TERM  # SIGTERM does not end this script, which continues after the run has saved a checkpoint
{srun}{command} --only="${{runs[$SLURM_ARRAY_TASK_ID]}}"
status=$?
task="${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
if [ $status = {preempted} ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {retries} ] &&
    [ "$(squeue --noheader --jobs="$task" --format=%T)" = RUNNING ]; then  # the task was not cancelled
    scontrol requeue "$task"
fi
exit $status
"""


class Slurm:
    """The array jobs of a study. The folder slurm/ of the study has their scripts, outputs and ids."""

    def __init__(self, root: Path):
        self.folder = root / "slurm"
        self._path = self.folder / "jobs.json"

    @property
    def jobs(self) -> list[dict[str, Any]]:
        """The submitted array jobs. Each has an "id" and "runs", the run of each task in order."""
        if not self._path.exists():
            return []
        jobs = read_sealed(self._path, {"jobs": list[dict[str, Any]]})["jobs"]
        for job in jobs:
            check_types(self._path, job, {"id": str, "runs": list[str]})
        return jobs

    def states(self) -> dict[str, str]:
        """Returns Slurm's state of each run that is waiting or at work, such as "pending" or "running".

        Raises:
          UserError: a command of Slurm is missing or failed.
        """
        if not self.jobs:
            return {}
        lines = _call("squeue", "--me", "--array", "--noheader", "--format=%F %K %T").splitlines()
        states = {}
        tasks = {job["id"]: job["runs"] for job in self.jobs}
        for job_id, task, slurm_state in (line.split() for line in lines):
            if job_id in tasks and task.isdigit():
                states[tasks[job_id][int(task)]] = slurm_state.lower()
        return states

    def submit(
        self,
        name: str,
        runs: Sequence[str],
        arguments: Sequence[str],
        options: Sequence[str],
        limit: int | None,
        retries: int,
        nodes: int = 1,
        after: Sequence[str] = (),
    ) -> str:
        """Submits an array job with one task per run, and returns its id.

        Args:
          name: the name of the job.
          runs: the run of each task, in the form that `--only` accepts.
          arguments: the flags of `launch` for every task.
          options: options of sbatch, such as "--partition=gpu".
          limit: maximum number of tasks at the same time; None for no limit.
          retries: how many times a preempted task starts again.
          nodes: number of nodes of a task.
          after: ids of array jobs that must end before this one starts.

        Raises:
          UserError: Slurm refused the job, or a command of Slurm is missing.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        options = [*options, *([f"--dependency=afterany:{':'.join(after)}"] if after else [])]
        script = SCRIPT.format(
            name=shlex.quote(name),
            last=len(runs) - 1,
            limit="" if limit is None else f"%{limit}",
            grace=GRACE_SECONDS,
            nodes=nodes,
            srun="srun " if nodes == 1 else "",
            options="".join(f"#SBATCH {option}\n" for option in options),
            runs=shlex.join(map(glob.escape, runs)),
            cwd=shlex.quote(os.getcwd()),
            command=shlex.join([sys.executable, "-m", "experiments.launch", *arguments]),
            preempted=PREEMPTED,
            retries=retries,
        )
        path = self.folder / f"array-{len(self.jobs)}.sh"
        atomic_write(path, script)
        flags = ["--parsable"]
        if not any(option.startswith(("--output", "-o")) for option in options):
            # A flag, because an #SBATCH line ends at a space in the path.
            flags.append(f"--output={str(self.folder.resolve()).replace('%', '%%')}/%A_%a.txt")
        job_id = _call("sbatch", *flags, str(path)).strip().partition(";")[0]
        write_sealed(self._path, {"jobs": [*self.jobs, {"id": job_id, "runs": list(runs)}]})
        return job_id


# srun passes this signal on to its tasks; SIGTERM would end them at once.
SRUN_STOP_SIGNAL = signal.SIGUSR1


def on_nodes(command: Sequence[str], nodes: int) -> list[str]:
    """Returns a command that runs `command` once on each node of the current job."""
    return ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", *command]


def _call(*arguments: str) -> str:
    """Calls a command of Slurm and returns its output.

    Raises:
      UserError: the command is missing or failed.
    """
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError(
            f"{arguments[0]}, a command of Slurm, is not installed; install Slurm or leave --executor out"
        ) from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        reason = lines[-1] if lines else f"status {done.returncode}"
        raise UserError(f"{arguments[0]} failed: {reason}; check --sbatch and the state of Slurm")
    return done.stdout
