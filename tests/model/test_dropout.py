"""Dropout masks made by hashing: statistics, independence, and the sites of a transformer.

A site is a place in the model where dropout acts.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.tiny import VOCAB, packed_batch, tiny_config, token_batch
from transformer.batch import TokenBatch
from transformer.model import build_model, parameter_shapes
from transformer.model.dropout import Dropout, bind_dropout, hash_bits

SIZE = 64  # examples, positions and channels
NUM_HEADS = 8
EXAMPLES = TokenBatch(
    tokens=np.ones((SIZE, SIZE), np.int32),
    segment_ids=np.tile(np.arange(1, SIZE + 1, dtype=np.int32)[:, None], (1, SIZE)),
    positions=np.tile(np.arange(SIZE, dtype=np.int32), (SIZE, 1)),
)
# The number of axes of a mask, for each kind of site. The axes are example, position and channel; or example,
# head, query and key.
NUM_AXES = {"outputs": 3, "feed_forward": 3, "attention": 4}


@functools.partial(jax.jit, static_argnames=("kind", "site"))
def factors(kind, seed, rate, site, batch):
    """The factors by which dropout multiplies the activations of a site."""
    dropout = bind_dropout(Dropout(jax.random.key(seed), rate), batch, "all")
    if kind == "attention":
        return dropout.weights_mask(site, NUM_HEADS)
    ones = jnp.ones((*batch.tokens.shape, SIZE))
    return dropout(ones, site) if kind == "outputs" else dropout.hidden(ones, site)


@functools.cache
def kept(kind="outputs", rate=0.5, seed=0, site=("a",)) -> np.ndarray:
    """The mask of a site for `EXAMPLES`: True where an activation is kept."""
    return np.asarray(factors(kind, seed, rate, site, EXAMPLES)) != 0


@pytest.mark.parametrize("kind", NUM_AXES)
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3, 0.5, 0.9])
def test_the_share_of_dropped_activations_is_the_rate_overall_and_along_every_axis(rate, kind):
    mask = kept(kind, rate)
    deviation = np.sqrt(rate * (1 - rate))
    assert abs(mask.mean() - (1 - rate)) <= 4 * deviation / np.sqrt(mask.size)
    for axis, size in enumerate(mask.shape):
        shares = np.moveaxis(mask, axis, 0).reshape(size, -1).mean(axis=1)
        assert np.abs(shares - (1 - rate)).max() <= 5 * deviation / np.sqrt(mask.size / size)


def test_kept_activations_are_scaled_so_that_the_mean_does_not_change():
    np.testing.assert_allclose(
        np.unique(factors("outputs", 0, 0.25, ("a",), EXAMPLES)), [0, 1 / 0.75], rtol=1e-6
    )


def correlation(a, b):
    """Correlation of two masks in standard deviations. It is about N(0, 1) for independent masks."""
    return np.corrcoef(a.ravel(), b.ravel())[0, 1] * np.sqrt(a.size)


@pytest.mark.parametrize("kind", NUM_AXES)
def test_masks_of_modules_and_steps_are_independent(kind):
    mask = kept(kind)
    assert abs(correlation(mask, kept(kind, site=("b",)))) < 4
    assert abs(correlation(mask, kept(kind, seed=1))) < 4


def test_masks_of_one_module_are_independent():
    """The masks are those for outputs, for hidden activations, and for the attention weights of each head."""
    outputs, hidden, weights = map(kept, NUM_AXES)
    assert abs(correlation(outputs, hidden)) < 4
    for head in range(NUM_HEADS):
        assert abs(correlation(outputs, weights[:, head])) < 4
        assert abs(correlation(hidden, weights[:, head])) < 4


@pytest.mark.parametrize(
    ("kind", "axis"), [(kind, axis) for kind in NUM_AXES for axis in range(NUM_AXES[kind])]
)
def test_neighbors_along_an_axis_are_independent(kind, axis):
    mask = np.moveaxis(kept(kind), axis, 0)
    for lag in (1, 2, 3, 7, 16, 32):
        if lag < len(mask):
            assert abs(correlation(mask[:-lag], mask[lag:])) < 4


@pytest.mark.parametrize(
    ("kind", "axes"),
    [(kind, axes) for kind in NUM_AXES for axes in itertools.combinations(range(NUM_AXES[kind]), 2)],
)
def test_transposed_places_are_independent(kind, axes):
    """Transposed places are, for example, query 3 with key 5 and query 5 with key 3."""
    mask = np.moveaxis(kept(kind), axes, (0, 1))
    above = np.triu_indices(min(mask.shape[:2]), 1)
    assert abs(correlation(mask[above], mask.swapaxes(0, 1)[above])) < 4


def test_every_bit_of_the_hash_is_fair():
    bits = np.asarray(jax.jit(hash_bits, static_argnums=2)(np.uint32(5), EXAMPLES, SIZE))
    shares = np.array([(bits >> np.uint32(place) & 1).mean() for place in range(32)])
    assert np.abs(shares - 0.5).max() <= 4.5 * 0.5 / np.sqrt(bits.size)


def test_an_example_has_the_same_mask_in_every_row():
    alone = packed_batch([{3: [4] * 3}, {}], length=5)
    packed = packed_batch([{9: [4] * 5}, {5: [4] * 2, 3: [4] * 3}])
    masks = [np.asarray(factors("outputs", 0, 0.5, ("a",), batch)) for batch in (alone, packed)]
    np.testing.assert_array_equal(masks[0][0, :3], masks[1][1, 2:])


def test_the_sites_of_the_paper_are_only_outputs():
    dropout, x = (
        bind_dropout(Dropout(jax.random.key(0), 0.5), EXAMPLES, "paper"),
        jnp.asarray(np.ones((SIZE, SIZE, SIZE), np.float32)),
    )
    assert dropout.hidden(x, ("a",)) is x
    assert dropout.weights_mask(("a",), NUM_HEADS) is None


@pytest.mark.parametrize("sites", ["paper", "all"])
def test_the_sites_of_a_transformer_have_fixed_names(sites, monkeypatch):
    """Masks depend on the names of the sites, so a new name would change the results of a run."""
    dropped = set()

    def record(site):
        dropped.add(site.decode())
        return 0

    monkeypatch.setattr("transformer.model.dropout.zlib.crc32", record)
    model = build_model(tiny_config(num_layers=1, dropout_sites=sites), VOCAB)
    dropout = Dropout(jax.random.key(0), 0.1)
    batch = token_batch([[4, 2]])
    jax.eval_shape(
        lambda params: model.apply({"params": params}, batch, batch, dropout), parameter_shapes(model)
    )

    expected = {"encoder", "decoder"}
    for stack, attentions in (("encoder", ["self"]), ("decoder", ["self", "cross"])):
        layer = f"{stack}/layers_0"
        expected |= {f"{layer}/{name}_attention_residual" for name in attentions}
        expected |= {f"{layer}/feed_forward_residual"}
        if sites == "all":
            expected |= {f"{layer}/{name}_attention/weights" for name in attentions}
            expected |= {f"{layer}/feed_forward/hidden"}
    assert dropped == expected


def test_without_dropout_nothing_is_dropped():
    dropout, x = bind_dropout(None, EXAMPLES, "all"), jnp.asarray(np.ones((SIZE, SIZE, SIZE), np.float32))
    assert dropout(x, ("a",)) is x
    assert dropout.hidden(x, ("a",)) is x
    assert dropout.weights_mask(("a",), NUM_HEADS) is None


def test_different_rates_share_one_program():
    traced = []

    @jax.jit
    def mean(rate):
        traced.append(rate)
        return bind_dropout(Dropout(jax.random.key(0), rate), EXAMPLES)(
            jnp.ones((SIZE, SIZE, 8)), ("a",)
        ).mean()

    assert [float(mean(rate)) for rate in (0.0, 0.5)] == pytest.approx([1, 1], abs=0.05)
    assert len(traced) == 1
