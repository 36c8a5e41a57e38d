"""Dropout (paper, section 5.4) whose mask is a function of what is dropped, not of where it runs.

A mask bit is an integer hash of (key, site, example, position, channel). So the same example loses the
same activations in any row, batch, device or accumulation part; a traced rate needs no recompilation;
and on CPU the bits cost a small part of threefry's. The mixing function is the 32-bit finaliser
"lowbias32" of C. Wellons' hash prospector (2018).
"""

import zlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt32

from transformer.model.masks import Layout

# Drops from activations at a named site of the model: (x, site) -> x.
Drop = Callable[[Float[Array, "b t m"], tuple[str, ...]], Float[Array, "b t m"]]


class Dropout(NamedTuple):
    """Asks a model to drop.

    Attributes:
      key: decides the masks; a new one each step.
      rate: probability that an activation is zeroed, in [0, 1); may be traced.
    """

    key: Key[Array, ""]
    rate: Float[Array, ""] | float


def dropper(dropout: Dropout | None, layout: Layout) -> Drop:
    """The function that drops from activations laid out as `layout`; without `dropout`, the identity."""
    if dropout is None:
        return lambda x, site: x
    seed = jax.random.bits(dropout.key, dtype=jnp.uint32)
    scale = 1 / (1 - dropout.rate)
    threshold = (jnp.asarray(dropout.rate, jnp.float32) * 2.0**32).astype(jnp.uint32)

    def drop(x, site):
        bits = mask_bits(seed, site, layout, x.shape[-1])
        return x * jnp.where(bits >= threshold, scale, 0).astype(x.dtype)

    return drop


def mask_bits(
    seed: UInt32[Array, ""], site: tuple[str, ...], layout: Layout, channels: int
) -> UInt32[Array, "b t m"]:
    """Uniform bits for each channel of each piece."""
    start = _mix(seed ^ jnp.uint32(zlib.crc32("/".join(site).encode())))
    piece = _mix(start ^ layout.segments.astype(jnp.uint32))
    piece = _mix(piece ^ layout.positions.astype(jnp.uint32))
    channel = jnp.arange(channels, dtype=jnp.uint32) * jnp.uint32(0x9E3779B9)
    return _mix(piece[:, :, None] ^ channel)


def _mix(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
