"""Digests: equal for equal arrays, however they are split, and different otherwise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from transformer.training import digests
from transformer.training.digests import digest, is_split

RNG = np.random.default_rng(0)
ARRAYS = {
    "float32": np.float32(RNG.normal(size=(16, 24))),
    "three_axes": np.float32(RNG.normal(size=(8, 4, 6))),
    "bfloat16": jnp.bfloat16(RNG.normal(size=(8, 8))),
    "int32": np.int32(RNG.integers(-9, 9, (8, 4))),
    "bool": RNG.random((8, 4)) < 0.5,
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("spec", [("a",), (None, "b"), ("b", "a"), (("a", "b"),)], ids=str)
def test_a_digest_does_not_depend_on_how_an_array_is_split(name, spec):
    mesh = jax.make_mesh((4, 2), ("a", "b"), (AxisType.Auto,) * 2)
    whole = {name: ARRAYS[name]}
    split = jax.device_put(whole, NamedSharding(mesh, PartitionSpec(*spec)))
    assert is_split(split[name])
    assert not is_split(jax.device_put(whole[name]))
    assert digest(split) == digest(whole) == digest(jax.device_put(whole))


def test_every_flipped_bit_changes_the_digest():
    array = ARRAYS["float32"][:2, :5].copy()
    original, bits = digest([array]), array.view(np.uint32).reshape(-1)
    for element in range(array.size):
        for bit in range(32):
            bits[element] ^= np.uint32(1 << bit)
            assert digest([array]) != original
            bits[element] ^= np.uint32(1 << bit)
    assert digest([array]) == original


def test_names_shapes_dtypes_and_order_change_the_digest():
    array = ARRAYS["float32"]
    trees = [
        {"a": array}, {"b": array}, {"a": array, "c": array}, {"a": array.T}, {"a": array.reshape(24, 16)},
        {"a": array.astype(np.float64)}, {"a": array[::-1]}, {"a": array[:, ::-1]}, {"a": array + 1}, {},
    ]  # fmt: skip
    assert len({digest(tree) for tree in trees}) == len(trees)


def test_the_host_hashes_in_blocks(monkeypatch):
    whole = digest(ARRAYS["three_axes"])
    monkeypatch.setattr(digests, "BLOCK", 7)
    assert digest(ARRAYS["three_axes"]) == whole


def test_a_scalar_has_the_same_digest_on_host_and_device():
    assert digest(np.float32(3)) == digest(jnp.float32(3))
