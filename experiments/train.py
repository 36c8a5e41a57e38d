"""Trains a run, or resumes it.

    python -m experiments.train --config=configs/multi30k.py --workdir=runs/m30k --config.train.seed=1
    python -m experiments.train --workdir=runs/m30k
    python -m experiments.train --config=configs/text.py --init_from=runs/m30k --workdir=runs/tuned

The first command starts a run. The second command resumes the run, with the config in config.json of
the run folder. The third command starts a run from the weights and the vocabulary of another run. After
Ctrl-C, SIGTERM or SIGUSR1, the command saves the run and exits with status 75; run the same command again to
resume. Training that diverges ends with status 3.
"""

import contextlib
import logging
import sys
import time
import traceback
from typing import Any

from absl.flags import DEFINE_string, FlagValues

from experiments import cli
from experiments.progress import clock, preparing, training_observer
from experiments.run_folder import Run, Trained
from experiments.stop_signal import PREEMPTED, StopSignal
from transformer.config import ExperimentConfig, UserError, declarations, difference
from transformer.files import atomic_write, full_disk
from transformer.tasks import open_task
from transformer.training.divergence import DIVERGED_FILE, Diverged
from transformer.training.loop import INITIAL_WEIGHTS, Outcome, train

log = logging.getLogger(__name__)

STOPPING = "stopping: saving a checkpoint first"
STOP_SECONDS = 8.0  # from a signal to the end of the current step
RESUME = ", then run the same command again to resume from the last checkpoint"
VOCABULARY_FIELDS = ("data.tokenizer", "data.vocab_size", "data.byte_fallback")
# Besides the fields that may change after training, these may differ from the run of --init_from. The size of
# a table of learned positions shows in the shapes of the weights, which `train` checks.
INDEPENDENT_OF_WEIGHTS = ("model.dropout_rate", "model.dropout_sites", "model.max_positions")


def define_flags(flags: FlagValues) -> None:
    cli.define_config(flags)
    cli.define_workdir(flags)
    DEFINE_string(
        "init_from",
        None,
        "Folder of a run with the same model. A new run starts from its weights (the mean of its last "
        "decode.average_last checkpoints) and uses its vocabulary.",
        flag_values=flags,
    )


def main(flags: FlagValues) -> int:
    cli.set_up_jax()
    run, given = Run(flags.workdir), cli.config(flags)
    config = given or run.config  # refuses a folder that is not a run, before the lock creates the folder
    source = None
    if flags.init_from:
        source = Run(flags.init_from).load()
        if differing := difference(source.config, config, _defines_weights):
            raise UserError(
                f"the weights of {flags.init_from} do not fit this config: {differing}; "
                "set the same values here"
            )
    with run.locked():
        _check_start(run, flags.init_from, source)
        if source is not None and run.identity is None:
            checkpoints = ", ".join(map(str, source.steps))
            log.info("starting from the weights of %s, checkpoint %s", flags.init_from, checkpoints)
        return _train(run, run.begin(given, flags.init_from), source)


def _defines_weights(key: str) -> bool:
    """Returns whether weights that were trained with one value of a field mean nothing with another value."""
    if key.startswith("model."):
        return not declarations(ExperimentConfig)[key].changeable and key not in INDEPENDENT_OF_WEIGHTS
    return key in ("task", *VOCABULARY_FIELDS)


def _check_start(run: Run, init_from: str | None, source: Trained | None) -> None:
    """Checks that a run continues from the weights that it started with.

    Raises:
      UserError: the run started from other weights, or needs `source` for its first step.
    """
    identity, earlier_source = run.identity, run.result.get("init_from")
    if source is None and identity is None and earlier_source is not None:
        raise UserError(
            f"{run.folder} has no checkpoint yet and was to start from the weights of {earlier_source}; "
            f"add --init_from={earlier_source}"
        )
    if source is not None and identity is not None and identity.get(INITIAL_WEIGHTS) != source.params_sha256:
        raise UserError(
            f"{run.folder} did not start from the present weights of {init_from}; leave out --init_from "
            "to resume it, or name another --workdir"
        )


def _train(run: Run, config: ExperimentConfig, source: Trained | None) -> int:
    """Trains a run unless it is trained already; returns the exit status."""
    before = run.result
    if run.is_trained:
        print(f"{run.folder} is already trained: {before['step']} steps in {clock(before['seconds'])}")
        return 0
    started = time.time() - (before.get("seconds") or 0)
    run.write_result(**before | {"status": "running"})
    (run.folder / "error.txt").unlink(missing_ok=True)
    try:
        outcome = _loop(run, config, source)
    except UserError as error:
        reason = "diverged" if isinstance(error, Diverged) else "refused"
        with contextlib.suppress(UserError):  # if the disk is full, this write fails, too
            run.write_result(**before | _failure(started, reason, str(error)))
        raise
    except BaseException as error:
        atomic_write(run.folder / "error.txt", traceback.format_exc())
        run.write_result(**before | _failure(started, "error", repr(error)))
        raise
    (run.folder / DIVERGED_FILE).unlink(missing_ok=True)
    seconds = time.time() - started
    run.write_result(**_result(outcome), init_from=before.get("init_from"), seconds=seconds)
    print(f"{run.folder}: {outcome.step} of {config.train.steps} steps in {clock(seconds)}")
    if outcome.finished:
        return 0
    print(f"saved; resume with python -m experiments.train --workdir={run.folder}")
    return PREEMPTED


def _failure(started: float, reason: str, message: str) -> dict[str, Any]:
    return {"status": "failed", "reason": reason, "message": message, "seconds": time.time() - started}


def _loop(run: Run, config: ExperimentConfig, source: Trained | None) -> Outcome:
    tokenizer, params = (source.tokenizer, source.params) if source else (None, None)
    with full_disk(run.folder, RESUME), StopSignal(STOPPING, STOP_SECONDS) as should_stop:
        with preparing() as progress:
            task = open_task(config, run.folder, progress, run.identity, tokenizer=tokenizer)
        with training_observer(config.train.steps, on_closed=should_stop.request) as observer:
            return train(config, task, run.folder, observer, should_stop, params)


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
