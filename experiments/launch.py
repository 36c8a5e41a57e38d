"""Runs a study: trains and evaluates every variant with every seed, and prints a table with error bars.

    python -m experiments.launch --sweep=configs/sweeps/positions.py --root=runs/positions --seeds=3

Run the same command again to start only the missing or failed runs; an interrupted run resumes from its last
checkpoint. A run that diverged is not started again. The output of a run is in log.txt of the run folder.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags as absl_flags
from absl.flags import FlagValues

from experiments import cli
from experiments.config_files import read_changes
from experiments.progress import clock
from experiments.run_folder import Run
from experiments.study.queue import Job, command, run_jobs
from experiments.study.results import check_root, has_diverged, is_complete, read_study, write_study
from experiments.study.sweep import PlannedRun, Sweep, expand, load_sweep
from experiments.study.tables import report_text, write_report
from transformer.files import lock
from transformer.training.divergence import Diverged


def define_flags(flags: FlagValues) -> None:
    absl_flags.DEFINE_string(
        "sweep",
        None,
        "Sweep file; a colon and arguments for the config of the study may follow.",
        flag_values=flags,
        required=True,
    )
    absl_flags.DEFINE_string("root", None, "Folder of the study.", flag_values=flags, required=True)
    absl_flags.DEFINE_integer(
        "seeds", 3, "Number of runs per variant; the seeds are 0, 1, ...", lower_bound=1, flag_values=flags
    )
    absl_flags.DEFINE_integer(
        "jobs",
        1,
        "Number of runs at the same time, which share the CPU cores.",
        lower_bound=1,
        flag_values=flags,
    )
    absl_flags.DEFINE_multi_string(
        "set",
        [],
        "Changes a field of the config of every run, for example --set=train.steps=500. May be given several "
        "times.",
        flag_values=flags,
    )


def main(flags: FlagValues) -> int:
    sweep, root = load_sweep(flags.sweep), Path(flags.root)
    runs = expand(sweep, read_changes(flags.set, "set"), flags.seeds)
    with lock(root, wait=False):
        return _launch(root, sweep, runs, flags.jobs)


def _launch(root: Path, sweep: Sweep, runs: Sequence[PlannedRun], slots: int) -> int:
    check_root(root, sweep, runs)
    write_study(root, sweep, runs)
    diverged = [run for run in runs if has_diverged(Run(root / run.id), run)]
    missing = [
        run
        for run in runs
        if run not in diverged and not is_complete(Run(root / run.id), run, sweep.splits, sweep.metrics)
    ]
    counts = {"done": len(runs) - len(missing) - len(diverged), "diverged": len(diverged)}
    listed = ", ".join(f"{count} {name}" for name, count in counts.items() if count or name == "done")
    print(f"{sweep.name}: {len(runs)} runs, {listed}, {len(missing)} to do", flush=True)
    try:
        failed = _run([_job(root, run, sweep.splits) for run in missing], slots)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to resume the study")
        return cli.PREEMPTED
    study = read_study(root)
    print(f"\n{report_text(study, write_report(root, study))}")
    return 1 if failed else 0


def _run(jobs: list[Job], slots: int) -> int:
    """Runs the jobs, prints a line per job, and returns the number of failed jobs."""
    started, failed = time.monotonic(), 0
    with cli.StopSignal("stopping: current runs save a checkpoint first") as should_stop:
        for number, (job, status, seconds) in enumerate(run_jobs(jobs, slots, should_stop), start=1):
            failed += status != 0
            reason = "diverged" if status == Diverged.exit_status else f"failed with status {status}"
            outcome = f"{reason}, see {job.log}" if status else "done"
            remaining = (time.monotonic() - started) / number * (len(jobs) - number)
            times = f"after {clock(seconds)}, {clock(remaining)} left"
            print(f"[{number}/{len(jobs)}] {job.name}: {outcome} {times}", flush=True)
    return failed


def _job(root: Path, planned: PlannedRun, splits: tuple[str, ...]) -> Job:
    run = Run(root / planned.id)
    run.begin(planned.config)
    workdir = f"--workdir={run.folder}"
    return Job(
        name=planned.id,
        commands=[
            command("train", workdir),
            command("evaluate", workdir, f"--split={','.join(splits)}"),
        ],
        log=run.folder / "log.txt",
    )


if __name__ == "__main__":
    cli.run(sys.modules[__name__])
