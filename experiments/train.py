"""Trains a run, or resumes it.

    python -m experiments.train --config=configs/multi30k.py --workdir=runs/m30k --config.train.seed=1
    python -m experiments.train --workdir=runs/m30k

The first command starts a run. The second one resumes the run with the config that the run folder stores in
config.json. After Ctrl-C, SIGTERM or SIGUSR1, the command saves the run and exits with status 75; run the
same command again to resume. Training that diverges ends with status 3.
"""

import contextlib
import sys
import time
import traceback
from typing import Any

from absl.flags import FlagValues

from experiments import cli
from experiments.progress import clock, preparing, training_observer
from experiments.run_folder import Run
from experiments.stop_signal import PREEMPTED, StopSignal
from transformer.config import ExperimentConfig, UserError
from transformer.files import atomic_write, full_disk
from transformer.tasks import open_task
from transformer.training.divergence import DIVERGED_FILE, Diverged
from transformer.training.loop import Outcome, train

STOPPING = "stopping: saving a checkpoint first"
STOP_SECONDS = 8.0  # from a signal to the end of the step at work
RESUME = ", then run the same command again to resume from the last checkpoint"


def define_flags(flags: FlagValues) -> None:
    cli.define_config(flags)
    cli.define_workdir(flags)


def main(flags: FlagValues) -> int:
    cli.set_up_jax()
    run, config = Run(flags.workdir), cli.config(flags)
    if config is None:
        _ = run.config  # refuses a folder that is not a run, before the lock creates the folder
    with run.locked():
        return _train(run, run.begin(config))


def _train(run: Run, config: ExperimentConfig) -> int:
    before = run.result
    if run.is_trained:
        print(f"{run.folder} is already trained: {before['step']} steps in {clock(before['seconds'])}")
        return 0
    started = time.time() - before.get("seconds", 0)
    run.write_result(**before | {"status": "running"})
    (run.folder / "error.txt").unlink(missing_ok=True)
    try:
        outcome = _loop(run, config)
    except UserError as error:
        reason = "diverged" if isinstance(error, Diverged) else "refused"
        with contextlib.suppress(UserError):  # writing this file fails, too, if the disk is full
            run.write_result(**before | _failure(started, reason, str(error)))
        raise
    except BaseException as error:
        atomic_write(run.folder / "error.txt", traceback.format_exc())
        run.write_result(**before | _failure(started, "error", repr(error)))
        raise
    (run.folder / DIVERGED_FILE).unlink(missing_ok=True)
    seconds = time.time() - started
    run.write_result(**_result(outcome), seconds=seconds)
    print(f"{run.folder}: {outcome.step} of {config.train.steps} steps in {clock(seconds)}")
    if outcome.finished:
        return 0
    print(f"saved; resume with python -m experiments.train --workdir={run.folder}")
    return PREEMPTED


def _failure(started: float, reason: str, message: str) -> dict[str, Any]:
    return {"status": "failed", "reason": reason, "message": message, "seconds": time.time() - started}


def _loop(run: Run, config: ExperimentConfig) -> Outcome:
    with full_disk(run.folder, RESUME), StopSignal(STOPPING, STOP_SECONDS) as should_stop:
        with preparing() as progress:
            task = open_task(config, run.folder, progress, run.identity)
        with training_observer(config.train.steps, on_closed=should_stop.request) as observer:
            return train(config, task, run.folder, observer, should_stop)


def _result(outcome: Outcome) -> dict[str, Any]:
    return {
        "identity": dict(outcome.identity),
        "status": "done" if outcome.finished else "preempted",
        "step": outcome.step,
        "tokens_seen": outcome.tokens_seen,
        "validation": outcome.validation,
        "params_sha256": outcome.params_sha256,
    }


if __name__ == "__main__":
    cli.run(sys.modules[__name__])
