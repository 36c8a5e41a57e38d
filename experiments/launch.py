"""Runs a study: trains and evaluates every variant with every seed, and writes a report.

    python -m experiments.launch --sweep=configs/sweeps/positions.py --root=runs/positions --seeds=5
    python -m experiments.launch --sweep=configs/sweeps/positions.py --root=runs/positions --only='*/0'
    python -m experiments.launch --sweep=configs/sweeps/positions.py --root=runs/positions --executor=slurm

Run the same command again to start only the missing or failed runs; an interrupted run resumes from its last
checkpoint. A run that diverged is not started again. The output of a run is in log.txt of the run folder.
Several launch commands may work on one study at the same time: each run is started once.

With --executor=slurm, the runs become the tasks of an array job; the same command shows their states.
"""

import contextlib
import functools
import os
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags as absl_flags
from absl.flags import FlagValues

from experiments import cli
from experiments.costs import describe
from experiments.run_folder import Run
from experiments.stop_signal import PREEMPTED, StopSignal
from experiments.study.groups import group_job, make_groups
from experiments.study.live import StatusBoard
from experiments.study.plan import Selection, plan_text, run_states
from experiments.study.queue import Job, Slot, command, make_slots, run_jobs
from experiments.study.report import report
from experiments.study.results import has_diverged, has_ended, is_complete, read_criterion
from experiments.study.slurm import SRUN_STOP_SIGNAL, Slurm, on_nodes
from experiments.study.statistics import FEW_SEEDS, MIN_SEEDS
from experiments.study.study_file import Trial, Tuned, check_root, stored_costs, write_study
from experiments.study.sweep import Changes, PlannedRun, Sweep, expand, expand_trials
from experiments.study.sweep_file import load_sweeps
from experiments.study.tasks import (
    applicable,
    check_tasks_root,
    name_of,
    naming,
    read_task_changes,
    refusal_lines,
    write_tasks,
)
from transformer.config import UserError
from transformer.files import lock
from transformer.tasks import task_type
from transformer.training.divergence import Diverged

FINAL_STATES = ("done", "diverged")


