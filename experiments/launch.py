"""Runs a study: trains and evaluates every variant with every seed, and writes a report.

    python -m experiments.launch --sweep=configs/sweeps/positions.py --root=runs/positions --seeds=5
    python -m experiments.launch --sweep=configs/sweeps/positions.py --root=runs/positions --only='*/0'
    python -m experiments.launch --sweep=configs/sweeps/positions.py --root=runs/positions --executor=slurm

Run the same command again to start only the missing or failed runs; an interrupted run resumes from its last
checkpoint. A run that diverged is not started again. The output of a run is in log.txt of the run folder.
Several launch commands may work on one study at the same time: each run is started once.

With --executor=slurm, the runs become the tasks of an array job; the same command shows their states.
"""

import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from absl import flags as absl_flags
from absl.flags import FlagValues

from experiments import cli
from experiments.process import discard_output
from experiments.stop_signal import PREEMPTED
from experiments.study.local_runs import LocalRuns
from experiments.study.plan import (
    Selection,
    check_data,
    check_weights,
    plan_text,
    run_states,
    training_costs,
)
from experiments.study.queue import Slot, make_slots
from experiments.study.report import report
from experiments.study.slurm import Slurm
from experiments.study.statistics import FEW_SEEDS, MIN_SEEDS
from experiments.study.study_file import Tuned, check_root, stored_costs, write_study
from experiments.study.sweep import Changes, PlannedRun, Sweep, expand, expand_trials, row_name
from experiments.study.sweep_file import load_sweeps
from experiments.study.tasks import (
    applicable,
    check_tasks_differ,
    check_tasks_root,
    name_of,
    naming,
    read_task_changes,
    refusal_lines,
    write_tasks,
)
from experiments.study.tuning import tuned_values, unfinished
from transformer.config import UserError
from transformer.files import lock
from transformer.tasks import task_type

T = TypeVar("T")
FINAL_STATES = ("done", "diverged")
# Flags with a number: default, smallest value and help.
NUMBERS = {
    "seeds": (5, 1, "Number of runs per variant; the seeds are 0, 1, ..."),
    "jobs": (
        None,
        1,
        "Number of runs at the same time, which share the GPUs of this machine, or the cores if it has "
        "no GPU. Default: 1; with Slurm, no limit.",
    ),
    "devices_per_run": (None, 1, "GPUs (or cores) per run. Default: an equal share."),
    "nodes": (1, 1, "Nodes of Slurm per run. Each node has one process, which uses all devices there."),
    "vectorize": (
        1,
        1,
        "Runs per program: trains up to this many runs together that differ only in seed, learning rate, "
        "dropout rate and label smoothing.",
    ),
    "retries": (10, 0, "Largest number of restarts of a run that is preempted."),
}
# Flags that may be given several times, with their help.
REPEATED = {
    "only": "Runs to launch: a task, a variant, VARIANT/SEED, or a pattern such as '*/0'. Default: all.",
    "exclude": "Runs to leave out, as in --only.",
    "set": "Changes a field of the config of every run, for example --set=train.steps=500. With several "
    "tasks, --set=TASK:train.steps=500 changes the runs of one task.",
    "sbatch": "Option of sbatch, for example --sbatch=--partition=gpu.",
}


def define_flags(flags: FlagValues) -> None:
    absl_flags.DEFINE_string(
        "sweep",
        None,
        "Sweep file; a colon and arguments for the configs of the study may follow.",
        flag_values=flags,
        required=True,
    )
    absl_flags.DEFINE_string("root", None, "Folder of the study.", flag_values=flags, required=True)
    for name, (default, least, text) in NUMBERS.items():
        absl_flags.DEFINE_integer(name, default, text, lower_bound=least, flag_values=flags)
    for name, text in REPEATED.items():
        text += " May be given several times."
        absl_flags.DEFINE_multi_string(name, [], text, flag_values=flags)
    absl_flags.DEFINE_enum(
        "executor",
        "local",
        ["local", "slurm"],
        "Where runs execute: on this machine, or as tasks of Slurm.",
        flag_values=flags,
    )
    absl_flags.DEFINE_boolean("fail_fast", False, "Stops the study at the first failure.", flag_values=flags)
    absl_flags.DEFINE_boolean(
        "dry_run", False, "Only lists the runs, with their states and costs.", flag_values=flags
    )


def main(flags: FlagValues) -> int:
    launch = Launch(flags)
    if flags.seeds < MIN_SEEDS:
        print(
            f"warning: {flags.seeds} seed{'s' * (flags.seeds != 1)} per variant. {FEW_SEEDS}",
            file=sys.stderr,
        )
    if flags.dry_run:
        print(launch.plan())
        return 0
    launch.check_data()
    if flags.executor == "slurm":
        launch.submit()
        return 0
    try:
        return launch.run()
    except KeyboardInterrupt:
        print("interrupted; run the same command again to resume the study")
        return PREEMPTED
    except BrokenPipeError:  # the process that reads the output has ended
        discard_output()
        return PREEMPTED


