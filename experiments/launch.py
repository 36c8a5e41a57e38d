"""Runs a study: every variant with every seed, then a table with error bars.

    python -m experiments.launch --sweep=configs/sweeps/positions.py --root=runs/positions --seeds=3

The same command again runs only what is missing or failed, and a run that was cut short goes on from its
last checkpoint. Each run's output is in its folder's log.txt.
"""

import time
from pathlib import Path

from absl import flags

from experiments import entry
from experiments.launcher.queue import Job, command, run_jobs
from experiments.launcher.report import markdown, write_report
from experiments.launcher.results import check_root, is_complete, read_study, write_study
from experiments.launcher.sweep import PlannedRun, expand, load_sweep
from experiments.progress import clock
from experiments.runs import Run

SWEEP = flags.DEFINE_string("sweep", None, "Sweep file, with config arguments after a colon.", required=True)
ROOT = flags.DEFINE_string("root", None, "The study's folder.", required=True)
SEEDS = flags.DEFINE_integer("seeds", 3, "Runs a variant, with seeds 0, 1, ...", lower_bound=1)
JOBS = flags.DEFINE_integer("jobs", 1, "Runs at once; they share the cores.", lower_bound=1)
SET = flags.DEFINE_multi_string("set", [], "Changes a field of every run, as in --set=train.steps=500.")


def main() -> int:
    sweep, root = load_sweep(SWEEP.value), Path(ROOT.value)
    runs = expand(sweep, entry.changes(SET.value), SEEDS.value)
    check_root(root, sweep, runs)
    root.mkdir(parents=True, exist_ok=True)
    write_study(root, sweep, runs)
    missing = [run for run in runs if not is_complete(Run(root / run.id), sweep.splits)]
    print(
        f"{sweep.name}: {len(runs)} runs, {len(runs) - len(missing)} done, {len(missing)} to do", flush=True
    )
    started, seen = time.monotonic(), []

    def ended(job: Job, status: int, seconds: float) -> None:
        seen.append(job)
        left = (time.monotonic() - started) / len(seen) * (len(missing) - len(seen))
        outcome = "done" if status == 0 else f"failed with status {status}, see {job.log}"
        print(
            f"[{len(seen)}/{len(missing)}] {job.name}: {outcome} after {clock(seconds)}, {clock(left)} left",
            flush=True,
        )

    should_stop = entry.stop_signal("stopping: the runs at work save first")
    try:
        failed = run_jobs([_job(root, run, sweep.splits) for run in missing], JOBS.value, ended, should_stop)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on")
        return entry.PREEMPTED
    study = read_study(root)
    folder = write_report(root, study)
    print(f"\n{markdown(study)}\n{folder}: table and by_length (.md, .png), table.csv, runs.csv")
    return 1 if failed else 0


def _job(root: Path, planned: PlannedRun, splits: tuple[str, ...]) -> Job:
    run = Run(root / planned.id)
    if not (run.folder / "config.json").exists():  # its name says that the config is the same
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
    entry.run(main)
