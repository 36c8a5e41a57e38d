"""Trained models: loads the model of a run from its checkpoints."""

import contextlib
import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any

from jaxtyping import PyTree

from experiments.config_changes import changed_after_training
from experiments.run_folder import Run
from transformer.config import ExperimentConfig, UserError
from transformer.data.tokenizer import Tokenizer
from transformer.model import EncoderDecoder, ImageClassifier, parameter_shapes
from transformer.tasks import Task, open_task, task_type
from transformer.training.averaging import average
from transformer.training.checkpoint_files import DamagedCheckpoint
from transformer.training.checkpoints import Checkpoints
from transformer.training.digests import digest

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained model.

    Attributes:
      config: the config of the run, with the changes given to `load_trained`.
      tokenizer: the vocabulary; None for images.
      model: the model without weights.
      params: the weights: the mean over the checkpoints at `steps`.
      steps: the steps of these checkpoints.
      identity: the identity of the run; see `Run.identity`.
    """

    config: ExperimentConfig
    tokenizer: Tokenizer | None
    model: EncoderDecoder | ImageClassifier
    params: PyTree
    steps: list[int]
    identity: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def params_sha256(self) -> str:
        """Digest of the weights."""
        return digest(self.params)


def load_trained(run: Run, changes: Mapping[str, Any] | None = None, task: str | None = None) -> Trained:
    """Loads the trained model of a run: the mean of the last `decode.average_last` checkpoints.

    Logs a warning if the training is not complete.

    Args:
      run: the run; its training need not be complete.
      changes: new values by config field, for this call only; see `changed_after_training`.
      task: the task that the run must have; None for any task.

    Raises:
      UserError: there is no readable checkpoint, a field cannot be changed, or the task is another.
    """
    if task is not None and run.config.task != task:
        raise UserError(f"the task of {run.folder} is {run.config.task}; name a run of {task}")
    config = changed_after_training(run.config, changes or {})
    skipped: set[int] = set()
    result = run.result
    is_done = result.get("status") == "done"
    last_step = result["step"] if is_done else math.inf
    with contextlib.closing(Checkpoints(run.folder / "checkpoints")) as checkpoints:
        while True:
            steps = [step for step in checkpoints.steps if step not in skipped and step <= last_step]
            if not steps:
                raise UserError(f"{run.folder} has no checkpoint yet; train the run first")
            if is_done and steps[-1] != last_step:
                raise UserError(f"checkpoint {last_step} of {run.folder} is missing; {_advice(run)}")
            try:
                trained = _load(run, config, checkpoints, _averaged_steps(config, steps))
            except DamagedCheckpoint as error:
                checkpoints.reload()
                if error.step not in checkpoints.steps:
                    continue  # training has deleted this checkpoint in the meantime
                if is_done:
                    raise UserError(f"{error}; {_advice(run)}") from None
                if error.step != steps[-1] or len(steps) == 1:
                    raise
                log.warning("warning: %s; using checkpoint %d", error, steps[-2])
                skipped.add(error.step)
            else:
                break
    if not is_done:
        step, last = trained.steps[-1], config.train.steps
        log.warning("warning: the training of %s is not complete: step %d of %d", run.folder, step, last)
    return trained


def open_task_of(run: Run, trained: Trained) -> Task:
    """Opens the task of a trained model, with the data that its run was trained on.

    Raises:
      UserError: the data is not prepared on this machine.
    """
    return open_task(trained.config, run.folder, stored=trained.identity, may_prepare=False)


def _load(run: Run, config: ExperimentConfig, checkpoints: Checkpoints, steps: list[int]) -> Trained:
    """Loads the mean of the checkpoints at `steps`, which are in order."""
    metadata = checkpoints.metadata(steps[-1])
    identity = metadata["identity"]
    _check_identity(run, steps[-1], identity)
    model, tokenizer = task_type(config).load_model(config, run.folder, metadata)
    shapes = parameter_shapes(model)

    def weights() -> Iterator[PyTree]:
        for step in steps:
            params, metadata = checkpoints.params(step, shapes)
            _check_identity(run, step, metadata["identity"], identity)
            yield params

    return Trained(config, tokenizer, model, average(weights()), steps, identity)


def _check_identity(
    run: Run, step: int, identity: Mapping[str, str], newest: Mapping[str, str] | None = None
) -> None:
    """Checks the identity of a checkpoint against config.json and the identity of the newest checkpoint.

    Raises:
      UserError: the checkpoint is from another run, or config.json was edited.
    """
    if identity["config"] != run.config_hash:
        raise UserError(
            f"{run.folder / 'config.json'} is not the config that checkpoint {step} was trained with; "
            "restore the file, and change search settings with --set instead"
        )
    if newest is not None and identity != newest:
        raise UserError(
            f"checkpoint {step} of {run.folder} is from another run; delete it or restore the original"
        )


def _averaged_steps(config: ExperimentConfig, steps: list[int]) -> list[int]:
    """Returns the steps of the checkpoints whose weights are averaged.

    A checkpoint without a validation, from an interruption or of the initial weights, is used only if the run
    has no other checkpoint.
    """
    train = config.train
    scheduled = [step for step in steps if (step and step % train.validate_every == 0) or step == train.steps]
    return scheduled[-config.decode.average_last :] or steps[-1:]


def _advice(run: Run) -> str:
    return f"train the run again with python -m experiments.train --workdir={run.folder}"
