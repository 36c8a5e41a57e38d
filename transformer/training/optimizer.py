"""Adam and the learning rate of the paper (section 5.3)."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from transformer.config import OptimizerConfig


def adam(config: OptimizerConfig) -> optax.GradientTransformation:
    """Adam's direction, bias-corrected; the step multiplies it by the learning rate."""
    return optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.epsilon)


def peak_learning_rate(config: OptimizerConfig, d_model: int) -> float:
    """The rate at the end of the warm-up; the paper's is (d_model * warmup_steps)^-0.5."""
    return config.learning_rate or (d_model * config.warmup_steps) ** -0.5


def learning_rate(
    step: Int[Array, ""] | int, peak: Float[Array, ""] | float, warmup_steps: int
) -> Float[Array, ""]:
    """Equation 3: linear warm-up, then decay with the inverse square root of the step.

    With the paper's peak this is d_model^-0.5 * min(step^-0.5, step * warmup_steps^-1.5). `step` counts
    updates from 1.
    """
    step = jnp.asarray(step, jnp.float32)
    return peak * jnp.minimum(step / warmup_steps, jnp.sqrt(warmup_steps / step))