def define_flags(flags: FlagValues) -> None:
    absl_flags.DEFINE_string(
        "sweep",
        None,
        "Sweep file; a colon and arguments for the configs of the study may follow.",
        flag_values=flags,
        required=True,
    )
    absl_flags.DEFINE_string("root", None, "Folder of the study.", flag_values=flags, required=True)
    numbers = {
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
    for name, (default, least, text) in numbers.items():
        absl_flags.DEFINE_integer(name, default, text, lower_bound=least, flag_values=flags)
    repeated = {
        "only": "Runs to launch: a task, a variant, VARIANT/SEED, or a pattern such as '*/0'. Default: all.",
        "exclude": "Runs to leave out, as in --only.",
        "set": "Changes a field of the config of every run, for example --set=train.steps=500. With several "
        "tasks, --set=TASK:train.steps=500 changes the runs of one task.",
        "sbatch": "Option of sbatch, for example --sbatch=--partition=gpu.",
    }
    for name, text in repeated.items():
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
    if flags.executor == "slurm":
        launch.submit()
        return 0
    try:
        return launch.run()
    except KeyboardInterrupt:
        print("interrupted; run the same command again to resume the study")
        return PREEMPTED
    except BrokenPipeError:  # the process that reads the output has ended
        cli.discard_output()
        return PREEMPTED


class Launch:
    """One call of the command. All flags and configs are checked before the first run starts."""

    def __init__(self, flags: FlagValues):
        self._flags = flags
        sweeps, self._root = load_sweeps(flags.sweep), Path(flags.root)
        self._name = name_of(sweeps)
        self._changes = read_task_changes(flags.set, list(sweeps))  # by task
        self._sweeps, self._refused = applicable(sweeps, self._changes)
        self._runs = self._expand({})
        self._trials: list[tuple[PlannedRun, Changes]] = []
        for task, sweep in self._sweeps.items():
            if sweep.tune:
                with naming(task):
                    self._trials += expand_trials(sweep, self._changes[task], task)
        self._selection = Selection(flags.only, flags.exclude)
        self._selection.check([*self._runs, *(run for run, _ in self._trials)])
        # Tuning changes the ids of runs, but not their variants and seeds.
        selected = {run.row for run in self._runs if self._selection.includes(run)}
        self._selected_trials = [
            run for run, _ in self._trials if run.row in selected or self._selection.includes(run)
        ]
        self._slots: list[Slot] = []
        self._slurm = Slurm(self._root)
        if flags.vectorize > 1:
            self._check_vectorized()
        if flags.executor == "slurm":
            if flags.fail_fast:
                raise UserError(
                    "--fail_fast cannot be used with Slurm; remove it, and stop runs with scancel"
                )
            if flags.devices_per_run is not None:
                raise UserError(
                    "--devices_per_run cannot be used with Slurm; give an option of sbatch instead, "
                    "such as --sbatch=--gpus=1"
                )
        elif flags.sbatch:
            raise UserError("--sbatch needs --executor=slurm; add --executor=slurm or remove --sbatch")
        else:
            if flags.nodes > 1 and "SLURM_JOB_ID" not in os.environ:
                raise UserError(f"--nodes={flags.nodes} needs Slurm; add --executor=slurm or remove --nodes")
            self._slots = make_slots(flags.jobs or 1, flags.devices_per_run)

    def _expand(self, chosen: Mapping[str, Changes]) -> list[PlannedRun]:
        """Returns the runs of all tasks, in order of seed, with the tuned values in `chosen`, by row."""
        runs = []
        for task, sweep in self._sweeps.items():
            with naming(task):
                values = {
                    run_variant: chosen[row] for run_variant, row in _rows(task, sweep) if row in chosen
                }
                runs += expand(sweep, self._changes[task], self._flags.seeds, values, task)
        return sorted(runs, key=lambda run: run.seed)

    def plan(self) -> str:
        """Returns a table of the selected runs, or of the trials if variants are to be tuned."""
        self._check_root([] if self._trials else self._runs)
        queued = self._slurm.states() if self._flags.executor == "slurm" else {}
        runs = self._selected_trials or [run for run in self._runs if self._selection.includes(run)]
        states = run_states(self._root, self._sweeps, runs, queued)
        text = "\n".join([*refusal_lines(self._refused), plan_text(self._root, self._name, runs, states)])
        if self._trials:
            text += f"\nthese trials tune the variants; {len(self._runs)} runs with the best values follow"
        return text

    def run(self) -> int:
        """Runs missing trials and runs on this machine, writes the report, and returns the exit status."""
        runs = self._runs
        for line in refusal_lines(self._refused):
            print(line)
        with lock(self._root, wait=True):
            self._check_root([] if self._trials else runs)
        if self._trials:
            self._write_study([])
            missing = self._missing_trials()
            num_trials = len(self._selected_trials)
            counts = f"{num_trials} trials for tuning, {num_trials - len(missing)} done"
            self._run_jobs(missing, counts, evaluate=False)
            if failed := self._missing_trials():
                logs = (self._root / run.path / "log.txt" for run in failed)
                log = next(filter(Path.exists, logs), None)
                advice = f"see {log}, then " if log else ""
                count = f"{len(failed)} trial{'s' * (len(failed) != 1)}"
                raise UserError(f"{count} not finished; {advice}launch the study again")
            tuned = self._tuned()
            for row in dict.fromkeys(run.row for run in self._selected_trials):
                if row not in tuned:
                    print(f"{row}: trials that this command does not select are not done yet")
            runs = self._tuned_runs(tuned)
        selected = [run for run in runs if self._selection.includes(run)]
        states = run_states(self._root, self._sweeps, selected, {})
        self._check_weights(states)
        self._write_study(runs)
        missing = [run for run in selected if states[run.path] not in FINAL_STATES]
        counts = Counter(states.values())
        listed = ", ".join(
            f"{counts[name]} {name}" for name in FINAL_STATES if counts[name] or name == "done"
        )
        failures = self._run_jobs(missing, f"{len(selected)} runs, {listed}", evaluate=True)
        self._write_report()
        if failures and set(failures) == {PREEMPTED}:
            return PREEMPTED
        return 1 if failures else 0

    def submit(self) -> None:
        """Submits the missing trials and runs to Slurm, and prints the number of runs in each state."""
        with lock(self._root, wait=True):
            queued, runs, after = self._slurm.states(), self._runs, []
            tuned: dict[str, Tuned] = {}
            self._check_root([] if self._trials else runs)
            if self._trials:
                trials = self._missing_trials()
                self._submit([run.path for run in trials if run.path not in queued])
                waiting = {run.path for run in trials}
                after = [job["id"] for job in self._slurm.jobs if waiting & set(job["runs"])]
                tuned = self._tuned()
                runs = [*self._tuned_runs(tuned), *(run for run in runs if run.row not in tuned)]
            selected = [run for run in runs if self._selection.includes(run)]
            states = run_states(self._root, self._sweeps, selected, queued)
            self._check_weights(states)
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

    def _missing_trials(self) -> list[PlannedRun]:
        return [run for run in self._selected_trials if not self._has_ended(run)]

    def _has_ended(self, run: PlannedRun) -> bool:
        return has_ended(Run(self._root / run.path), run)

    def _tuned(self) -> dict[str, Tuned]:
        """Returns the values with the lowest validation loss, for each row whose trials have all ended.

        Raises:
          UserError: all trials of a variant diverged.
        """
        by_row: dict[str, list[tuple[PlannedRun, Changes]]] = defaultdict(list)
        for run, values in self._trials:
            by_row[run.row].append((run, values))
        tuned = {}
        for row, trials in by_row.items():
            if not all(self._has_ended(run) for run, _ in trials):
                continue
            tried = [
                Trial(dict(values), read_criterion(Run(self._root / run.path), run)) for run, values in trials
            ]
            finite = [trial for trial in tried if trial.criterion is not None]
            if not finite:
                raise UserError(
                    f"all trials of variant {row} diverged; change the values in TUNE, and name "
                    "another --root"
                )
            tuned[row] = Tuned(min(finite, key=lambda trial: trial.criterion).values, tried)
        return tuned

    def _tuned_runs(self, tuned: Mapping[str, Tuned]) -> list[PlannedRun]:
        runs = self._expand({row: values.chosen for row, values in tuned.items()})
        return [run for run in runs if run.row in tuned]

    def _check_weights(self, states: Mapping[str, str]) -> None:
        """Checks that trained runs without all scores have weights, so that they can be scored.

        Raises:
          UserError: a run was stored without weights.
        """
        for path, state in states.items():
            if state == "trained" and not (self._root / path / "checkpoints").is_dir():
                raise UserError(
                    f"{self._root / path} is stored without weights, so it cannot be scored again; restore "
                    "the splits and metrics that it was scored on, or delete the folder to train it again"
                )

    def _check_root(self, runs: Sequence[PlannedRun]) -> None:
        if "" not in self._sweeps:
            check_tasks_root(self._root, self._name)
        for task, sweep in self._sweeps.items():
            check_root(self._root / task, sweep, _of_task(task, runs), self._changes[task])

    def _write_study(self, runs: Sequence[PlannedRun]) -> None:
        with lock(self._root, wait=True):
            self._check_root(runs)
            tuned = self._tuned()
            for task, sweep in self._sweeps.items():
                folder, of_task = self._root / task, _of_task(task, runs)
                chosen = {variant: tuned[row] for variant, row in _rows(task, sweep) if row in tuned}
                costs = _costs(of_task, stored_costs(folder))
                write_study(folder, sweep, of_task, chosen, self._changes[task], costs)
            if "" not in self._sweeps:
                write_tasks(self._root, self._sweeps, self._refused)

    def _write_report(self) -> None:
        with lock(self._root, wait=True):
            print(f"\n{report(self._root)}")

    def _check_vectorized(self) -> None:
        """Checks the flags and the configs of a study whose runs are trained together.

        Raises:
          UserError: they do not allow it.
        """
        if self._flags.executor == "slurm" or self._flags.nodes > 1:
            raise UserError("--vectorize cannot be used with Slurm or --nodes; remove it")
        for run in self._runs:
            task_type(run.config).check_vectorized(run.config)

    def _run_jobs(self, missing: Sequence[PlannedRun], counts: str, evaluate: bool) -> list[int]:
        """Trains the runs, evaluates them unless they are trials, and returns the statuses of failed runs."""
        print(f"{self._name}: {counts}, {len(missing)} to do", flush=True)
        # A trial may diverge: the study then uses other values.
        accepted = (0,) if evaluate else (0, Diverged.exit_status)
        failures = []
        if self._flags.vectorize > 1:
            groups = make_groups(self._root, missing, self._flags.vectorize)
            jobs = [group_job(self._root, group) for group in groups]
            failures = self._run_queue(jobs, (0, Diverged.exit_status))
            if failures and self._flags.fail_fast:
                return failures
            grouped = {run.path for group in groups for run in group}
            diverged = [run for run in missing if has_diverged(Run(self._root / run.path), run)]
            failures += [Diverged.exit_status for run in diverged if evaluate]
            unfinished = [run for run in missing if run.path in grouped and not self._has_ended(run)]
            missing = [run for run in missing if run not in diverged and run not in unfinished]
        return failures + self._run_queue([self._job(run, evaluate) for run in missing], accepted)

    def _run_queue(self, jobs: Sequence[Job], accepted: Sequence[int]) -> list[int]:
        """Runs jobs, and returns the exit statuses that are not accepted."""
        failures = []
        with (
            StopSignal("stopping: current runs save a checkpoint first") as should_stop,
            StatusBoard(jobs, len(self._slots), self._durations()) as board,
            contextlib.closing(
                run_jobs(jobs, self._slots, should_stop, self._flags.retries, board.observe)
            ) as ends,
        ):
            for ended in ends:
                board.ended(ended)
                if ended.status not in accepted:
                    failures.append(ended.status)
                if failures and self._flags.fail_fast:
                    print("stopping at the first failure: current runs save a checkpoint first", flush=True)
                    break
        return failures

    def _durations(self) -> dict[str, list[float]]:
        """Returns the seconds that the trained runs of each row took."""
        durations = defaultdict(list)
        for run in self._runs:
            with contextlib.suppress(UserError):
                result = Run(self._root / run.path).result
                if result.get("status") == "done":
                    durations[run.row].append(result["seconds"])
        return durations

    def _job(self, planned: PlannedRun, evaluate: bool) -> Job:
        run, sweep = Run(self._root / planned.path), self._sweeps[planned.task]
        workdir = f"--workdir={run.folder}"
        evaluation = [command("evaluate", workdir, f"--split={','.join(sweep.splits)}")] if evaluate else []

        training, stop_signal = command("train", workdir), signal.SIGTERM
        if self._flags.nodes > 1:
            training, stop_signal = on_nodes(training, self._flags.nodes), SRUN_STOP_SIGNAL

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


def _of_task(task: str, runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    return [run for run in runs if run.task == task]


def _rows(task: str, sweep: Sweep) -> list[tuple[str, str]]:
    """Returns each variant of a task with its row; see `PlannedRun.row`."""
    return [(variant, f"{task}/{variant}" if task else variant) for variant in sweep.variants]


def _costs(runs: Sequence[PlannedRun], known: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Returns parameters and FLOPs of the training of each variant whose costs are not known."""
    costs = {}
    for run in runs:
        if run.seed == 0 and run.variant not in known:
            cost = describe(run.config)
            flops = cost["flops_per_step"] * run.config.train.steps
            costs[run.variant] = {"parameters": cost["parameters"], "flops": flops}
    return costs


if __name__ == "__main__":
    cli.run(sys.modules[__name__])
