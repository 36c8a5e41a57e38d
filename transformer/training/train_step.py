"""The steps of training and of validation: pure functions, which a parallelism compiles."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from transformer.config import ExperimentConfig
from transformer.training.optimizers import make_optimizer, make_schedule
from transformer.training.parallelism import Parallelism
from transformer.training.trainable import Hyperparameters, LossFn, Totals


class TrainState(NamedTuple):
    """Everything that training changes.

    Attributes:
      step: number of updates done.
      params: the weights, float32.
      opt_state: the state of the optimizer.
    """

    step: Int[Array, ""]
    params: PyTree
    opt_state: optax.OptState


class StepInfo(NamedTuple):
    """Measurements of an update besides its totals.

    Attributes:
      gradient_norm: norm of the gradient of the mean loss, before clipping.
      learning_rate: the learning rate.
      skipped: whether the update was skipped because its gradient is not finite.
      layer_norms: the norm of each part of the gradient, if `train.diagnostics`; see `layer_norms`.
    """

    gradient_norm: Float[Array, ""]
    learning_rate: Float[Array, ""]
    skipped: Bool[Array, ""]
    layer_norms: dict[str, Float[Array, ""]]


# (state, batch, key, hyperparameters) -> ...
TrainStep = Callable[
    [TrainState, PyTree, Key[Array, ""], Hyperparameters], tuple[TrainState, Totals, StepInfo]
]
EvalStep = Callable[[PyTree, PyTree, None, Hyperparameters], Totals]


def init_state(params: PyTree, config: ExperimentConfig) -> TrainState:
    """Returns the state before the first update.

    Raises:
      UserError: an optimizer or a schedule that does not exist or does not fit the config.
    """
    schedule = make_schedule(config.optimizer, 1.0, config.train.steps)
    opt_state = make_optimizer(config.optimizer, schedule).init(params)
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state)


def make_train_step(loss_fn: LossFn, config: ExperimentConfig, parallelism: Parallelism) -> TrainStep:
    """Compiles one update.

    Losses and gradients are summed over the parts of a batch and over the devices, then divided once by the
    count of the whole batch, so the update does not depend on how the batch was split.
    """

    gradients_of = functools.partial(_summed_gradients, loss_fn, config.train.accumulation)
    summed_gradients = parallelism.sum_rows(gradients_of, has_gradient=True)

    def train_step(state, batch, key, hyperparameters):
        key = jax.random.fold_in(key, state.step)
        gradients, totals = summed_gradients(state.params, batch, key, hyperparameters)
        gradients = jax.tree.map(lambda g: g / jnp.maximum(totals["count"], 1), gradients)

        schedule = make_schedule(config.optimizer, hyperparameters.learning_rate, config.train.steps)
        optimizer = make_optimizer(config.optimizer, schedule)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        num_skipped, skipped = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
        if limit := config.optimizer.skip_nonfinite:
            num_skipped = state.opt_state.total_notfinite
            skipped = (opt_state.notfinite_count > 0) & (opt_state.notfinite_count <= limit)
            totals = jax.tree.map(lambda total: jnp.where(skipped, 0, total), totals)
        norms = layer_norms(gradients) if config.train.diagnostics else {}
        info = StepInfo(optax.tree.norm(gradients), schedule(state.step - num_skipped), skipped, norms)
        return TrainState(state.step + 1, params, opt_state), totals, info

    return parallelism.compile(train_step, donate_state=True)


def layer_norms(gradients: PyTree) -> dict[str, Float[Array, ""]]:
    """Returns the gradient norm of each layer, named by the first two keys in the paths of its weights."""
    parts: dict[str, list[Array]] = {}
    for path, gradient in jax.tree_util.tree_flatten_with_path(gradients)[0]:
        parts.setdefault(jax.tree_util.keystr(path[:2], simple=True, separator="."), []).append(gradient)
    return {name: optax.tree.norm(part) for name, part in parts.items()}


def make_eval_step(loss_fn: LossFn, parallelism: Parallelism) -> EvalStep:
    """Compiles a function that returns the totals of a batch, without dropout."""

    def totals_of(*arguments):
        return loss_fn(*arguments)[1]

    return parallelism.compile(parallelism.sum_rows(totals_of, has_gradient=False))


def _summed_gradients(loss_fn, num_parts, params, batch, key, hyperparameters) -> tuple[PyTree, Totals]:
    """Sums gradients and totals over equal parts of a batch, which are computed one after another."""

    def gradients_of(batch):
        return jax.grad(loss_fn, has_aux=True)(params, batch, key, hyperparameters)

    if num_parts == 1:
        return gradients_of(batch)
    parts = jax.tree.map(lambda x: x.reshape(num_parts, -1, *x.shape[1:]), batch)
    first = jax.tree.map(lambda x: x[0], parts)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradients_of, first))

    def add(totals, part):
        return jax.tree.map(jnp.add, totals, gradients_of(part)), None

    return jax.lax.scan(add, zeros, parts)[0]
