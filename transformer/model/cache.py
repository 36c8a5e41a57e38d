"""Keys and values that a search keeps between decoding steps.

Caches are never reordered when hypotheses continue one another: a `DecoderState` maps each hypothesis to the
entries of its path instead.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from transformer.model.attention import KeysValues


class KVCache(NamedTuple):
    """Cached keys and values of one attention layer.

    The entries k are source tokens, or what all hypotheses of a sentence have written: entry t n + i is
    hypothesis i's at step t. They are the last axis, so that both products of attention read the cache in
    place. In another order each step copies it, which on CPU takes longer than the products.
    """

    key: Float[Array, "b h d k"]
    value: Float[Array, "b h e k"]

    @classmethod
    def store(cls, keys_values: KeysValues) -> "KVCache":
        """A cache of projected keys and values."""
        return cls(*(jnp.moveaxis(array, 1, -1) for array in keys_values))

    def load(self) -> KeysValues:
        """The keys and values as attention takes them."""
        return KeysValues(*(jnp.moveaxis(array, -1, 1) for array in self))

    def empty(self, num_entries: int) -> "KVCache":
        """A cache for keys and values of the same widths."""
        return KVCache(*(jnp.zeros((*array.shape[:-1], num_entries), array.dtype) for array in self))

    def extend(self, num_entries: int) -> "KVCache":
        """Adds empty entries."""
        return KVCache(*(jnp.pad(array, ((0, 0), (0, 0), (0, 0), (0, num_entries))) for array in self))

    def write(self, keys_values: KeysValues, index: Int[Array, ""]) -> "KVCache":
        """Writes the keys and values of all hypotheses at step `index`."""
        new = KVCache.store(keys_values)
        start = index * new.key.shape[-1]
        return KVCache(
            jax.lax.dynamic_update_slice_in_dim(self.key, new.key, start, axis=3),
            jax.lax.dynamic_update_slice_in_dim(self.value, new.value, start, axis=3),
        )


class EncoderCache(NamedTuple):
    """The source as the decoder's cross-attentions read it, shared by the hypotheses of a sentence.

    Attributes:
      layers: the cache of each decoder layer.
      mask: False in padding.
    """

    layers: tuple[KVCache, ...]
    mask: Bool[Array, "b s"]


class DecoderState(NamedTuple):
    """The tokens that the hypotheses of a search have read.

    Attributes:
      layers: the self-attention cache of each decoder layer.
      ancestors: the hypothesis that wrote each token of a hypothesis.
    """

    layers: tuple[KVCache, ...]
    ancestors: Int[Array, "b n t"]

    def extend(self, length: int) -> "DecoderState":
        """Makes space for `length` tokens per hypothesis."""
        _, num_hypotheses, old_length = self.ancestors.shape
        steps = length - old_length
        return DecoderState(
            tuple(cache.extend(steps * num_hypotheses) for cache in self.layers),
            jnp.pad(self.ancestors, ((0, 0), (0, 0), (0, steps))),
        )

    def advance(self, parents: Int[Array, "b n"], index: Int[Array, ""]) -> Int[Array, "b n t"]:
        """The ancestors at step `index`, when each hypothesis continues one of the step before."""
        rows, num_hypotheses, _ = self.ancestors.shape
        ancestors = jnp.take_along_axis(self.ancestors, parents[..., None], axis=1)
        itself = jnp.broadcast_to(jnp.arange(num_hypotheses)[None, :, None], (rows, num_hypotheses, 1))
        return jax.lax.dynamic_update_slice_in_dim(ancestors, itself, index, axis=2)
