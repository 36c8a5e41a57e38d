"""Trains several runs in one program. `launch --vectorize` starts this command.

    python -m experiments.vectorize --workdir=runs/a --workdir=runs/b

The runs may differ only in their seed, learning rate, dropout rate and label smoothing. Each folder has the
config.json of its run, and becomes an ordinary run folder. Runs that are trained or have diverged already are
left out. A run that diverges does not stop the others; the command then ends with status 3. Signals stop it
as they stop `train`.
"""

import contextlib
import sys
from collections.abc import Sequence

import jax
from absl.flags import DEFINE_multi_string, FlagValues

from experiments import cli
from experiments.process import set_up_jax
from experiments.progress import TrainingLines, preparing
from experiments.run_folder import Run, distinct_runs
from experiments.run_result import TrainingResult
from experiments.stop_signal import PREEMPTED, STOP_SECONDS, STOPPING, StopSignal
from transformer.config import UserError, difference
from transformer.files import full_disk
from transformer.tasks import open_task, task_type
from transformer.training.divergence import Diverged
from transformer.training.session import Session
from transformer.training.vectorized import TRACED_FIELDS, train_vectorized


def define_flags(flags: FlagValues) -> None:
    DEFINE_multi_string(
        "workdir",
        None,
        "Folder of a run with a config.json. May be given several times.",
        flag_values=flags,
        required=True,
    )


def main(flags: FlagValues) -> int:
    set_up_jax()
    runs = distinct_runs(flags.workdir)
    with contextlib.ExitStack() as stack:
        for run in runs:
            check_vectorized(runs[0], run)
            stack.enter_context(run.locked())
        runs = [run for run in runs if not run.is_trained and run.result.get("reason") != "diverged"]
        return _train(runs) if runs else 0


def check_vectorized(first: Run, run: Run) -> None:
    """Checks that one program can train both runs.

    Raises:
      UserError: it cannot.
    """
    config = run.config
    task_type(config).check_vectorized(config)
    if differing := difference(first.config, config, lambda key: key not in TRACED_FIELDS):
        raise UserError(f"{first.folder} and {run.folder} cannot be trained together: {differing}")
    if run.identity is None and run.result.get("init_from") is not None:
        raise UserError(f"{run.folder} starts from the weights of another run; train it by itself")


def _train(runs: Sequence[Run]) -> int:
    """Trains the runs, records the results, and returns the exit status."""
    if jax.default_backend() == "cpu":
        print("warning: on a CPU, runs in one program are slower than one after the other", file=sys.stderr)
    results = [TrainingResult(run) for run in runs]
    try:
        with full_disk(runs[0].folder), StopSignal(STOPPING, STOP_SECONDS) as should_stop:
            with preparing() as progress:
                tasks = [open_task(run.config, run.folder, progress, run.identity) for run in runs]
            sessions = [
                Session(run.config, task, run.folder, TrainingLines(should_stop.request, f"{run.folder}: "))
                for run, task in zip(runs, tasks, strict=True)
            ]
            outcomes = train_vectorized(sessions, should_stop)
    except BaseException as error:
        for result in results:
            result.failed(error)
        raise
    statuses = []
    for run, result, outcome in zip(runs, results, outcomes, strict=True):
        if isinstance(outcome, Diverged):
            print(f"error: {outcome}", file=sys.stderr)
            result.failed(outcome)
            statuses.append(Diverged.exit_status)
        else:
            result.ended(outcome, run.config.train.steps)
            statuses.append(0 if outcome.finished else PREEMPTED)
    return max(statuses)


if __name__ == "__main__":
    cli.run(sys.modules[__name__])