def _check_flags(flags: FlagValues) -> None:
    if flags.vectorize > 1 and (flags.executor == "slurm" or flags.nodes > 1):
        raise UserError("--vectorize cannot be used with Slurm or --nodes; remove it")
    if flags.executor == "slurm":
        if flags.fail_fast:
            raise UserError("--fail_fast cannot be used with Slurm; remove it, and stop runs with scancel")
        if flags.devices_per_run is not None:
            raise UserError(
                "--devices_per_run cannot be used with Slurm; give an option of sbatch instead, "
                "such as --sbatch=--gpus=1"
            )
        return
    if flags.sbatch:
        raise UserError("--sbatch needs --executor=slurm; add --executor=slurm or remove --sbatch")
    if flags.nodes > 1 and "SLURM_JOB_ID" not in os.environ:
        raise UserError(f"--nodes={flags.nodes} needs Slurm; add --executor=slurm or remove --nodes")


class Launch:
    """One call of the command. All flags, configs and data are checked before the first run starts."""

    def __init__(self, flags: FlagValues):
        _check_flags(flags)
        self._flags = flags
        sweeps, self._root = load_sweeps(flags.sweep), Path(flags.root)
        self._name = name_of(sweeps)
        self._changes = read_task_changes(flags.set, list(sweeps))  # by task
        self._sweeps, self._refused = applicable(sweeps, self._changes)
        self._runs = self._expand({})
        check_tasks_differ(self._runs)
        self._trials: list[tuple[PlannedRun, Changes]] = []
        for task, sweep in self._sweeps.items():
            if sweep.tune:
                with naming(task):
                    self._trials += expand_trials(sweep, self._changes[task], task)
        self._selection = Selection(flags.only, flags.exclude)
        self._selection.check([*self._runs, *(run for run, _ in self._trials)], self._refused)
        # Tuning changes the ids of runs, but not their variants and seeds.
        selected = [run for run in self._runs if self._selection.includes(run)]
        rows = {run.row for run in selected}
        self._selected_trials = [
            run for run, _ in self._trials if run.row in rows or self._selection.includes(run)
        ]
        self._first = self._selected_trials or selected  # tuning precedes the runs
        self._slurm = Slurm(self._root)
        self._slots: list[Slot] = []
        if flags.executor == "local":
            self._slots = make_slots(flags.jobs or 1, flags.devices_per_run)
        if flags.vectorize > 1:
            for run in self._runs:
                task_type(run.config).check_vectorized(run.config)

    def _expand(self, chosen: Mapping[str, Changes]) -> list[PlannedRun]:
        """Returns the runs of all tasks, in order of seed, with the tuned values in `chosen`, by row."""
        runs = []
        for task, sweep in self._sweeps.items():
            with naming(task):
                values = _by_variant(chosen, task, sweep)
                runs += expand(sweep, self._changes[task], self._flags.seeds, values, task)
        return sorted(runs, key=lambda run: run.seed)

    def plan(self) -> str:
        """Returns a table of the selected runs, or of the trials if variants are to be tuned."""
        self._check_root([] if self._trials else self._runs)
        queued = self._slurm.states() if self._flags.executor == "slurm" else {}
        states = run_states(self._root, self._sweeps, self._first, queued)
        table = plan_text(self._root, self._name, self._first, states)
        text = "\n".join([*refusal_lines(self._refused), table])
        if self._trials:
            text += f"\nthese trials tune the variants; {len(self._runs)} runs with the best values follow"
        return text

    def check_data(self) -> None:
        """Checks that the data of the selected trials, or else of the selected runs, exists."""
        self._check_root([] if self._trials else self._runs)
        check_data(self._root, self._first)

    def run(self) -> int:
        """Runs missing trials and runs on this machine, writes the report, and returns the exit status."""
        runs = self._runs
        for line in refusal_lines(self._refused):
            print(line)
        with lock(self._root, wait=True):
            self._check_root([] if self._trials else runs)
        if self._trials:
            self._write_study([])
            missing = unfinished(self._root, self._selected_trials)
            num_trials = len(self._selected_trials)
            counts = f"{num_trials} trials for tuning, {num_trials - len(missing)} done"
            self._train(missing, counts, evaluate=False)
            if failed := unfinished(self._root, self._selected_trials):
                logs = (self._root / run.path / "log.txt" for run in failed)
                log = next(filter(Path.exists, logs), None)
                advice = f"see {log}, then " if log else ""
                count = f"{len(failed)} trial{'s' * (len(failed) != 1)}"
                raise UserError(f"{count} not finished; {advice}launch the study again")
            tuned = tuned_values(self._root, self._trials)
            for row in dict.fromkeys(run.row for run in self._selected_trials):
                if row not in tuned:
                    print(f"{row}: trials that this command does not select are not done yet")
            runs = self._tuned_runs(tuned)
        selected = [run for run in runs if self._selection.includes(run)]
        states = run_states(self._root, self._sweeps, selected, {})
        check_weights(self._root, states)
        self._write_study(runs)
        missing = [run for run in selected if states[run.path] not in FINAL_STATES]
        counts = Counter(states.values())
        listed = ", ".join(
            f"{counts[name]} {name}" for name in FINAL_STATES if counts[name] or name == "done"
        )
        failures = self._train(missing, f"{len(selected)} runs, {listed}", evaluate=True)
        self._write_report()
        if failures and set(failures) == {PREEMPTED}:
            return PREEMPTED
        return 1 if failures else 0

    def _train(self, missing: Sequence[PlannedRun], counts: str, evaluate: bool) -> list[int]:
        """Prints the number of runs, trains the missing ones, and returns the statuses of failed runs."""
        print(f"{self._name}: {counts}, {len(missing)} to do", flush=True)
        flags = self._flags
        local = LocalRuns(
            self._root,
            self._sweeps,
            self._runs,
            self._slots,
            flags.retries,
            flags.nodes,
            flags.vectorize,
            flags.fail_fast,
        )
        return local.train(missing, evaluate)

    def submit(self) -> None:
        """Submits the missing trials and runs to Slurm, and prints the number of runs in each state."""
        with lock(self._root, wait=True):
            queued, runs, after = self._slurm.states(), self._runs, []
            tuned: dict[str, Tuned] = {}
            self._check_root([] if self._trials else runs)
            if self._trials:
                trials = unfinished(self._root, self._selected_trials)
                self._submit([run.path for run in trials if run.path not in queued])
                waiting = {run.path for run in trials}
                after = [job["id"] for job in self._slurm.jobs if waiting & set(job["runs"])]
                tuned = tuned_values(self._root, self._trials)
                runs = [*self._tuned_runs(tuned), *(run for run in runs if run.row not in tuned)]
            selected = [run for run in runs if self._selection.includes(run)]
            states = run_states(self._root, self._sweeps, selected, queued)
            check_weights(self._root, states)
            missing = [run.label for run in selected if states[run.path] not in FINAL_STATES]
            self._submit([name for name in missing if name not in queued], after)
        self._write_study([run for run in runs if not self._trials or run.row in tuned])
        counts = ", ".join(f"{count} {name}" for name, count in sorted(Counter(states.values()).items()))
        print(f"{self._name}: {len(selected)} runs, {counts}")
        if missing:
            print("launch again with the same flags to see the states and to submit failed runs again")
        else:
            self._write_report()

    def _submit(self, names: Sequence[str], after: Sequence[str] = ()) -> None:
        if not names:
            return
        flags = self._flags
        arguments = [f"--sweep={flags.sweep}", f"--root={flags.root}", f"--seeds={flags.seeds}"]
        if flags.nodes > 1:  # the script requeues a preempted task, so `launch` need not start the run again
            arguments += [f"--nodes={flags.nodes}", "--retries=0"]
        arguments += [f"--set={change}" for change in flags.set]
        job = self._slurm.submit(
            self._name, names, arguments, flags.sbatch, flags.jobs, flags.retries, flags.nodes, after
        )
        print(f"submitted array job {job}: {len(names)} runs")

    def _tuned_runs(self, tuned: Mapping[str, Tuned]) -> list[PlannedRun]:
        runs = self._expand({row: values.chosen for row, values in tuned.items()})
        return [run for run in runs if run.row in tuned]

    def _check_root(self, runs: Sequence[PlannedRun]) -> None:
        if "" not in self._sweeps:
            check_tasks_root(self._root, self._name)
        for task, sweep in self._sweeps.items():
            check_root(self._root / task, sweep, _of_task(task, runs), self._changes[task])

    def _write_study(self, runs: Sequence[PlannedRun]) -> None:
        with lock(self._root, wait=True):
            self._check_root(runs)
            tuned = tuned_values(self._root, self._trials)
            for task, sweep in self._sweeps.items():
                folder, of_task = self._root / task, _of_task(task, runs)
                chosen = _by_variant(tuned, task, sweep)
                costs = training_costs(of_task, stored_costs(folder))
                write_study(folder, sweep, of_task, chosen, self._changes[task], costs)
            if "" not in self._sweeps:
                write_tasks(self._root, self._sweeps, self._refused)

    def _write_report(self) -> None:
        with lock(self._root, wait=True):
            print(f"\n{report(self._root)}")


def _of_task(task: str, runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    return [run for run in runs if run.task == task]


def _by_variant(by_row: Mapping[str, T], task: str, sweep: Sweep) -> dict[str, T]:
    """Returns the values of a task by variant, from values by row; see `PlannedRun.row`."""
    rows = {variant: row_name(task, variant) for variant in sweep.variants}
    return {variant: by_row[row] for variant, row in rows.items() if row in by_row}


if __name__ == "__main__":
    cli.run(sys.modules[__name__])
