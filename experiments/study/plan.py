"""Plan of a launch: the selected runs, their states and their costs."""

import dataclasses
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.costs import describe
from experiments.progress import clock
from experiments.run_folder import Run
from experiments.study.queue import is_at_work
from experiments.study.results import has_ended, state
from experiments.study.sweep import PlannedRun, Sweep
from experiments.study.tables import markdown
from experiments.study.tasks import naming
from transformer.config import UserError, result_hash
from transformer.tasks import task_type

TRAINED_STATES = ("trained", "done")


class Selection(NamedTuple):
    """Patterns that select the runs to launch, as in `--only` and `--exclude`.

    A pattern matches the name of a variant, VARIANT/SEED or the id of a run; `*` stands for any text. If
    there are several tasks, it also matches a task, TASK/VARIANT, TASK/VARIANT/SEED or the path of a run.
    """

    only: Sequence[str] = ()
    exclude: Sequence[str] = ()

    def includes(self, run: PlannedRun) -> bool:
        """Returns whether a run is to be launched."""
        return (not self.only or _matches(run, self.only)) and not _matches(run, self.exclude)

    def check(self, runs: Iterable[PlannedRun], refused: Mapping[str, Mapping[str, str]]) -> None:
        """Checks that every pattern matches a run.

        Args:
          runs: the runs of the study.
          refused: by task, the variants that do not apply and the reasons.

        Raises:
          UserError: a pattern matches no run.
        """
        reasons = {
            f"{task}/{variant}": reason
            for task, variants in refused.items()
            for variant, reason in variants.items()
        }
        runs = list(runs)
        for name, patterns in self._asdict().items():
            for pattern in patterns:
                if not any(_matches(run, [pattern]) for run in runs):
                    if pattern in reasons:
                        raise UserError(f"--{name} has {pattern!r}, which does not apply: {reasons[pattern]}")
                    forms = "a task, a variant, TASK/VARIANT" if runs[0].task else "a variant, VARIANT/SEED"
                    raise UserError(
                        f"--{name} has {pattern!r}, which matches no run; give {forms} or a pattern, such as "
                        f"{runs[0].row} or '*/0'"
                    )


def _matches(run: PlannedRun, patterns: Sequence[str]) -> bool:
    names = [run.variant, f"{run.variant}/{run.seed}", run.id]
    if run.task:
        names += [run.task, run.row, run.label, run.path]
    return any(
        name == pattern or fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns
    )


def run_states(
    root: Path, sweeps: Mapping[str, Sweep], runs: Sequence[PlannedRun], queued: Mapping[str, str]
) -> dict[str, str]:
    """Returns the state of each run, by path.

    The state is that in `queued`, "at work" if a local launcher is at work on the run, or that of
    `results.state`.

    Args:
      root: the folder of the study.
      sweeps: the study of each task.
      runs: the runs.
      queued: the states of the runs in Slurm's queue, by path or by label.
    """
    states = {}
    for run in runs:
        folder = root / run.path
        queue_state = queued.get(run.path) or queued.get(run.label)
        states[run.path] = queue_state or (
            "at work" if is_at_work(folder) else state(Run(folder), run, sweeps[run.task])
        )
    return states


def check_weights(root: Path, states: Mapping[str, str]) -> None:
    """Checks that trained runs without all scores have weights, so that they can be scored.

    Raises:
      UserError: a run was stored without weights.
    """
    for path, run_state in states.items():
        if run_state == "trained" and not (root / path / "checkpoints").is_dir():
            raise UserError(
                f"{root / path} is stored without weights, so it cannot be scored again; restore the splits "
                "and metrics that it was scored on, or delete the folder to train it again"
            )


def check_data(root: Path, runs: Iterable[PlannedRun]) -> None:
    """Checks that the data of the runs that have not started exists.

    Raises:
      UserError: see `Task.check_data`.
    """
    checked = []
    for run in runs:
        folder, key = root / run.path, (run.config.task, run.config.data)
        if key in checked or (folder / "checkpoints").is_dir() or has_ended(Run(folder), run):
            continue
        with naming(run.task):
            task_type(run.config).check_data(run.config)
        checked.append(key)


def training_costs(
    runs: Iterable[PlannedRun], known: Mapping[str, dict[str, float]]
) -> dict[str, dict[str, float]]:
    """Returns parameters and FLOPs of the training of each variant whose costs are not known."""
    costs = {}
    for run in runs:
        if run.seed == 0 and run.variant not in known:
            cost = describe(run.config)
            flops = cost["flops_per_step"] * run.config.train.steps
            costs[run.variant] = {"parameters": cost["parameters"], "flops": flops}
    return costs


def plan_text(root: Path, name: str, runs: Sequence[PlannedRun], states: Mapping[str, str]) -> str:
    """Returns a table of all runs: state, FLOPs and memory of the training, and time left.

    The time left is estimated from the FLOPs per second of the trained runs of the task; it is unknown
    before the first of them.

    Args:
      root: the folder of the study.
      name: the name of the study.
      runs: the runs.
      states: the state of each run; see `run_states`.
    """
    by_config: dict[str, dict[str, Any]] = {}
    costs = {}
    for run in runs:
        train = dataclasses.replace(run.config.train, seed=0)  # the costs do not depend on the seed
        digest = result_hash(dataclasses.replace(run.config, train=train))
        if digest not in by_config:
            with naming(run.task):
                by_config[digest] = describe(run.config)
        costs[run.path] = by_config[digest]
    flops = {run.path: costs[run.path]["flops_per_step"] * run.config.train.steps for run in runs}
    trained = [run for run in runs if states[run.path] in TRAINED_STATES]
    rates = {}
    for task in {run.task for run in trained}:
        paths = [run.path for run in trained if run.task == task]
        seconds = sum(Run(root / path).result["seconds"] for path in paths)
        rates[task] = sum(flops[path] for path in paths) / seconds
    rows = [["run", "state", "training FLOPs", "memory", "time left"], ["---", "---", "---:", "---:", "---:"]]
    for run in runs:
        left = clock(flops[run.path] / rates[run.task]) if run.task in rates else "unknown"
        left = "-" if states[run.path] in TRAINED_STATES else left
        memory = costs[run.path]["memory_bytes"]["total"] / 1e6
        rows.append([run.path, states[run.path], f"{flops[run.path]:.2e}", f"{memory:,.0f} MB", left])
    return markdown(rows) + f"{name}: {len(runs)} runs, {len(trained)} trained"
