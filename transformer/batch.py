"""Batches of tokens: what the data pipeline makes and the models read."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from transformer.config import PAD

IntArray = jax.Array | np.ndarray


class TokenBatch(NamedTuple):
    """Rows of tokens, each of which may hold several packed examples.

    Attributes:
      tokens: [b, t].
      segment_ids: [b, t], the example a token belongs to, as a positive id that is unique in its row; 0 is
        padding. The tokens of a segment are contiguous. A source and its target have the same id.
      positions: [b, t], the position of a token in its own segment, counted from 0; 0 in padding.
    """

    tokens: IntArray
    segment_ids: IntArray
    positions: IntArray

    @classmethod
    def from_tokens(cls, tokens: IntArray) -> "TokenBatch":
        """Rows that hold one example each, padded at the end with `PAD`."""
        rows = jnp.arange(1, tokens.shape[0] + 1, dtype=jnp.int32)[:, None]
        index = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        return cls(
            tokens=tokens,
            segment_ids=jnp.where(tokens != PAD, rows, 0),
            # 0 in padding, so that no position lies past the end of a position table.
            positions=jnp.where(tokens != PAD, index, 0),
        )


class Batch(NamedTuple):
    """Sentence pairs.

    Attributes:
      source: the sources.
      target: the targets.
      characters: [b], characters of the raw target sentences in each row.
    """

    source: TokenBatch
    target: TokenBatch
    characters: IntArray
