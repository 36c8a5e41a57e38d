"""Optimizers and learning-rate schedules (paper, section 5.3), as optax transformations.

An entry of `OPTIMIZERS` is called inside the traced step. The peak learning rate is a traced argument of the
schedule, so it can change without a recompilation. Any optax transformation can be an entry.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from transformer.config import OptimizerConfig, UserError, choose

Peak = Float[Array, ""] | float


def paper(config: OptimizerConfig, peak: Peak, num_steps: int) -> optax.Schedule:
    """Equation 3: linear warm-up, then decay with the inverse square root of the step.

    lrate = d_model^-0.5 * min(step^-0.5, step * warmup_steps^-1.5), where both terms are equal at the peak,
    (d_model * warmup_steps)^-0.5. `step` counts updates from 1.
    """
    del num_steps

    def schedule(count):
        step = jnp.asarray(count + 1, jnp.float32)
        return peak * jnp.minimum(step / config.warmup_steps, jnp.sqrt(config.warmup_steps / step))

    return schedule


def constant(config: OptimizerConfig, peak: Peak, num_steps: int) -> optax.Schedule:
    """Linear warm-up, then the peak.

    Differs from the paper: no decay.
    """
    del num_steps
    return _join(config, peak, [optax.constant_schedule(peak)], [])


def cosine(config: OptimizerConfig, peak: Peak, num_steps: int) -> optax.Schedule:
    """Linear warm-up, then half a cosine (Loshchilov and Hutter 2017).

    After the last step, it is `final_fraction` of the peak.

    Differs from the paper: the decay.
    """
    _require_steps(config.warmup_steps, num_steps, "optimizer.warmup_steps")
    decay = optax.cosine_decay_schedule(peak, num_steps - config.warmup_steps + 1, config.final_fraction)
    return _join(config, peak, [decay], [])


def wsd(config: OptimizerConfig, peak: Peak, num_steps: int) -> optax.Schedule:
    """Warm-up, stable peak, linear decay over `decay_steps` (Hu et al. 2024).

    After the last step, it is `final_fraction` of the peak.

    Differs from the paper: the decay.
    """
    decay_steps = config.decay_steps or max(1, num_steps // 10)
    _require_steps(
        config.warmup_steps + decay_steps, num_steps, "optimizer.warmup_steps + optimizer.decay_steps"
    )
    decay = optax.linear_schedule(peak, config.final_fraction * peak, decay_steps)
    return _join(config, peak, [optax.constant_schedule(peak), decay], [num_steps - decay_steps + 1])


def _join(config, peak, schedules, boundaries) -> optax.Schedule:
    """Returns a linear warm-up followed by the schedules. The first update has a rate above 0."""
    warmup = optax.linear_schedule(0.0, peak, config.warmup_steps)
    joined = optax.join_schedules([warmup, *schedules], [config.warmup_steps, *boundaries])
    return lambda count: jnp.asarray(joined(count + 1), jnp.float32)


def _require_steps(needed: int, num_steps: int, fields: str) -> None:
    if needed > num_steps:
        raise UserError(f"{fields} is {needed}; it must be at most train.steps ({num_steps})")


# (config, peak learning rate, train.steps) -> function from the number of updates done to the learning rate.
SCHEDULES: dict[str, Callable[[OptimizerConfig, Peak, int], optax.Schedule]] = {
    "paper": paper,
    "constant": constant,
    "cosine": cosine,
    "wsd": wsd,
}


def adam(config: OptimizerConfig, learning_rate: optax.Schedule) -> optax.GradientTransformation:
    """Adam (Kingma and Ba 2015), the paper's optimizer."""
    return optax.adam(learning_rate, b1=config.beta1, b2=config.beta2, eps=config.epsilon)


def adamw(config: OptimizerConfig, learning_rate: optax.Schedule) -> optax.GradientTransformation:
    """Adam with decoupled decay of all matrices (Loshchilov and Hutter 2019); vectors do not decay.

    Differs from the paper: weight decay.
    """
    return optax.adamw(
        learning_rate,
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        mask=lambda params: jax.tree.map(lambda x: x.ndim >= 2, params),
    )


def muon(config: OptimizerConfig, learning_rate: optax.Schedule) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for the kernels of dense layers; all other weights take Adam.

    The momentum of a kernel is orthogonalized before it is applied. Both Muon and Adam use Nesterov momentum.
    Weight decay applies only to kernels.

    Differs from the paper: the optimizer.
    """
    return optax.contrib.muon(
        learning_rate,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        adam_b1=config.beta1,
        adam_b2=config.beta2,
        muon_weight_dimension_numbers=_muon_dimensions,
    )


def _muon_dimensions(params: PyTree) -> PyTree:
    """Marks kernels [in, out]. Embedding tables are matrices too, but their rows are not mixed."""

    def dimensions(path, x):
        is_kernel = jax.tree_util.keystr(path[-1:], simple=True) == "kernel" and x.ndim == 2
        return optax.contrib.MuonDimensionNumbers() if is_kernel else None

    return jax.tree_util.tree_map_with_path(dimensions, params)


def sgd(config: OptimizerConfig, learning_rate: optax.Schedule) -> optax.GradientTransformation:
    """Gradient descent with momentum `beta1`.

    Differs from the paper: the optimizer.
    """
    return optax.sgd(learning_rate, momentum=config.beta1)


OPTIMIZERS: dict[str, Callable[[OptimizerConfig, optax.Schedule], optax.GradientTransformation]] = {
    "adam": adam,
    "adamw": adamw,
    "muon": muon,
    "sgd": sgd,
}


def make_schedule(config: OptimizerConfig, peak: Peak, num_steps: int) -> optax.Schedule:
    """Returns the schedule that a config names, which maps the number of updates to the learning rate.

    Raises:
      UserError: an unknown name, or fewer steps than the schedule needs.
    """
    return choose(SCHEDULES, config.schedule, "optimizer.schedule")(config, peak, num_steps)


def make_optimizer(config: OptimizerConfig, learning_rate: optax.Schedule) -> optax.GradientTransformation:
    """Returns the optimizer that a config names. If `clip_norm` is set, the gradient is clipped first.

    If `skip_nonfinite` is set, an update whose gradient is not finite changes nothing.

    Raises:
      UserError: an unknown name.
    """
    optimizer = choose(OPTIMIZERS, config.name, "optimizer.name")(config, learning_rate)
    if config.clip_norm is not None:
        optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    if config.skip_nonfinite:
        optimizer = optax.apply_if_finite(optimizer, config.skip_nonfinite)
    return optimizer
