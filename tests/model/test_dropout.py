"""Hashed masks: their quality, and that they depend on the example and not on its place."""

import itertools

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
HEADS = 8
AXES = {"outputs": 3, "feed_forward": 3, "attention": 4}  # of what each kind of site drops


def mask(rate=0.5, key=0, site=("a",), layout=LAYOUT, sites="outputs"):
    """What is kept: [example, position, channel], or of attention weights [example, head, query, key]."""
    drop = dropper(Dropout(jax.random.key(key), rate), layout, "all")
    rows, length = layout.segments.shape
    if sites == "attention":
        return (
            np.asarray(drop.attention(jnp.ones((rows, HEADS, length, length)), site, layout.positions)) != 0
        )
    x = jnp.ones((rows, length, CHANNELS))
    return np.asarray(drop(x, site) if sites == "outputs" else drop.feed_forward(x, site)) != 0


@pytest.mark.parametrize("sites", AXES)
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3, 0.5, 0.9])
def test_rate_is_met_overall_and_along_every_axis(rate, sites):
    kept = mask(rate, sites=sites)
    deviation = np.sqrt(rate * (1 - rate))
    assert abs(kept.mean() - (1 - rate)) <= 4 * deviation / np.sqrt(kept.size)
    for axis, size in enumerate(kept.shape):
        shares = np.moveaxis(kept, axis, 0).reshape(size, -1).mean(axis=1)
        assert np.abs(shares - (1 - rate)).max() <= 5 * deviation / np.sqrt(kept.size / size)


def test_kept_values_are_scaled_so_that_the_mean_stays():
    drop = dropper(Dropout(jax.random.key(0), 0.25), LAYOUT)
    out = np.asarray(drop(jnp.ones((64, 64, CHANNELS)), ("a",)))
    np.testing.assert_allclose(np.unique(out), [0, 1 / 0.75], rtol=1e-6)


def correlation(a, b):
    """Of two masks of equal shape; about N(0, 1 / size) where they are independent."""
    return np.corrcoef(a.ravel(), b.ravel())[0, 1] * np.sqrt(a.size)


@pytest.mark.parametrize("sites", AXES)
def test_independent_across_modules_and_steps(sites):
    first = mask(sites=sites)
    assert abs(correlation(first, mask(sites=sites, site=("b",)))) < 4
    assert abs(correlation(first, mask(sites=sites, key=1))) < 4


def test_independent_across_the_sites_of_a_module():
    """Its outputs', the hidden activations' and, as far as there are channels, each head's weights."""
    outputs, hidden, weights = (mask(sites=sites) for sites in AXES)
    assert abs(correlation(outputs, hidden)) < 4
    for head in range(HEADS):
        assert abs(correlation(outputs, weights[:, head])) < 4
        assert abs(correlation(hidden, weights[:, head])) < 4


@pytest.mark.parametrize(("sites", "axis"), [(sites, axis) for sites in AXES for axis in range(AXES[sites])])
def test_independent_along_an_axis(sites, axis):
    kept = np.moveaxis(mask(sites=sites), axis, 0)
    for lag in (1, 2, 3, 7, 16, 32):
        if lag < len(kept):
            assert abs(correlation(kept[:-lag], kept[lag:])) < 4


@pytest.mark.parametrize(
    ("sites", "axes"),
    [(sites, axes) for sites in AXES for axes in itertools.combinations(range(AXES[sites]), 2)],
)
def test_independent_if_two_axes_change_places(sites, axes):
    """Such as query 3 and key 5, and query 5 and key 3."""
    kept = np.moveaxis(mask(sites=sites), axes, (0, 1))
    above = np.triu_indices(min(kept.shape[:2]), 1)
    assert abs(correlation(kept[above], kept.swapaxes(0, 1)[above])) < 4


def test_the_paper_drops_outputs_alone():
    drop, x = dropper(Dropout(jax.random.key(0), 0.5), LAYOUT, "paper"), jnp.ones((64, 64, 64))
    assert drop.feed_forward(x, ("a",)) is x
    weights = x[:, None]
    assert drop.attention(weights, ("a",), LAYOUT.positions) is weights


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
