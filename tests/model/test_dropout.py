"""Hashed masks: their quality, and that they depend on the example and not on its place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import as_int
from transformer.model.dropout import Dropout, dropper, mask_bits
from transformer.model.masks import Layout

LAYOUT = Layout(
    segments=jnp.tile(jnp.arange(1, 65)[:, None], (1, 64)), positions=jnp.tile(jnp.arange(64), (64, 1))
)
CHANNELS = 64


def mask(rate=0.5, key=0, site=("a",), layout=LAYOUT):
    drop = dropper(Dropout(jax.random.key(key), rate), layout)
    return np.asarray(drop(jnp.ones((*layout.segments.shape, CHANNELS)), site)) != 0


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3, 0.5, 0.9])
def test_rate_is_met_overall_and_along_every_axis(rate):
    kept = mask(rate)
    deviation = np.sqrt(rate * (1 - rate))
    assert abs(kept.mean() - (1 - rate)) <= 4 * deviation / np.sqrt(kept.size)
    for axes in ((0, 1), (0, 2), (1, 2)):
        shares = kept.mean(axis=axes)  # of 4,096 bits each
        assert np.abs(shares - (1 - rate)).max() <= 5 * deviation / 64


def test_kept_values_are_scaled_so_that_the_mean_stays():
    drop = dropper(Dropout(jax.random.key(0), 0.25), LAYOUT)
    out = np.asarray(drop(jnp.ones((64, 64, CHANNELS)), ("a",)))
    np.testing.assert_allclose(np.unique(out), [0, 1 / 0.75], rtol=1e-6)


def correlation(a, b):
    """Of two masks of equal shape; about N(0, 1 / size) where they are independent."""
    return np.corrcoef(a.ravel(), b.ravel())[0, 1] * np.sqrt(a.size)


def test_independent_across_sites_and_keys():
    first = mask()
    assert abs(correlation(first, mask(site=("b",)))) < 4
    assert abs(correlation(first, mask(key=1))) < 4


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["example", "position", "channel"])
@pytest.mark.parametrize("lag", [1, 2, 3, 7, 16, 32])
def test_independent_along_an_axis(axis, lag):
    kept = mask()
    near = np.take(kept, range(kept.shape[axis] - lag), axis=axis)
    far = np.take(kept, range(lag, kept.shape[axis]), axis=axis)
    assert abs(correlation(near, far)) < 4


def test_every_bit_of_the_hash_is_fair():
    bits = np.asarray(mask_bits(jnp.uint32(5), ("a",), LAYOUT, CHANNELS))
    shares = np.array([(bits >> np.uint32(place) & 1).mean() for place in range(32)])
    assert np.abs(shares - 0.5).max() <= 4.5 * 0.5 / np.sqrt(bits.size)


def test_an_example_keeps_its_mask_wherever_it_lies():
    alone = Layout(as_int([[3, 3, 3, 0, 0]]), as_int([[0, 1, 2, 0, 0]]))
    packed = Layout(as_int([[9, 9, 9, 9, 9], [5, 5, 3, 3, 3]]), as_int([[0, 1, 2, 3, 4], [0, 1, 0, 1, 2]]))
    np.testing.assert_array_equal(mask(layout=alone)[0, :3], mask(layout=packed)[1, 2:])


def test_traced_rate_needs_no_recompilation():
    calls = []

    @jax.jit
    def kept(rate):
        calls.append(rate)
        return dropper(Dropout(jax.random.key(0), rate), LAYOUT)(jnp.ones((64, 64, 8)), ("a",)).mean()

    assert [float(kept(rate)) for rate in (0.0, 0.5)] == pytest.approx([1, 1], abs=0.05)
    assert len(calls) == 1


def test_no_dropout_is_the_identity():
    x = jnp.ones((64, 64, 8))
    assert dropper(None, LAYOUT)(x, ("a",)) is x
