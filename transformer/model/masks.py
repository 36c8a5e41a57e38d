"""Which piece may see which. Every mask of the model is made here; True means "may attend"."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from transformer.config import PAD


class Layout(NamedTuple):
    """Where the pieces of a batch belong, so that one row may hold several packed examples.

    Attributes:
      segments: the example a piece belongs to, as a positive id that is unique in its row; 0 is padding.
        The pieces of a segment are contiguous, and a source segment's translation has the same id.
      positions: the piece's position in its own segment, counted from 0.
    """

    segments: Int[Array, "b t"]
    positions: Int[Array, "b t"]

    @classmethod
    def of(cls, tokens: Int[Array, "b t"]) -> "Layout":
        """The layout of rows that hold one example each, padded at the end with `PAD`."""
        rows = jnp.arange(1, tokens.shape[0] + 1, dtype=jnp.int32)[:, None]
        return cls(
            segments=jnp.where(tokens != PAD, rows, 0),
            # 0 in padding, so that it never reaches past the end of a position table.
            positions=jnp.where(tokens != PAD, jnp.arange(tokens.shape[1], dtype=jnp.int32), 0),
        )


def segment_mask(query: Int[Array, "b q"], key: Int[Array, "b k"]) -> Bool[Array, "b q k"]:
    """Lets a piece see the pieces of its own segment and no padding."""
    return (query[:, :, None] == key[:, None, :]) & (key[:, None, :] != 0)


def causal_mask(length: int) -> Bool[Array, "1 q k"]:
    """Hides what comes later (paper, section 3.2.3): position i sees the positions up to i."""
    index = jnp.arange(length)
    return (index[:, None] >= index[None, :])[None]


def past_mask(ancestors: Int[Array, "b n t"], index: Int[Array, ""]) -> Bool[Array, "b n k"]:
    """Lets step `index` of a search see its own past among what all hypotheses of a sentence have written.

    Args:
      ancestors: which hypothesis wrote a hypothesis' piece at each step.
      index: the step; what comes later is not written yet.

    Returns:
      Of each hypothesis, what it sees of the t n pieces, those of a step next to each other.
    """
    _, hypotheses, length = ancestors.shape
    own = ancestors[..., None] == jnp.arange(hypotheses)
    return (own & (jnp.arange(length) <= index)[:, None]).reshape(*ancestors.shape[:2], -1)
