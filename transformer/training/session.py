"""State of a run during training: its checkpoints, its records, and the decisions to end it early."""

import dataclasses
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
from jaxtyping import PyTree

from transformer.config import ExperimentConfig, UserError
from transformer.training.checkpoints import Checkpoints
from transformer.training.digests import digest
from transformer.training.divergence import BadStep, check_validation, record_divergence
from transformer.training.metric_log import Meter, MetricsWriter, NoMetricsWriter, Record
from transformer.training.parallelism import Parallelism, abstract_state, put
from transformer.training.processes import is_first
from transformer.training.train_step import TrainState, init_state
from transformer.training.trainable import Trainable

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
    """Result of a training.

    Attributes:
      step: number of updates that the run has done.
      finished: whether the run is complete; otherwise the same call resumes the run.
      unit: see `Trainable`.
      units_seen: target tokens, or other units of the task, trained on.
      validation: the last validation record; empty before the first validation.
      params_sha256: digest of the weights.
      identity: the identity of the task; see `Trainable`. If the run began with `initial_weights`, their
        digest is part of it.
    """

    step: int
    finished: bool
    unit: str
    units_seen: int
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
    def is_exhausted(self) -> bool:
        """True once `limit` consecutive validations brought no lower value."""
        return self.limit is not None and self.stale >= self.limit


class Session:
    """State of a run during training.

    Attributes:
      config: the config of the run.
      task: the task.
      folder: the run folder, which gets checkpoints/, metrics.jsonl and tensorboard/.
      observer: receives every record from the session, and every step from the caller.
      first_step: number of updates done before this session.
      meter: measures the steps.
      is_exhausted: whether the run ends early, because its criterion no longer falls.
    """

    def __init__(self, config: ExperimentConfig, task: Trainable, folder: Path, observer: Observer):
        self.config, self.task, self.folder, self.observer = config, task, folder, observer
        self._checkpoints = Checkpoints(folder / "checkpoints", config.train.keep_last)
        self._writer: MetricsWriter | NoMetricsWriter = NoMetricsWriter()

    def start(self, parallelism: Parallelism, initial_weights: PyTree | None = None) -> TrainState:
        """Returns the state of the latest checkpoint, or that of a new run.

        Args:
          parallelism: places the state.
          initial_weights: see `loop.train`.

        Raises:
          UserError: the checkpoints belong to another run, or the weights do not fit the model.
        """
        train = self.config.train

        def initial_state():
            return init_state(self.task.init(train.seed), self.config)

        template, identity = abstract_state(parallelism, initial_state), dict(self.task.identity)
        if initial_weights is not None:
            _check_shapes(initial_weights, template.params)
            identity[INITIAL_WEIGHTS] = digest(initial_weights)
        log.info("%s parameters", f"{sum(x.size for x in jax.tree.leaves(template.params)):,}")
        resumed = self._resume(template, identity)
        if resumed is not None:
            state, metadata = put(parallelism, resumed[0]), resumed[1]
        elif initial_weights is not None:
            state, metadata = put(parallelism, init_state(initial_weights, self.config)), {}
        else:
            state, metadata = parallelism.create(initial_state), {}
        self._identity = metadata.get("identity", identity)
        self._validation = metadata.get("validation", {})
        self._patience = Patience(train.patience, *metadata.get("patience", ()))
        self.first_step = int(state.step)
        self.meter = Meter(self.task, train.steps, self.first_step, metadata.get(f"{self.task.unit}_seen", 0))
        if initial_weights is not None and not metadata:
            self._checkpoints.save(state, self._metadata(), None)
        if is_first():
            self._writer = MetricsWriter(self.folder, self.first_step)
        return state

    @property
    def is_exhausted(self) -> bool:
        """See `Patience.is_exhausted`."""
        return self._patience.is_exhausted

    def record(self, step: int, diagnostics: Mapping[str, float] | None = None) -> None:
        """Writes the record of the interval that ends at a step, with further metrics.

        Raises:
          Diverged: the loss or the gradient of a step is not finite.
        """
        try:
            record = self.meter.record(step)
        except BadStep as bad:
            examples = self.task.example_ids(bad.step - 1)
            raise record_divergence(bad, examples, self.folder, self.config) from None
        self._publish(record | dict(diagnostics or {}))

    def validate(self, step: int, totals: Mapping[str, float]) -> None:
        """Writes the record of a validation.

        Raises:
          Diverged: training has diverged; see `check_validation`.
        """
        record = {"step": step, "kind": "validation", **self.task.summary(totals)}
        criterion = record[self.task.criterion]
        diverged = check_validation(step, criterion, self.task.uniform_loss, self.folder, self.config)
        if diverged and (self.config.train.on_divergence == "stop" or not math.isfinite(criterion)):
            raise diverged
        if diverged:
            log.warning("warning: %s", diverged)
        self._validation = record
        self._publish(record)
        self._patience.update(criterion)
        if self.is_exhausted:
            limit = self._patience.limit
            log.info("no lower criterion in %d validations: stopped at step %d", limit, step)

    def save(self, state: TrainState, is_validated: bool) -> None:
        """Writes a checkpoint in the background.

        Raises:
          UserError: the run folder was deleted.
        """
        if not (self.folder / "metrics.jsonl").exists():
            raise UserError(f"{self.folder} was deleted during the training; start the training again")
        self._writer.flush()
        criterion = self._validation[self.task.criterion] if is_validated else None
        self._checkpoints.save(state, self._metadata(), criterion)
        self.meter.restart()

    def outcome(self, state: TrainState) -> Outcome:
        """Returns the result of the training that ended with a state."""
        step = int(state.step)
        return Outcome(
            step=step,
            finished=step >= self.config.train.steps or self.is_exhausted,
            unit=self.task.unit,
            units_seen=self.meter.units_seen,
            validation=self._validation,
            params_sha256=digest(state.params),
            identity=self._identity,
        )

    def close(self) -> None:
        """Waits for the writes in progress, and closes the files."""
        try:
            self._writer.close()
        finally:
            self._checkpoints.close()

    def _metadata(self) -> dict[str, Any]:
        """Returns the metadata of a checkpoint."""
        return {
            "identity": self._identity,
            "task": dict(self.task.metadata),
            f"{self.task.unit}_seen": self.meter.units_seen,
            "validation": self._validation,
            "patience": [self._patience.best, self._patience.stale],
        }

    def _resume(
        self, template: TrainState, identity: dict[str, str]
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """Returns the latest state and its metadata; None for a new run.

        Raises:
          UserError: the checkpoints belong to a different config, or to different data, vocabulary or initial
            weights.
        """
        stored_identity = self._checkpoints.identity
        if stored_identity is None:
            return None
        for name, current in identity.items():
            if (stored := stored_identity.get(name)) != current:
                raise UserError(
                    f"{name} changed after {self.folder} was trained (from {stored} to {current}); "
                    f"restore the original {name}, or train in another folder"
                )
        state, metadata = self._checkpoints.restore(template)
        log.info("resuming from step %d", state.step)
        return state, metadata

    def _publish(self, record: Record) -> None:
        """Writes and shows a record."""
        self._writer.write(record)
        self.observer.record(record)


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
                "set the fields of model as in that run, and use data of the same format"
            )
