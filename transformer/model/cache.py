"""Keys and values that a search keeps between decoding steps.

Caches are never reordered when one hypothesis continues another. Instead, a `DecoderState` maps each
hypothesis to the cache entries of its tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from transformer.model.attention import KeysValues


class KVCache(NamedTuple):
    """Cached keys and values of one attention layer.

    In cross-attention, an entry (axis k) belongs to a source token. In self-attention with n hypotheses per
    sentence, entry t n + i belongs to step t of hypothesis i. A decoder-only model has s entries of the
    source first, so that this is entry s + t n + i. The entries are the last axis; with another
    order of axes, the matrix products of attention would copy the whole cache at each step.
    """

    key: Float[Array, "b g d k"]
    value: Float[Array, "b g e k"]

    @classmethod
    def store(cls, keys_values: KeysValues) -> "KVCache":
        """Makes a cache of projected keys and values."""
        return cls(*(jnp.moveaxis(array, 1, -1) for array in keys_values))

    def load(self) -> KeysValues:
        """Returns the keys and values in the axis order of attention."""
        return KeysValues(*(jnp.moveaxis(array, -1, 1) for array in self))

    def empty(self, num_entries: int) -> "KVCache":
        """Returns a cache of zeros with `num_entries` entries; the other axes keep their sizes."""
        return KVCache(*(jnp.zeros((*array.shape[:-1], num_entries), array.dtype) for array in self))

    def extend(self, num_entries: int) -> "KVCache":
        """Returns the cache with `num_entries` empty entries added."""
        return KVCache(*(jnp.pad(array, ((0, 0), (0, 0), (0, 0), (0, num_entries))) for array in self))

    def write(self, keys_values: KeysValues, start: Int[Array, ""] | int) -> "KVCache":
        """Writes keys and values to the entries from `start` on. Returns the new cache."""
        new = KVCache.store(keys_values)
        return KVCache(
            jax.lax.dynamic_update_slice_in_dim(self.key, new.key, start, axis=3),
            jax.lax.dynamic_update_slice_in_dim(self.value, new.value, start, axis=3),
        )


class EncoderCache(NamedTuple):
    """Keys and values of the source. The hypotheses of a sentence share them.

    Attributes:
      layers: the cross-attention cache of each decoder layer.
      mask: False in padding.
    """

    layers: tuple[KVCache, ...]
    mask: Bool[Array, "b s"]


class DecoderState(NamedTuple):
    """State of the decoder between two steps of a search.

    Attributes:
      layers: the self-attention cache of each decoder layer.
      ancestors: for each hypothesis and step, the index of the hypothesis that wrote the token's cache entry.
    """

    layers: tuple[KVCache, ...]
    ancestors: Int[Array, "b n t"]

    def extend(self, length: int) -> "DecoderState":
        """Returns a state with space for `length` tokens per hypothesis in total."""
        _, num_hypotheses, old_length = self.ancestors.shape
        steps = length - old_length
        return DecoderState(
            tuple(cache.extend(steps * num_hypotheses) for cache in self.layers),
            jnp.pad(self.ancestors, ((0, 0), (0, 0), (0, steps))),
        )

    def advance(self, parents: Int[Array, "b n"], index: Int[Array, ""]) -> Int[Array, "b n t"]:
        """Returns the ancestors at step `index`: each hypothesis inherits its parent's and adds itself."""
        rows, num_hypotheses, _ = self.ancestors.shape
        ancestors = jnp.take_along_axis(self.ancestors, parents[..., None], axis=1)
        itself = jnp.broadcast_to(jnp.arange(num_hypotheses)[None, :, None], (rows, num_hypotheses, 1))
        return jax.lax.dynamic_update_slice_in_dim(ancestors, itself, index, axis=2)
