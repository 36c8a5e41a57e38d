"""Dropout (paper, section 5.4) whose mask is a function of what is dropped, not of where it runs.

A mask bit is an integer hash of (key, site, example, position, channel). So the same example loses the
same activations in any row, batch, device or accumulation part; a traced rate needs no recompilation;
and on CPU the bits cost a small part of threefry's. The mixing function is the 32-bit finaliser
"lowbias32" of C. Wellons' hash prospector (2018).
"""

import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt32

from transformer.model.masks import Layout

# What is dropped: sub-layers' outputs and the sums of embeddings and positions always, and besides
DROPOUT_SITES: dict[str, frozenset[str]] = {
    "paper": frozenset(),
    "all": frozenset(
        {"attention", "feed_forward"}
    ),  # the attention weights, and inside the feed-forward layer
}

Site = tuple[str, ...]  # where in the model: a module's path


class Dropout(NamedTuple):
    """Asks a model to drop.

    Attributes:
      key: decides the masks; a new one each step.
      rate: probability that an activation is zeroed, in [0, 1); may be traced.
    """

    key: Key[Array, ""]
    rate: Float[Array, ""] | float


class Drop(NamedTuple):
    """Drops from the activations of rows laid out as `layout`; without a seed, from none.

    Attributes:
      seed: decides the masks.
      threshold: bits below it are dropped.
      scale: of what is kept.
      layout: of the rows.
      sites: that drop besides the paper's.
    """

    seed: UInt32[Array, ""] | None = None
    threshold: UInt32[Array, ""] | None = None
    scale: Float[Array, ""] | float = 1.0
    layout: Layout | None = None
    sites: frozenset[str] = frozenset()

    def __call__(self, x: Float[Array, "b t m"], site: Site) -> Float[Array, "b t m"]:
        """Drops from the activations at a site."""
        if self.seed is None:
            return x
        return self._masked(x, mask_bits(self.seed, site, self.layout, x.shape[-1]))

    def feed_forward(self, x: Float[Array, "b t f"], site: Site) -> Float[Array, "b t f"]:
        """Drops inside the feed-forward layer, where `sites` has it."""
        return self(x, (*site, "hidden")) if "feed_forward" in self.sites else x

    def attention(
        self, weights: Float[Array, "b h q k"], site: Site, keys: Int[Array, "b k"]
    ) -> Float[Array, "b h q k"]:
        """Drops attention weights, where `sites` has them; `keys` are the positions of the keys' pieces."""
        if self.seed is None or "attention" not in self.sites:
            return weights
        heads = _spread(jnp.arange(weights.shape[1]))[:, None, None]
        query = _pieces(self.seed, (*site, "weights"), self.layout)[:, None, :, None]
        return self._masked(weights, _mix(_mix(query ^ heads) ^ _spread(keys)[:, None, None, :]))

    def _masked(self, x, bits):
        return x * jnp.where(bits >= self.threshold, self.scale, 0).astype(x.dtype)


def dropper(dropout: Dropout | None, layout: Layout, sites: str = "paper") -> Drop:
    """What drops from activations laid out as `layout`; `sites` is a name in `DROPOUT_SITES`."""
    if dropout is None:
        return Drop()
    return Drop(
        seed=jax.random.bits(dropout.key, dtype=jnp.uint32),
        threshold=(jnp.asarray(dropout.rate, jnp.float32) * 2.0**32).astype(jnp.uint32),
        scale=1 / (1 - dropout.rate),
        layout=layout,
        sites=DROPOUT_SITES[sites],
    )


def mask_bits(seed: UInt32[Array, ""], site: Site, layout: Layout, channels: int) -> UInt32[Array, "b t m"]:
    """Uniform bits for each channel of each piece."""
    return _mix(_pieces(seed, site, layout)[:, :, None] ^ _spread(jnp.arange(channels)))


def _pieces(seed: UInt32[Array, ""], site: Site, layout: Layout) -> UInt32[Array, "b t"]:
    start = _mix(seed ^ jnp.uint32(zlib.crc32("/".join(site).encode())))
    piece = _mix(start ^ layout.segments.astype(jnp.uint32))
    return _mix(piece ^ layout.positions.astype(jnp.uint32))


def _spread(numbers: Int[Array, "..."]) -> UInt32[Array, "..."]:
    return numbers.astype(jnp.uint32) * jnp.uint32(0x9E3779B9)


def _mix(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
