"""Tuning of the variants of a study: the trials that are not done, and the best values."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from experiments.run_folder import Run
from experiments.study.results import has_ended, read_criterion
from experiments.study.study_file import Trial, Tuned
from experiments.study.sweep import Changes, PlannedRun
from transformer.config import UserError


def unfinished(root: Path, runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Returns the runs whose training has not ended."""
    return [run for run in runs if not has_ended(Run(root / run.path), run)]


def tuned_values(root: Path, trials: Sequence[tuple[PlannedRun, Changes]]) -> dict[str, Tuned]:
    """Returns the values with the lowest validation loss, for each row whose trials have all ended.

    Args:
      root: the folder of the study.
      trials: the runs that tune the variants, with the values that each run tries.

    Raises:
      UserError: all trials of a variant diverged.
    """
    by_row: dict[str, list[tuple[PlannedRun, Changes]]] = defaultdict(list)
    for run, values in trials:
        by_row[run.row].append((run, values))
    tuned = {}
    for row, row_trials in by_row.items():
        if unfinished(root, [run for run, _ in row_trials]):
            continue
        tried = [Trial(dict(values), read_criterion(Run(root / run.path), run)) for run, values in row_trials]
        finite = [trial for trial in tried if trial.criterion is not None]
        if not finite:
            raise UserError(
                f"all trials of variant {row} diverged; change the values in TUNE, and name another --root"
            )
        tuned[row] = Tuned(min(finite, key=lambda trial: trial.criterion).values, tried)
    return tuned
