"""The training loop."""

import contextlib
import dataclasses
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
from jaxtyping import PyTree

from transformer.config import ExperimentConfig, UserError
from transformer.training.checkpoints import Checkpoints
from transformer.training.digests import digest
from transformer.training.divergence import BadStep, check_validation, record_divergence
from transformer.training.metric_log import Meter, MetricsWriter, NoMetricsWriter, Record, add_totals
from transformer.training.parallelism import abstract, make_parallelism, put
from transformer.training.processes import StopVote, is_first, rows_of_process
from transformer.training.train_step import TrainState, init_state, make_eval_step, make_train_step
from transformer.training.trainable import Hyperparameters, Trainable
from transformer.training.utilization import StepFlops, peak_flops

log = logging.getLogger(__name__)

INITIAL_WEIGHTS = "initial weights"  # name of their digest in the identity of a run


@runtime_checkable
class Observer(Protocol):
    """Shows the progress of a run."""

    def step(self, step: int) -> None:
        """Called after an update was dispatched to the devices."""

    def record(self, record: Record) -> None:
        """Called after a record was written."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Result of a call of `train`.

    Attributes:
      step: number of updates that the run has done.
      finished: whether the run is complete; otherwise the same call resumes the run.
      tokens_seen: target tokens trained on.
      validation: the last validation record; empty before the first validation.
      params_sha256: digest of the weights.
      identity: the identity of the task; see `Trainable`. If the run began with `initial_weights`, their
        digest is part of it.
    """

    step: int
    finished: bool
    tokens_seen: int
    validation: Record
    params_sha256: str
    identity: Mapping[str, str]


@dataclasses.dataclass
class Patience:
    """Ends a run whose validation criterion has stopped falling.

    Attributes:
      limit: the run ends after this many consecutive validations without a lower value; if None, it does not.
      best: the lowest value; None before the first validation.
      stale: number of validations since the lowest value.
    """

    limit: int | None
    best: float | None = None
    stale: int = 0

    def update(self, value: float) -> None:
        """Counts a validation."""
        is_lower = self.best is None or value < self.best
        self.stale = 0 if is_lower else self.stale + 1
        self.best = value if is_lower else self.best

    @property
    def exhausted(self) -> bool:
        """True once `limit` consecutive validations brought no lower value."""
        return self.limit is not None and self.stale >= self.limit


def train(
    config: ExperimentConfig,
    task: Trainable,
    folder: Path,
    observer: Observer,
    should_stop: Callable[[], bool] = lambda: False,
    initial_weights: PyTree | None = None,
) -> Outcome:
    """Trains a run to its end. Resumes from the latest checkpoint if there is one.

    Writes checkpoints/, metrics.jsonl and tensorboard/ into `folder`. On CPU, a run that was stopped and
    resumed has the same weights as an uninterrupted run, bit for bit. Processes that train together all call
    this function with the same arguments, and must see the same folder.

    Args:
      config: the config; only `optimizer`, `train` and the hyperparameters are read.
      task: the task to train.
      folder: the run folder.
      observer: is told of every step and record.
      should_stop: called after each step; if it returns true, the state is saved and training returns. One
        process suffices to stop all; see `StopVote`.
      initial_weights: the weights to start from; if None, `task.init` makes them. They are saved at once, as
        the checkpoint of step 0, so a call that resumes the run does not need them.

    Raises:
      Diverged: training has diverged; see `divergence`.
      UserError: the config or a checkpoint cannot be used.
    """
    log.info("%d steps per epoch", task.steps_per_epoch)
    parallelism = make_parallelism(config.train)
    hyperparameters = Hyperparameters.from_config(config)
    # `task.init` draws the weights with the key of the seed itself, so the steps use a different key.
    key = jax.random.fold_in(jax.random.key(config.train.seed), 1)
    train_step = make_train_step(task.loss, config, parallelism)
    eval_step = make_eval_step(task.loss, parallelism)
    identity = dict(task.identity)

    def initial_state():
        return init_state(task.init(config.train.seed), config)

    template = abstract(parallelism, initial_state)
    if initial_weights is not None:
        _check_shapes(initial_weights, template.params)
        identity[INITIAL_WEIGHTS] = digest(initial_weights)
    log.info("%s parameters", f"{sum(x.size for x in jax.tree.leaves(template.params)):,}")

    checkpoints = Checkpoints(folder / "checkpoints", config.train.keep_last)
    resumed = _resume(checkpoints, template, identity, folder)
    if resumed is not None:
        state, metadata = resumed
        state = put(parallelism, state)
    else:
        metadata = _first_metadata(identity, task)
        if initial_weights is None:
            state = parallelism.create(initial_state)
        else:
            state = put(parallelism, init_state(initial_weights, config))
            checkpoints.save(state, metadata, None)
    patience = Patience(config.train.patience, *metadata["patience"])
    identity, validation, first_step = metadata["identity"], metadata["validation"], int(state.step)
    meter = Meter(task, config.train.steps, first_step, metadata["tokens_seen"])
    step_flops = StepFlops(task.loss, template.params, hyperparameters) if peak_flops() else None
    vote = StopVote(should_stop)
    writer = MetricsWriter(folder, first_step) if is_first() else NoMetricsWriter()
    with contextlib.closing(checkpoints), contextlib.closing(writer):
        batches = () if patience.exhausted else task.batches(first_step)
        unrecorded = None  # a step whose record is due
        shapes = set[str]()  # of the batches so far
        for step, batch in enumerate(meter.timed(batches), start=first_step + 1):
            flops = 0 if step_flops is None else step_flops(batch)
            _note_new_shape(step, batch, shapes)
            batch = parallelism.shard(batch, config.train.accumulation)
            state, totals, info = train_step(state, batch, key, hyperparameters)
            meter.add(totals, info, flops)
            observer.step(step)

            stop = vote()
            validate = step % config.train.validate_every == 0 or step == config.train.steps
            if unrecorded is not None:  # the devices are at work on the next step
                _publish(_record(meter, unrecorded, task, folder, config), writer, observer)
            unrecorded = step if validate or stop or step % config.train.log_every == 0 else None
            if unrecorded is not None and (validate or stop or config.train.diagnostics):
                record = _record(meter, step, task, folder, config)
                if config.train.diagnostics:
                    record |= task.diagnostics(state.params)
                _publish(record, writer, observer)
                unrecorded = None
            if validate:
                totals = add_totals(
                    eval_step(state.params, parallelism.shard(rows_of_process(batch)), None, hyperparameters)
                    for batch in task.validation_batches()
                )
                validation = {"step": step, "kind": "validation", **task.summary(totals)}
                criterion = validation[task.criterion]
                diverged = check_validation(step, criterion, task.uniform_loss, folder, config)
                if diverged and (config.train.on_divergence == "stop" or not math.isfinite(criterion)):
                    raise diverged
                if diverged:
                    log.warning("warning: %s", diverged)
                _publish(validation, writer, observer)
                patience.update(validation[task.criterion])
            if validate or stop:
                stop = stop or vote()  # a validation may take long
                if not (folder / "metrics.jsonl").exists():
                    raise UserError(f"{folder} was deleted during the training; start the training again")
                writer.flush()
                metadata = {
                    "identity": identity,
                    "task": dict(task.metadata),
                    "tokens_seen": meter.tokens_seen,
                    "validation": validation,
                    "patience": [patience.best, patience.stale],
                }
                checkpoints.save(state, metadata, validation[task.criterion] if validate else None)
                meter.restart()
            if patience.exhausted:
                log.info("no lower criterion in %d validations: stopped at step %d", patience.limit, step)
            if stop or patience.exhausted:
                break

    return Outcome(
        step=int(state.step),
        finished=int(state.step) >= config.train.steps or patience.exhausted,
        tokens_seen=meter.tokens_seen,
        validation=validation,
        params_sha256=digest(state.params),
        identity=identity,
    )


