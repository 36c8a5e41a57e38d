"""Training, from a config and a folder to a trained model."""

import contextlib
import dataclasses
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

import jax

from transformer.config import ExperimentConfig, UserError
from transformer.data.pipeline import serve
from transformer.training.checkpoints import Checkpoints, digest
from transformer.training.metrics import Meter, MetricsWriter, Record, summary
from transformer.training.setup import set_up

log = logging.getLogger(__name__)


@runtime_checkable
class Observer(Protocol):
    """Shows a run to whoever waits for it."""

    def step(self, step: int) -> None:
        """An update was handed to the devices."""

    def record(self, record: Record) -> None:
        """A record was written."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How training ended.

    Attributes:
      step: updates done.
      finished: whether there is no more to do; otherwise the same call goes on from here.
      tokens_seen: target pieces trained on.
      validation: the last validation's record.
      params_sha256: digest of the weights.
    """

    step: int
    finished: bool
    tokens_seen: int
    validation: Record
    params_sha256: str


@dataclasses.dataclass
class Patience:
    """Ends a run whose validation loss has stopped falling.

    Attributes:
      limit: validations in a row without a lower loss that are too many; None: any number will do.
      best: the lowest loss so far, nats.
      stale: validations since.
    """

    limit: int | None
    best: float = math.inf
    stale: int = 0

    def see(self, loss: float) -> None:
        """Takes in a validation's loss."""
        self.stale = 0 if loss < self.best else self.stale + 1
        self.best = min(self.best, loss)

    @property
    def lost(self) -> bool:
        return self.limit is not None and self.stale >= self.limit


def train(
    config: ExperimentConfig,
    folder: Path,
    observer: Observer,
    should_stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Trains a run to its end, going on from its latest checkpoint where there is one.

    Writes tokenizer.model, checkpoints/, metrics.jsonl and tensorboard/ into `folder`. On CPU the weights of
    a run that was stopped and resumed equal those of one that was not, bit for bit.

    Args:
      config: the run.
      folder: its folder.
      observer: is told of every step and record.
      should_stop: asked after each step; when true, the state is saved and training returns.

    Raises:
      UserError: the config, the data or a checkpoint cannot be used.
    """
    task = set_up(config, folder)
    checkpoints = Checkpoints(folder / "checkpoints", config.train.keep_last)
    state, facts, patience = task.state, {"tokens_seen": 0, "validation": {}}, Patience(config.train.patience)
    if (restored := checkpoints.restore(state)) is not None:
        state, facts = restored
        if facts["tokenizer_sha256"] != task.tokenizer.sha256:
            raise UserError(f"{folder / 'tokenizer.model'} is not the one its checkpoints were trained with")
        if facts["data"] != task.data:
            raise UserError(f"{folder} was trained on {facts['data']}; the data is now {task.data}")
        if "patience" in facts:  # which the first checkpoints did not store
            patience = Patience(config.train.patience, *facts["patience"])
        log.info("going on from step %d of %d", state.step, config.train.steps)

    first, validation = int(state.step), facts["validation"]
    state = task.placement.replicate(state)
    meter = Meter(config.train.steps, task.plan.steps_per_epoch, facts["tokens_seen"])
    with (
        contextlib.closing(checkpoints),
        contextlib.closing(MetricsWriter(folder, first)) as writer,
    ):

        def publish(record: Record) -> Record:
            if not math.isfinite(record["loss"]):
                raise UserError(
                    f"training diverged before step {record['step']}: the loss is {record['loss']}; "
                    "lower optimizer.learning_rate or raise optimizer.warmup_steps"
                )
            writer.write(record)
            observer.record(record)
            return record

        batches = () if patience.lost else serve(task.batches, first, config.data.workers)
        for step, batch in enumerate(batches, start=first + 1):
            batch = task.placement.shard(batch, config.train.accumulation)
            state, sums, info = task.train_step(state, batch, task.key, task.hyper)
            meter.add(sums, slots=batch.source.tokens.size + batch.target.tokens.size)
            observer.step(step)

            stop = should_stop()
            validate = step % config.train.validate_every == 0 or step == config.train.steps
            if validate or stop or step % config.train.log_every == 0:
                publish(meter.record(step, info))
            if validate:
                sums = task.validate(state.params)
                validation = publish({"step": step, "kind": "validation", **summary(sums)})
                patience.see(validation["nll"])
            if validate or stop:
                facts = {
                    "tokenizer_sha256": task.tokenizer.sha256,
                    "data": task.data,
                    "trained_lengths": list(task.plan.longest),
                    "tokens_seen": meter.tokens_seen,
                    "validation": validation,
                    "patience": [patience.best, patience.stale],
                }
                checkpoints.save(state, facts, validation["nll"] if validate else None)
                meter.restart()
            if patience.lost:
                log.info(
                    "no lower validation loss in %d validations: step %d is the last", patience.limit, step
                )
            if stop or patience.lost:
                break

    return Outcome(
        step=int(state.step),
        finished=int(state.step) >= config.train.steps or patience.lost,
        tokens_seen=meter.tokens_seen,
        validation=validation,
        params_sha256=digest(jax.device_get(state.params)),
    )
