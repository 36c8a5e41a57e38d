"""One update, and one validation batch: pure functions of state and batch, compiled by a placement."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from transformer.data.pipeline import Batch
from transformer.training.losses import Hyper, LossFn, Sums
from transformer.training.optimizer import learning_rate
from transformer.training.placement import Placement


class TrainState(NamedTuple):
    """All that training changes.

    Attributes:
      step: updates done.
      params: the model's weights, float32.
      adam: the optimizer's moments.
    """

    step: Int[Array, ""]
    params: PyTree
    adam: optax.OptState


class StepInfo(NamedTuple):
    """What an update reports besides its sums."""

    gradient_norm: Float[Array, ""]  # of the mean loss a piece
    learning_rate: Float[Array, ""]


def initial_state(params: PyTree, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first update."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    warmup_steps: int,
    placement: Placement,
    accumulation: int = 1,
) -> Callable[[TrainState, Batch, Key[Array, ""], Hyper], tuple[TrainState, Sums, StepInfo]]:
    """Compiles (state, batch, key, hyper) -> (state, sums, info).

    Losses and gradients are summed over the parts and the devices and divided once, by the number of target
    pieces in the whole batch; dropout depends on the example, not on its place. So the update does not
    depend on how the batch was cut.
    """

    def train_step(state, batch, key, hyper):
        key = jax.random.fold_in(key, state.step)
        gradients, sums = placement.reduce(
            _accumulate(loss_fn, state.params, batch, key, hyper, accumulation)
        )
        gradients = jax.tree.map(lambda g: g / jnp.maximum(sums.tokens, 1), gradients)
        step = state.step + 1
        rate = learning_rate(step, hyper.learning_rate, warmup_steps)
        directions, adam = optimizer.update(gradients, state.adam, state.params)
        params = jax.tree.map(lambda p, d: p - rate * d, state.params, directions)
        return TrainState(step, params, adam), sums, StepInfo(optax.tree.norm(gradients), rate)

    return placement.compile(train_step, donate_state=True)


def make_validation_step(loss_fn: LossFn, placement: Placement) -> Callable[[PyTree, Batch, Hyper], Sums]:
    """Compiles (params, batch, hyper) -> sums, without dropout."""

    def validation_step(params, batch, hyper):
        return placement.reduce(loss_fn(params, batch, None, hyper)[1])

    return placement.compile(validation_step)


def _accumulate(loss_fn, params, batch, key, hyper, parts) -> tuple[PyTree, Sums]:
    """Summed gradients and sums of a batch, computed in equal parts one after the other."""

    def part(params, batch):
        return jax.grad(loss_fn, has_aux=True)(params, batch, key, hyper)

    if parts == 1:
        return part(params, batch)
    cut = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)
    zeros = jax.tree.map(jnp.zeros_like, (params, Sums(*[jnp.zeros(())] * len(Sums._fields))))

    def add(totals, one):
        return jax.tree.map(jnp.add, totals, part(params, one)), None

    return jax.lax.scan(add, zeros, cut)[0]
