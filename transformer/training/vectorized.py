"""Trains several runs in one program, by `jax.vmap` over their states.

A small model may leave most of a GPU or TPU idle. The runs may differ only in values
that the program takes as arguments, and each is written to its own folder, as if it were trained alone.
"""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Bool, PyTree

from transformer.config import ExperimentConfig, UserError, flatten, to_dict
from transformer.training.divergence import Diverged
from transformer.training.loop import step_key
from transformer.training.metric_log import add_totals
from transformer.training.parallelism import Single, pad_batch
from transformer.training.session import Outcome, Session
from transformer.training.train_step import StepInfo, TrainState, make_eval_step, make_train_step
from transformer.training.trainable import Hyperparameters, LossFn, Totals
from transformer.training.utilization import StepFlops

# Fields in which the runs of one program may differ.
TRACED_FIELDS = ("train.seed", "optimizer.learning_rate", "model.dropout_rate", "train.label_smoothing")


def group_key(config: ExperimentConfig) -> str:
    """Returns a key that is equal for configs whose runs one program can train."""
    fields = flatten(to_dict(config)).items()
    return json.dumps({name: value for name, value in fields if name not in TRACED_FIELDS})


def train_vectorized(
    sessions: Sequence[Session], should_stop: Callable[[], bool] = lambda: False
) -> list[Outcome | Diverged]:
    """Trains runs in one program, each to its end. Resumes each from its latest checkpoint.

    Sums round differently from those of a run that is trained alone. A run that has diverged or ended early
    keeps its state while the others continue.

    Args:
      sessions: the runs. Their configs have one `group_key`, and their batches one shape.
      should_stop: called after each step; if it returns true, all runs are saved and training returns.

    Returns:
      The outcome of each run, or the error with which it diverged.

    Raises:
      UserError: the batches have different shapes, or a run cannot be trained.
    """
    config, task = sessions[0].config, sessions[0].task
    with contextlib.ExitStack() as stack:
        for session in sessions:
            stack.enter_context(contextlib.closing(session))
        states = [session.start(Single()) for session in sessions]
        replicas = [_Replica(session, state) for session, state in zip(sessions, states, strict=True)]
        place = _placement(len(sessions))
        state = place(_stack(states))
        keys = place(jnp.stack([step_key(session.config) for session in sessions]))
        hyperparameters = place(_stack([Hyperparameters.from_config(session.config) for session in sessions]))
        step_flops = StepFlops(task.loss, states[0].params, Hyperparameters.from_config(config))
        train_step = make_vectorized_step(task.loss, config)
        eval_step = jax.jit(jax.vmap(make_eval_step(task.loss, _Traced()), in_axes=(0, None, None, 0)))
        del states
        entries: list[_Entry] = []  # of the steps since the last record
        first_step = min(session.first_step for session in sessions)
        for step in range(first_step + 1, config.train.steps + 1):
            is_active = np.array([replica.is_active(step) for replica in replicas])
            if all(replica.has_ended for replica in replicas):
                break
            if not is_active.any():  # the runs that are left have done this step already
                continue
            batches = _next_batches(replicas, is_active)
            flops = int(is_active.sum()) * step_flops(batches[0])
            batch = place(_stack([pad_batch(batch, config.train.accumulation) for batch in batches]))
            state, totals, info = train_step(state, batch, keys, hyperparameters, place(is_active))
            entries.append(_Entry(totals, info, flops))
            active = [(number, replicas[number]) for number in np.flatnonzero(is_active).tolist()]
            for _, replica in active:
                replica.session.meter.start(totals)
                replica.session.observer.step(step)

            stop = should_stop()
            validate = step % config.train.validate_every == 0 or step == config.train.steps
            if validate or stop or step % config.train.log_every == 0:
                fetched, entries = jax.device_get(entries), []
                for number, replica in active:
                    params = _slice(state.params, number) if config.train.diagnostics else None
                    replica.record(step, _slice(fetched, number), params)
            if validate:
                totals = jax.device_get(
                    [eval_step(state.params, b, None, hyperparameters) for b in task.validation_batches()]
                )
                for number, replica in active:
                    replica.validate(step, _slice(totals, number))
            if validate or stop:
                stop = stop or should_stop()  # a validation may take long
                host_state = jax.device_get(state)
                for number, replica in active:
                    replica.save(_slice(host_state, number), validate)
            if stop:
                break
    host_state = jax.device_get(state)
    return [replica.outcome(_slice(host_state, number)) for number, replica in enumerate(replicas)]


