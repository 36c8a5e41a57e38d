"""Dropout (paper, section 5.4) whose masks depend on the example, not on its row, batch or device.

A site is a place in the model where dropout acts. An integer hash of (key, site, example, position, channel)
decides whether an activation is dropped. So the same activations of an example are dropped in any row, in any
batch, on any device and in any part of an accumulated step. The rate can be traced, so a different rate needs
no recompilation. The mixing function is the 32-bit finalizer "lowbias32" of C. Wellons' hash prospector
(2018).
"""

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt32

from transformer.batch import TokenBatch

# Where dropout acts in addition to the paper's sites, which are the outputs of sub-layers and the sums of
# embeddings and positions.
DROPOUT_SITES: dict[str, frozenset[str]] = {
    "paper": frozenset(),
    # The attention weights, and the hidden activations of the feed-forward network.
    "all": frozenset({"attention", "feed_forward"}),
}

# A site is named by the path of its module in the model, such as ("encoder", "layers_0", "feed_forward").
Site = tuple[str, ...]


class Dropout(NamedTuple):
    """Key and rate with which a model drops activations.

    Attributes:
      key: random key that determines the masks; each training step uses a different key.
      rate: probability that an activation is zeroed, in [0, 1); may be traced.
    """

    key: Key[Array, ""]
    rate: Float[Array, ""] | float


class BoundDropout(NamedTuple):
    """Dropout for the activations of one batch; see `bind_dropout`.

    Attributes:
      seed: seed of the hash; if None, nothing is dropped.
      threshold: an activation is dropped if its hash is below the threshold.
      scale: factor on the activations that are not dropped, 1 / (1 - rate).
      batch: the tokens of the batch.
      sites: an entry of `DROPOUT_SITES`.
      layers: paths of the layers that share a program; every site is relative to `layers[layer]`.
      layer: index of the layer at work in `layers`; may be traced.
    """

    seed: UInt32[Array, ""] | None = None
    threshold: UInt32[Array, ""] | None = None
    scale: Float[Array, ""] | float = 1.0
    batch: TokenBatch | None = None
    sites: frozenset[str] = frozenset()
    layers: tuple[Site, ...] = ((),)
    layer: Int[Array, ""] | int = 0

    def in_layer(self, layers: Sequence[Site], layer: Int[Array, ""]) -> "BoundDropout":
        """Returns the dropout of a layer in a program that several layers share; see the attributes."""
        return self._replace(layers=tuple(layers), layer=layer)

    def __call__(self, x: Float[Array, "b t m"], site: Site) -> Float[Array, "b t m"]:
        """Applies dropout to the activations `x` at `site`."""
        if self.seed is None:
            return x
        return x * self._mask(hash_bits(self._site_seed(site), self.batch, x.shape[-1])).astype(x.dtype)

    def hidden(self, x: Float[Array, "b t f"], site: Site) -> Float[Array, "b t f"]:
        """Drops hidden activations of a feed-forward network if `sites` includes them."""
        return self(x, (*site, "hidden")) if "feed_forward" in self.sites else x

    def weights_mask(
        self, site: Site, num_heads: int, key_positions: Int[Array, "b k"] | None = None
    ) -> Float[Array, "b h q k"] | None:
        """Returns the factors on attention weights, 0 or `scale`; None if no weights are dropped.

        Args:
          site: path of the attention module.
          num_heads: number of heads, h.
          key_positions: position of each key in its example; if None, the positions of the queries.
        """
        if self.seed is None or "attention" not in self.sites:
            return None
        keys = _spread(self.batch.positions if key_positions is None else key_positions)[:, None, None, :]
        heads = _spread(jnp.arange(num_heads))[None, :, None, None]
        queries = _token_bits(self._site_seed((*site, "weights")), self.batch)[:, None, :, None]
        return self._mask(lowbias32(lowbias32(queries ^ heads) ^ keys))

    def _site_seed(self, site):
        checksums = [zlib.crc32("/".join((*layer, *site)).encode()) for layer in self.layers]
        checksum = jnp.array(checksums, jnp.uint32)[self.layer] if len(checksums) > 1 else checksums[0]
        return lowbias32(self.seed ^ jnp.uint32(checksum))

    def _mask(self, bits):
        return jnp.where(bits >= self.threshold, self.scale, 0)


NO_DROPOUT = BoundDropout()


def bind_dropout(dropout: Dropout | None, batch: TokenBatch, sites: str = "paper") -> BoundDropout:
    """Binds `dropout` to a batch; `sites` is a key of `DROPOUT_SITES`.

    If `dropout` is None, nothing is dropped.
    """
    if dropout is None:
        return NO_DROPOUT
    return BoundDropout(
        seed=jax.random.bits(dropout.key, dtype=jnp.uint32),
        threshold=(jnp.asarray(dropout.rate, jnp.float32) * 2.0**32).astype(jnp.uint32),
        scale=1 / (1 - dropout.rate),
        batch=batch,
        sites=DROPOUT_SITES[sites],
    )


def hash_bits(seed: UInt32[Array, ""], batch: TokenBatch, num_channels: int) -> UInt32[Array, "b t m"]:
    """Returns 32 uniform random bits for each channel of each token."""
    channels = _spread(jnp.arange(num_channels))[None, None, :]
    return lowbias32(_token_bits(seed, batch)[:, :, None] ^ channels)


def _token_bits(seed: UInt32[Array, ""], batch: TokenBatch) -> UInt32[Array, "b t"]:
    bits = lowbias32(seed ^ batch.segment_ids.astype(jnp.uint32))
    return lowbias32(bits ^ batch.positions.astype(jnp.uint32))


def _spread(numbers: Int[Array, "..."]) -> UInt32[Array, "..."]:
    return numbers.astype(jnp.uint32) * jnp.uint32(0x9E3779B9)


def lowbias32(x: UInt32[Array | np.ndarray, "..."]) -> UInt32[Array | np.ndarray, "..."]:
    """Mixes the bits of each number (Wellons 2018). Different numbers have different results."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)
