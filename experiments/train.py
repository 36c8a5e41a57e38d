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
import sys
import time
import traceback
from typing import Any, NamedTuple

from absl.flags import DEFINE_string, FlagValues

from experiments import cli
from experiments.progress import clock, preparing, training_observer
from experiments.run_folder import Run, Trained
from experiments.stop_signal import PREEMPTED, StopSignal
from transformer.config import ExperimentConfig, UserError, difference
from transformer.files import atomic_write, full_disk
from transformer.tasks import open_task
from transformer.training.divergence import DIVERGED_FILE, Diverged
from transformer.training.loop import INITIAL_WEIGHTS, Outcome, train

STOPPING = "stopping: saving a checkpoint first"
STOP_SECONDS = 8.0  # from a signal to the end of the current step
RESUME = ", then run the same command again to resume from the last checkpoint"
VOCABULARY_FIELDS = ("data.tokenizer", "data.vocab_size", "data.byte_fallback")
# Fields of the model that may differ from those of the run that --init_from names. The size of a table of
# learned positions shows in the shapes of the weights, which `train` checks.
FREE_FIELDS = (
    "model.dropout_rate",
    "model.dropout_sites",
    "model.max_positions",
    "model.overflow",
    "model.dtype",
)


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
    run, config = Run(flags.workdir), cli.config(flags)
    if config is None:
        _ = run.config  # refuses a folder that is not a run, before the lock creates the folder
    source = None
    if flags.init_from:
        source = Source(flags.init_from, Run(flags.init_from).load())
        source.check_fits(config or run.config)
    with run.locked():
        config = run.begin(config)
        _check_start(run, source)
        return _train(run, config, source)


class Source(NamedTuple):
    """The run whose weights another run starts from.

    Attributes:
      folder: the run folder.
      trained: the model.
    """

    folder: str
    trained: Trained

    def check_fits(self, config: ExperimentConfig) -> None:
        """Checks that a run with this config can start from the weights.

        Raises:
          UserError: the config has another task, another model or another vocabulary.
        """
        differing = difference(self.trained.config, config, _defines_weights)
        if differing:
            raise UserError(
                f"the weights of {self.folder} do not fit this config: {differing}; set the same values here"
            )


def _defines_weights(key: str) -> bool:
    """Returns whether weights trained with one value of a field mean nothing with another value."""
    return key in ("task", *VOCABULARY_FIELDS) or (key.startswith("model.") and key not in FREE_FIELDS)


def _check_start(run: Run, source: Source | None) -> None:
    """Checks that a run continues from where it started.

    Raises:
      UserError: the run started from other weights, or needs `source` for its first step.
    """
    identity, origin = run.identity, run.result.get("init_from")
    if source is None:
        if identity is None and origin is not None:
            raise UserError(
                f"{run.folder} has no checkpoint yet and was to start from the weights of {origin}; "
                f"add --init_from={origin}"
            )
    elif identity is not None and identity.get(INITIAL_WEIGHTS) != source.trained.params_sha256:
        raise UserError(
            f"{run.folder} did not start from the present weights of {source.folder}; leave out --init_from "
            "to resume it, or name another --workdir"
        )


def _train(run: Run, config: ExperimentConfig, source: Source | None) -> int:
    before = run.result
    if run.is_trained:
        print(f"{run.folder} is already trained: {before['step']} steps in {clock(before['seconds'])}")
        return 0
    started = time.time() - before.get("seconds", 0)
    if source is not None:
        before |= {"init_from": source.folder}
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
    origin = {"init_from": before["init_from"]} if "init_from" in before else {}
    run.write_result(**_result(outcome), **origin, seconds=seconds)
    print(f"{run.folder}: {outcome.step} of {config.train.steps} steps in {clock(seconds)}")
    if outcome.finished:
        return 0
    print(f"saved; resume with python -m experiments.train --workdir={run.folder}")
    return PREEMPTED


def _failure(started: float, reason: str, message: str) -> dict[str, Any]:
    return {"status": "failed", "reason": reason, "message": message, "seconds": time.time() - started}


def _loop(run: Run, config: ExperimentConfig, source: Source | None) -> Outcome:
    trained = source.trained if source else None
    with full_disk(run.folder, RESUME), StopSignal(STOPPING, STOP_SECONDS) as should_stop:
        with preparing() as progress:
            tokenizer = trained.tokenizer if trained else None
            task = open_task(config, run.folder, progress, run.identity, tokenizer=tokenizer)
        with training_observer(config.train.steps, on_closed=should_stop.request) as observer:
            params = trained.params if trained else None
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
