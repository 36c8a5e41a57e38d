"""Sampling the next piece: temperature, top-k (Fan et al. 2018), nucleus (Holtzman et al. 2020)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from transformer.decoding.pieces import IMPOSSIBLE, top_k
from transformer.decoding.search import Choose


def keep_top_k(logits: Float[Array, "*b v"], k: int) -> Float[Array, "*b v"]:
    """Keeps the `k` most probable pieces, and those as probable as the last of them."""
    least = top_k(logits, min(k, logits.shape[-1]))[0][..., -1:]
    return jnp.where(logits >= least, logits, IMPOSSIBLE)


def keep_top_p(logits: Float[Array, "*b v"], p: float) -> Float[Array, "*b v"]:
    """Keeps the fewest most probable pieces that have at least probability `p` together (the nucleus)."""
    order = jnp.sort(logits, axis=-1, descending=True)
    before = jnp.cumsum(jax.nn.softmax(order), axis=-1) - jax.nn.softmax(order)
    least = jnp.min(jnp.where(before < p, order, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits >= least, logits, IMPOSSIBLE)


def sampler(
    key: Key[Array, ""],
    sentences: Int[Array, "b"],
    temperature: float = 1.0,
    k: int | None = None,
    p: float | None = None,
) -> Choose:
    """Draws from softmax(logits / temperature), cut to the `k` most probable, then to the nucleus of `p`.

    Args:
      key: decides all draws.
      sentences: a number for each sentence. A sentence's draws depend on its number, on the hypothesis and
        on the piece's place, not on what else is in the batch.
    """

    def choose(logits: Float[Array, "b n v"], index: Int[Array, ""]) -> Int[Array, "b n"]:
        # From the best one down, so that a low temperature makes no logit as low as an impossible one.
        below = (logits - logits.max(axis=-1, keepdims=True)) / temperature
        logits = jnp.maximum(below, IMPOSSIBLE)
        logits = logits if k is None else keep_top_k(logits, k)
        logits = logits if p is None else keep_top_p(logits, p)

        def draw(sentence, hypothesis, logits):
            own = key
            for number in (sentence, hypothesis, index):
                own = jax.random.fold_in(own, number)
            return jax.random.categorical(own, logits)

        hypotheses = jnp.arange(logits.shape[1])
        return jax.vmap(jax.vmap(draw, in_axes=(None, 0, 0)), in_axes=(0, None, 0))(
            sentences, hypotheses, logits
        )

    return choose