def _first_metadata(identity: dict[str, str], task: Trainable) -> dict[str, Any]:
    """Returns the metadata of a new run."""
    return {
        "identity": identity,
        "task": dict(task.metadata),
        "tokens_seen": 0,
        "validation": {},
        "patience": [None, 0],
    }


def _resume(
    checkpoints: Checkpoints, template: TrainState, identity: dict[str, str], folder: Path
) -> tuple[TrainState, dict[str, Any]] | None:
    """Returns the latest state and its metadata; None for a new run.

    Raises:
      UserError: the checkpoints belong to a different config, or to different data, vocabulary or initial
        weights.
    """
    stored_identity = checkpoints.identity
    if stored_identity is None:
        return None
    for name, current in identity.items():
        if (stored := stored_identity.get(name)) != current:
            raise UserError(
                f"{name} changed after {folder} was trained (from {stored} to {current}); "
                f"restore the original {name}, or train in another folder"
            )
    state, metadata = checkpoints.restore(template)
    log.info("resuming from step %d", state.step)
    return state, metadata


def _note_new_shape(step: int, batch: PyTree, shapes: set[str]) -> None:
    """Logs that a batch has a new shape, for which the update is compiled again."""
    shape = ", ".join(dict.fromkeys("x".join(map(str, x.shape)) for x in jax.tree.leaves(batch)))
    if shapes and shape not in shapes:
        log.info("step %d: compiling the update again, for a batch of %s", step, shape)
    shapes.add(shape)


def _record(meter: Meter, step: int, task: Trainable, folder: Path, config: ExperimentConfig) -> Record:
    """Returns the record of the interval that ends at a step.

    Raises:
      Diverged: the loss or the gradient of a step is not finite.
    """
    try:
        return meter.record(step)
    except BadStep as bad:
        examples = task.example_ids(bad.step - 1)
        raise record_divergence(bad, examples, folder, config, write=is_first()) from None


def _check_shapes(weights: PyTree, expected: PyTree) -> None:
    """Checks that the weights are those of the model.

    Raises:
      UserError: the names or the shapes of the weights differ.
    """
    given, needed = (
        {jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape for path, leaf in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (weights, expected))
    )
    for name in {**needed, **given}:
        if given.get(name) != needed.get(name):
            raise UserError(
                f"the initial weights do not fit the model: the shape of {name} is "
                f"{given.get(name, 'missing')}, but must be {needed.get(name, 'missing')}; "
                "set the fields of model as in that run"
            )


def _publish(record: Record, writer: MetricsWriter | NoMetricsWriter, observer: Observer) -> None:
    """Writes and shows a record."""
    writer.write(record)
    observer.record(record)
