"""The training loop."""

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

import jax
from jaxtyping import PyTree

from transformer.config import ExperimentConfig
from transformer.training.metric_log import add_totals
from transformer.training.parallelism import make_parallelism
from transformer.training.processes import StopVote, rows_of_process
from transformer.training.session import Observer, Outcome, Session
from transformer.training.train_step import make_eval_step, make_train_step
from transformer.training.trainable import Hyperparameters, Trainable
from transformer.training.utilization import StepFlops

log = logging.getLogger(__name__)


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
    hyperparameters, key = Hyperparameters.from_config(config), step_key(config)
    train_step = make_train_step(task.loss, config, parallelism)
    eval_step = make_eval_step(task.loss, parallelism)
    session, vote = Session(config, task, folder, observer), StopVote(should_stop)
    with contextlib.closing(session):
        state = session.start(parallelism, initial_weights)
        step_flops = StepFlops(task.loss, state.params, hyperparameters)
        batches = () if session.is_exhausted else task.batches(session.first_step)
        pending_step = None  # a step whose record is due
        shapes = set[str]()  # of the batches so far
        for step, batch in enumerate(session.meter.timed(batches), start=session.first_step + 1):
            flops = step_flops(batch)
            _note_new_shape(step, batch, shapes)
            batch = parallelism.shard(batch, config.train.accumulation)
            state, totals, info = train_step(state, batch, key, hyperparameters)
            session.meter.add(totals, info, flops)
            observer.step(step)

            stop = vote()
            validate = step % config.train.validate_every == 0 or step == config.train.steps
            if pending_step is not None:  # the devices are at work on the next step
                session.record(pending_step)
            pending_step = step if validate or stop or step % config.train.log_every == 0 else None
            if pending_step is not None and (validate or stop or config.train.diagnostics):
                session.record(step, task.diagnostics(state.params) if config.train.diagnostics else None)
                pending_step = None
            if validate:
                totals = add_totals(
                    eval_step(state.params, parallelism.shard(rows_of_process(batch)), None, hyperparameters)
                    for batch in task.validation_batches()
                )
                session.validate(step, totals)
            if validate or stop:
                stop = stop or vote()  # a validation may take long
                session.save(state, is_validated=validate)
            if stop or session.is_exhausted:
                break
    return session.outcome(state)


def step_key(config: ExperimentConfig) -> jax.Array:
    """Returns the key of the steps. `Trainable.init` draws the weights with the key of the seed itself."""
    return jax.random.fold_in(jax.random.key(config.train.seed), 1)


def _note_new_shape(step: int, batch: PyTree, shapes: set[str]) -> None:
    """Logs that a batch has a new shape, for which the update is compiled again."""
    shape = ", ".join(dict.fromkeys("x".join(map(str, x.shape)) for x in jax.tree.leaves(batch)))
    if shapes and shape not in shapes:
        log.info("step %d: compiling the update again, for a batch of %s", step, shape)
    shapes.add(shape)
