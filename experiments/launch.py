"""Runs a study: trains and evaluates every variant with every seed, and prints a table with error bars.

    python -m experiments.launch --sweep=configs/sweeps/positions.py --root=runs/positions --seeds=5

Run the same command again to start only the missing or failed runs; an interrupted run resumes from its last
checkpoint. A run that diverged is not started again. The output of a run is in log.txt of the run folder.
"""

import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags as absl_flags
from absl.flags import FlagValues

from experiments import cli
from experiments.config_files import read_changes
from experiments.costs import describe
from experiments.progress import clock
from experiments.run_folder import Run
from experiments.study.queue import Job, command, run_jobs
from experiments.study.results import (
    Trial,
    Tuned,
    check_root,
    is_tried,
    read_criterion,
    read_study,
    state,
    write_study,
)
from experiments.study.statistics import MIN_SEEDS
from experiments.study.sweep import PlannedRun, Sweep, expand, expand_trials, load_sweep
from experiments.study.tables import markdown, report_text, write_report
from transformer.config import UserError
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
        "seeds", 5, "Number of runs per variant; the seeds are 0, 1, ...", lower_bound=1, flag_values=flags
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
    absl_flags.DEFINE_boolean(
        "dry_run", False, "Only lists the runs, with their states and costs.", flag_values=flags
    )


def main(flags: FlagValues) -> int:
    sweep, root = load_sweep(flags.sweep), Path(flags.root)
    changes = read_changes(flags.set, "set")
    # All configs are checked before the first run.
    runs = expand(sweep, changes, flags.seeds)
    trials = expand_trials(sweep, changes) if sweep.tune else []
    cores = len(os.sched_getaffinity(0))
    if flags.jobs > cores:
        raise UserError(
            f"--jobs is {flags.jobs}, but this machine has {cores} processor cores; give at most {cores}"
        )
    if flags.seeds < MIN_SEEDS:
        print(
            f"warning: {flags.seeds} seeds per variant; with fewer than {MIN_SEEDS}, only differences of "
            "several standard deviations are found",
            file=sys.stderr,
        )
    if flags.dry_run:
        check_root(root, sweep, [] if trials else runs)
        print(_plan_text(root, sweep, [run for run, _ in trials] or runs))
        if trials:
            print(f"these runs tune the variants; {len(runs)} runs with the best values follow")
        return 0
    with lock(root, wait=False):
        try:
            tuned = {}
            if trials:
                tuned = _tune(root, sweep, trials, flags.jobs)
                chosen = {variant: values.chosen for variant, values in tuned.items()}
                runs = expand(sweep, changes, flags.seeds, chosen)
            check_root(root, sweep, runs)
            write_study(root, sweep, runs, tuned, changes)
            return _launch(root, sweep, runs, flags.jobs)
        except KeyboardInterrupt:
            print("interrupted; run the same command again to resume the study")
            return cli.PREEMPTED


def _launch(root: Path, sweep: Sweep, runs: Sequence[PlannedRun], slots: int) -> int:
    states = {run.id: state(Run(root / run.id), run, sweep) for run in runs}
    missing = [run for run in runs if states[run.id] not in ("done", "diverged")]
    counts = Counter(states.values())
    listed = ", ".join(
        f"{counts[name]} {name}" for name in ("done", "diverged") if counts[name] or name == "done"
    )
    print(f"{sweep.name}: {len(runs)} runs, {listed}, {len(missing)} to do", flush=True)
    failed = _run([_job(root, run, sweep.splits) for run in missing], slots)
    study = read_study(root)
    print(f"\n{report_text(study, write_report(root, study))}")
    return 1 if failed else 0


def _tune(
    root: Path, sweep: Sweep, trials: Sequence[tuple[PlannedRun, Mapping[str, Any]]], slots: int
) -> dict[str, Tuned]:
    """Trains every trial, and returns the values of each variant that gave the lowest validation loss.

    Raises:
      UserError: a trial failed, or all trials of a variant diverged.
    """
    check_root(root, sweep, [])
    missing = [run for run, _ in trials if not is_tried(Run(root / run.id), run)]
    done = len(trials) - len(missing)
    print(f"{sweep.name}: {len(trials)} trials for tuning, {done} done, {len(missing)} to do", flush=True)
    _run([_job(root, run, ()) for run in missing], slots)
    for run in missing:
        if not is_tried(folder := Run(root / run.id), run):
            raise UserError(f"a trial failed, see {folder.folder}/log.txt; launch the study again")
    tuned = {}
    for variant in sweep.variants:
        tried = [
            Trial(dict(values), read_criterion(Run(root / run.id), run))
            for run, values in trials
            if run.variant == variant
        ]
        finite = [trial for trial in tried if trial.criterion is not None]
        if not finite:
            raise UserError(f"all trials of variant {variant} diverged; give TUNE other values")
        tuned[variant] = Tuned(min(finite, key=lambda trial: trial.criterion).values, tried)
    return tuned


def _plan_text(root: Path, sweep: Sweep, runs: Sequence[PlannedRun]) -> str:
    """Returns a table of all runs: state, FLOPs and memory of the training, and time left.

    The time is estimated from the runs that are trained: their FLOPs per second.
    """
    described = {run.id: describe(run.config) for run in runs if run.seed == 0}
    # The costs do not depend on the seed, so the other seeds of a variant have those of seed 0.
    by_variant = {run.variant: described[run.id] for run in runs if run.seed == 0}
    costs = {run.id: described.get(run.id, by_variant[run.variant]) for run in runs}
    flops = {run.id: costs[run.id]["flops_per_step"] * run.config.train.steps for run in runs}
    states = {run.id: state(Run(root / run.id), run, sweep) for run in runs}
    trained = [run for run in runs if states[run.id] in ("trained", "done")]
    seconds = sum(Run(root / run.id).result["seconds"] for run in trained)
    rate = sum(flops[run.id] for run in trained) / seconds if trained else None
    rows = [["run", "state", "FLOPs", "memory", "time"], ["---", "---", "---:", "---:", "---:"]]
    for run in runs:
        left = "" if rate is None or run in trained else clock(flops[run.id] / rate)
        memory = costs[run.id]["memory_bytes"]["total"] / 1e9
        rows.append([run.id, states[run.id], f"{flops[run.id]:.2e}", f"{memory:.2f} GB", left])
    return markdown(rows) + f"{sweep.name}: {len(runs)} runs, {len(trained)} trained"


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
            *([command("evaluate", workdir, f"--split={','.join(splits)}")] if splits else []),
        ],
        log=run.folder / "log.txt",
    )


if __name__ == "__main__":
    cli.run(sys.modules[__name__])
