"""Digests of trees of arrays, which do not depend on how the arrays are split over devices.

An integer hash mixes each element of an array with its index, and the hashes are summed modulo 2^32. So every
device can sum the hashes of its own elements, and no array is gathered. If one element changes,
so do the sums.
"""

import functools
import hashlib
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree, UInt32

from transformer.model.dropout import lowbias32

# Odd factors on the index of an element, one for each sum.
FACTORS = (0x9E3779B9, 0x85EBCA6B)
BLOCK = 1 << 14  # elements that are hashed at a time on the host, so that they stay in the cache


def digest(tree: PyTree) -> str:
    """Returns a SHA-256 of the paths, dtypes, shapes and sums of hashes of a tree.

    Arrays that are split over devices are hashed there, all other arrays on the host.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    split = {number: leaf for number, (_, leaf) in enumerate(leaves) if is_split(leaf)}
    sums = {}
    if split:
        mesh = next(iter(split.values())).sharding.mesh
        sums = jax.device_get(_device_sums(split, NamedSharding(mesh, PartitionSpec())))
    state = hashlib.sha256()
    for number, (path, leaf) in enumerate(leaves):
        hashes = sums[number] if number in sums else _host_sums(np.asarray(leaf))
        text = f"{jax.tree_util.keystr(path)} {leaf.dtype} {np.shape(leaf)} {[int(x) for x in hashes]}\n"
        state.update(text.encode())
    return state.hexdigest()


def is_split(leaf: Any) -> bool:
    """Returns whether no device has the whole array. Also accepts a `jax.ShapeDtypeStruct`."""
    sharding = getattr(leaf, "sharding", None)
    return sharding is not None and not sharding.is_fully_replicated


def _host_sums(array: np.ndarray) -> list[int]:
    bits = np.ascontiguousarray(array).reshape(-1).view(f"u{min(array.dtype.itemsize, 4)}")
    index, sums = np.arange(BLOCK, dtype=np.uint32), [0] * len(FACTORS)
    for start in range(0, len(bits), BLOCK):
        block = bits[start : start + BLOCK].astype(np.uint32)
        places = index[: len(block)] + np.uint32(start % 2**32)
        for number, factor in enumerate(FACTORS):
            hashes = lowbias32(block ^ (places * np.uint32(factor)))
            sums[number] = (sums[number] + int(hashes.sum(dtype=np.uint32))) % 2**32
    return sums


@functools.partial(jax.jit, static_argnums=1)
def _device_sums(arrays: dict[int, Array], sharding: NamedSharding) -> dict[int, UInt32[Array, "n"]]:
    sums = {number: _sums(array) for number, array in arrays.items()}
    return jax.lax.with_sharding_constraint(sums, sharding)


def _sums(array):
    bits = array.view(f"uint{8 * array.dtype.itemsize}").astype(jnp.uint32)
    index = jnp.zeros(array.shape, jnp.uint32)
    for axis in range(array.ndim):
        stride = math.prod(array.shape[axis + 1 :]) % 2**32
        index += jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis) * jnp.uint32(stride)
    return jnp.stack(
        [jnp.sum(lowbias32(bits ^ (index * jnp.uint32(factor))), dtype=jnp.uint32) for factor in FACTORS]
    )
