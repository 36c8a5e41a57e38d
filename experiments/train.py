"""Trains a run, or resumes it.

    python -m experiments.train --config=configs/multi30k.py --workdir=runs/m30k --config.train.seed=1
    python -m experiments.train --workdir=runs/m30k
    python -m experiments.train --config=configs/text.py --init_from=runs/m30k --workdir=runs/tuned

The first command starts a run. The second command resumes the run, with the config in config.json of
the run folder. The third command starts a run from the weights and the vocabulary of another run. After
Ctrl-C, SIGTERM or SIGUSR1, the command saves the run and exits with status 75; run the same command again to
resume. Training that diverges ends with status 3.

With several hosts, start the same command on each of them; see docs/accelerators.md.
"""

import contextlib
import logging
import sys
import time
from typing import Any

import jax
from absl.flags import DEFINE_string, FlagValues

from experiments import cli, hosts
from experiments.profiler import profiling, read_steps
from experiments.progress import clock, preparing, training_observer
from experiments.run_folder import Run
from experiments.run_result import TrainingResult
from experiments.stop_signal import PREEMPTED, STOP_SECONDS, STOPPING, StopSignal
from experiments.trained_model import Trained, load_trained
from transformer.config import ExperimentConfig, UserError, declarations, difference, from_dict, to_dict
from transformer.data.tokenizer import Tokenizer
from transformer.files import full_disk
from transformer.tasks import open_task
from transformer.tasks.task import Task
from transformer.training.loop import train
from transformer.training.processes import agreed, broadcast, is_first
from transformer.training.session import INITIAL_WEIGHTS, Outcome

log = logging.getLogger(__name__)

VISIBLE_SECONDS = 10.0  # until a new folder is visible on all hosts of a network file system
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
    DEFINE_string(
        "profile",
        None,
        "Steps to profile, such as 20:25. The folder profile/ of the run gets the profile, for XProf.",
        flag_values=flags,
    )
    hosts.define_flags(flags)


def main(flags: FlagValues) -> int:
    return hosts.run(flags, lambda: _main(flags))


def _main(flags: FlagValues) -> int:
    with agreed():
        run, given, source = _inputs(flags)
        profile_steps = None if flags.profile is None else read_steps(flags.profile)
    with contextlib.ExitStack() as stack:
        values = None
        with agreed():
            if is_first():
                stack.enter_context(run.locked())
                values = _begin(run, given, source, flags.init_from)
        if (values := broadcast(values)) is None:
            return 0
        config, params_sha256 = from_dict(values), broadcast(source and source.params_sha256)
        with agreed():
            _check_equal(run, config, given, source, params_sha256)
        if not is_first():
            return _status(_loop(run, config, source, profile_steps))
        return _train(run, config, source, profile_steps)


def _inputs(flags: FlagValues) -> tuple[Run, ExperimentConfig | None, Trained | None]:
    """Returns the run, the config of the command line, and the run of --init_from.

    Raises:
      UserError: one of them cannot be read, or the weights of --init_from do not fit the config.
    """
    run, given = Run(flags.workdir), cli.config(flags)
    config = given or run.config  # refuses a folder that is not a run, before the lock creates the folder
    if unread := cli.unread_fields(flags, config):
        log.info("fields without effect in this config: %s", ", ".join(unread))
    source = None
    if flags.init_from:
        source = load_trained(Run(flags.init_from))
        if differing := difference(source.config, config, _defines_weights):
            raise UserError(
                f"the weights of {flags.init_from} do not fit this config: {differing}; "
                "set the same values here"
            )
    return run, given, source


def _begin(
    run: Run, given: ExperimentConfig | None, source: Trained | None, init_from: str | None
) -> dict[str, Any] | None:
    """Prepares the run folder, and returns the config to train with; None if the run is trained already."""
    _check_start(run, init_from, source)
    if source is not None and run.identity is None:
        checkpoints = ", ".join(map(str, source.steps))
        log.info("starting from the weights of %s, checkpoint %s", init_from, checkpoints)
    config = run.begin(given, init_from)
    if run.is_trained:
        result = run.result
        print(f"{run.folder} is already trained: {result['step']} steps in {clock(result['seconds'])}")
        return None
    return to_dict(config)


def _check_equal(
    run: Run,
    config: ExperimentConfig,
    given: ExperimentConfig | None,
    source: Trained | None,
    params_sha256: str | None,
) -> None:
    """Checks that this process was started like the first one, and sees its run folder.

    Args:
      run: the run.
      config: the config of the first process.
      given: the config of this process, if its command line has one.
      source: the run of --init_from of this process.
      params_sha256: digest of the weights of --init_from of the first process.

    Raises:
      UserError: the processes differ.
    """
    name, end = f"process {jax.process_index()}", time.monotonic() + VISIBLE_SECONDS
    while not (run.folder / "config.json").is_file() and time.monotonic() < end:
        time.sleep(0.1)
    if not (run.folder / "config.json").is_file() or run.config != config:
        raise UserError(
            f"{name} does not see the run folder of process 0 at {run.folder}; name a folder that all hosts "
            "share"
        )
    if given is not None and (differing := difference(config, given)):
        raise UserError(
            f"{name} has a different config from process 0: {differing}; start the same command on all hosts"
        )
    if (source and source.params_sha256) != params_sha256:
        raise UserError(
            f"{name} has a different --init_from from process 0; start the same command on all hosts"
        )


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


def _train(
    run: Run, config: ExperimentConfig, source: Trained | None, profile_steps: tuple[int, int] | None
) -> int:
    """Trains a run, records the result, and returns the exit status."""
    result = TrainingResult(run)
    try:
        outcome = _loop(run, config, source, profile_steps)
    except BaseException as error:
        result.failed(error)
        raise
    result.ended(outcome, config.train.steps)
    return _status(outcome)


def _status(outcome: Outcome) -> int:
    return 0 if outcome.finished else PREEMPTED


def _loop(
    run: Run, config: ExperimentConfig, source: Trained | None, profile_steps: tuple[int, int] | None
) -> Outcome:
    params = source.params if source else None
    with (
        full_disk(run.folder, RESUME),
        StopSignal(STOPPING, STOP_SECONDS) as should_stop,
        hosts.ending_if_lost(),
    ):
        with preparing() as progress:
            task = _open_task(run, config, progress, source.tokenizer if source else None)
        with (
            training_observer(config.train.steps, on_closed=should_stop.request) as shown,
            profiling(shown, run.folder / "profile", profile_steps, run.identity is None) as observer,
        ):
            return train(config, task, run.folder, observer, should_stop, params)


def _open_task(run: Run, config: ExperimentConfig, progress: Any, tokenizer: Tokenizer | None) -> Task:
    """Opens the task in the first process, and then in the others, which must have the same data."""

    task = None
    with agreed():
        if is_first():
            task = open_task(config, run.folder, progress, run.identity, tokenizer=tokenizer)
    identity = broadcast(task and dict(task.identity))
    with agreed():
        return task or open_task(config, run.folder, progress, identity, tokenizer=tokenizer)


if __name__ == "__main__":
    cli.run(sys.modules[__name__])