def make_vectorized_step(loss_fn: LossFn, config: ExperimentConfig) -> Callable:
    """Compiles an update of several runs; see `make_train_step`.

    Each argument, and the flags `is_active` after them, has a first axis with one entry per run. A run that
    is not active keeps its state.
    """
    train_step = make_train_step(loss_fn, config, _Traced())

    def step(state, batch, key, hyperparameters, is_active):
        new_state, totals, info = train_step(state, batch, key, hyperparameters)
        return jax.tree.map(lambda new, old: jnp.where(is_active, new, old), new_state, state), totals, info

    return jax.jit(jax.vmap(step), donate_argnums=0)


class _Traced(Single):
    """Leaves the compilation to the caller."""

    def compile(self, function, donate_state=False):
        del donate_state
        return function


class _Entry(NamedTuple):
    """The measurements of an update."""

    totals: Totals
    info: StepInfo
    flops: int


class _Replica:
    """One of the runs.

    Attributes:
      session: the run.
    """

    def __init__(self, session: Session, state: TrainState):
        self.session, self._steps = session, session.config.train.steps
        self._result: Outcome | Diverged | None = None
        if session.is_exhausted or session.first_step >= self._steps:
            self._result = session.outcome(state)
        self._batches: Iterator[PyTree] = session.meter.timed(session.task.batches(session.first_step))

    @property
    def has_ended(self) -> bool:
        """True if the run is finished, or has diverged or ended early."""
        return self._result is not None

    def is_active(self, step: int) -> bool:
        """Returns whether the run takes part in a step. It does not repeat steps that it has done already."""
        return self._result is None and step > self.session.first_step

    def next_batch(self) -> PyTree:
        """Returns the batch of the next step."""
        return next(self._batches)

    def record(self, step: int, entries: list[_Entry], params: PyTree | None) -> None:
        """Writes the record of the interval that ends at a step, with diagnostics if weights are given."""
        session = self.session
        for entry in entries[-(step - session.meter.last_step) :]:
            session.meter.add(*entry)
        diagnostics = None if params is None else session.task.diagnostics(params)
        with self._noting_divergence():
            session.record(step, diagnostics)

    def validate(self, step: int, totals: Iterable[Totals]) -> None:
        """Writes the record of a validation."""
        if self._result is None:
            with self._noting_divergence():
                self.session.validate(step, add_totals(totals))

    def save(self, state: TrainState, is_validated: bool) -> None:
        """Writes a checkpoint, and notes whether the run has ended."""
        if self._result is None:
            self.session.save(state, is_validated)
            if self.session.is_exhausted:
                self._result = self.session.outcome(state)

    def outcome(self, state: TrainState) -> Outcome | Diverged:
        """Returns the result of the run, whose last state is given."""
        return self._result or self.session.outcome(state)

    @contextlib.contextmanager
    def _noting_divergence(self) -> Iterator[None]:
        try:
            yield
        except Diverged as error:
            self._result = error


def _placement(num_runs: int) -> Callable[[PyTree], PyTree]:
    """Returns a function that splits the first axis, one entry per run, over as many devices as divide it."""
    count = next(n for n in range(jax.device_count(), 0, -1) if num_runs % n == 0)
    mesh = jax.make_mesh((count,), ("runs",), (AxisType.Auto,), devices=jax.devices()[:count])
    sharding = NamedSharding(mesh, PartitionSpec("runs"))
    return lambda tree: jax.device_put(tree, sharding)


def _next_batches(replicas: Sequence[_Replica], is_active: Bool[np.ndarray, "runs"]) -> list[PyTree]:
    """Returns the next batch of each run; a run that is not active gets one of another run.

    Raises:
      UserError: the batches have different shapes.
    """
    batches = [replica.next_batch() if on else None for replica, on in zip(replicas, is_active, strict=True)]
    present = [batch for batch in batches if batch is not None]
    if len({tuple(x.shape for x in jax.tree.leaves(batch)) for batch in present}) > 1:
        raise UserError(
            "the batches of these runs have different shapes, so one program cannot train them; train each "
            "run by itself"
        )
    return [present[0] if batch is None else batch for batch in batches]


def _stack(trees: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def _slice(tree: PyTree, number: int) -> PyTree:
    """Returns the values of one run."""
    return jax.tree.map(lambda x: x[number, ...] if np.ndim(x) else x, tree)
