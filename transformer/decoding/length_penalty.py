"""Length penalties, which make the log-probabilities of outputs of different lengths comparable."""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# Maps the number of tokens of an output, EOS included, to a divisor of its log-probability. The divisor never
# decreases with the number of tokens.
LengthPenalty = Callable[[Int[Array, "*b"] | int], Float[Array, "*b"]]


def wu_penalty(length: Int[Array, "*b"] | int, alpha: Float[Array, ""] | float) -> Float[Array, "*b"]:
    """Length penalty of Wu et al. (2016), equation 14, used in the paper: ((5 + length) / 6)^alpha."""
    return ((5 + jnp.asarray(length, jnp.float32)) / 6) ** alpha


def power_penalty(length: Int[Array, "*b"] | int, alpha: Float[Array, ""] | float) -> Float[Array, "*b"]:
    """Length penalty length^alpha; with alpha 1, a score is the mean log-probability per token."""
    return jnp.maximum(jnp.asarray(length, jnp.float32), 1) ** alpha


PENALTIES: dict[str, Callable[[Int[Array, "*b"] | int, float], Float[Array, "*b"]]] = {
    "wu": wu_penalty,
    "length": power_penalty,
}
NO_PENALTY: LengthPenalty = functools.partial(wu_penalty, alpha=0.0)
