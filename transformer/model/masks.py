"""Attention masks. True means "may attend"."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

# Logit of a key that a query may not see. The weight of the key is then 0 in float32. If a query may see no
# key, its weights are uniform; with minus infinity, they would be NaN.
NEG_INF = -1e9


def segment_mask(query_ids: Int[Array, "b q"], key_ids: Int[Array, "b k"]) -> Bool[Array, "b q k"]:
    """Lets a token see the tokens of its own segment and no padding."""
    same = query_ids[:, :, None] == key_ids[:, None, :]
    return same & (key_ids != 0)[:, None, :]


def causal_mask(length: int) -> Bool[Array, "1 q k"]:
    """Hides later tokens: position i sees the positions up to i (paper, section 3.2.3)."""
    index = jnp.arange(length)
    return (index[:, None] >= index[None, :])[None]


def window_mask(
    query_index: Int[Array, "q"], key_index: Int[Array, "k"], window: int
) -> Bool[Array, "1 q k"]:
    """Hides tokens at a distance of `window` or more (Child et al. 2019; Beltagy et al. 2020, section 3.1).

    A query sees itself and at most `window` - 1 tokens on each side; a causal mask hides the later ones.
    Indices count tokens from the start of a row.

    Differs from the paper, which leaves restricted attention to future work (section 4).
    """
    return (jnp.abs(query_index[:, None] - key_index[None, :]) < window)[None]


def ancestor_mask(ancestors: Int[Array, "b n t"], index: Int[Array, ""]) -> Bool[Array, "b n k"]:
    """Lets each hypothesis of a search see only the cache entries of its own tokens.

    Args:
      ancestors: see `DecoderState`.
      index: the current step; later steps have no entries yet.

    Returns:
      A mask over the t * n entries of a `KVCache`, where the hypotheses of a step are adjacent.
    """
    rows, num_hypotheses, length = ancestors.shape
    writers = jnp.arange(num_hypotheses)[None, None, None, :]
    steps = jnp.arange(length)[None, None, :, None]
    mask = (ancestors[..., None] == writers) & (steps <= index)
    return mask.reshape(rows, num_hypotheses, -1)
