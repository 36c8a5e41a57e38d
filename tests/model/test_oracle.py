"""The model against the paper's equations in float64."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.model import oracle
from tests.tiny import VOCAB, as_int, logits
from transformer.model.attention import MultiHeadAttention, scaled_dot_product_attention
from transformer.model.positions import sinusoid_table


def float64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def test_scaled_dot_product_attention():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=shape) for shape in ((2, 3, 5, 7), (2, 11, 5, 7), (2, 11, 5, 13)))
    mask = rng.random((2, 3, 11)) < 0.6
    mask[:, :, 0] = True
    ours, weights = scaled_dot_product_attention(*map(jnp.float32, (q, k, v)), jnp.array(mask))
    for b in range(2):
        for h in range(5):
            theirs = oracle.attention(q[b, :, h], k[b, :, h], v[b, :, h], mask[b])
            np.testing.assert_allclose(ours[b, :, h], theirs, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-6)
    assert np.all(weights[np.broadcast_to(~mask[:, None], weights.shape)] == 0)


def test_a_query_that_sees_nothing_is_not_nan():
    x = jnp.ones((1, 2, 1, 3))
    out, weights = scaled_dot_product_attention(x, x, x, jnp.zeros((1, 2, 2), bool))
    assert np.isfinite(out).all()
    assert np.isfinite(weights).all()


def test_multi_head_attention():
    rng = np.random.default_rng(1)
    x, memory = rng.normal(size=(1, 3, 22)), rng.normal(size=(1, 5, 22))
    module = MultiHeadAttention(num_heads=3, d_k=5, d_v=7, d_model=22)
    mask = jnp.array([[[1, 1, 0, 1, 0], [0, 1, 1, 1, 1], [1, 0, 0, 0, 0]]], bool)
    ours, variables = module.init_with_output(jax.random.key(0), jnp.float32(x), jnp.float32(memory), mask)
    theirs = oracle.multi_head(x[0], memory[0], float64(variables["params"]), 3, np.array(mask[0]))
    np.testing.assert_allclose(ours[0], theirs, rtol=1e-5, atol=1e-6)


def test_whole_transformer(tiny):
    model, params = tiny
    # Norms and biases start at 1 and 0, where a mistake would not show.
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    moved = [x + 0.1 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
    params = jax.tree.unflatten(tree, moved)
    source, target = [4, 5, 6, 7, 2], [10, 11, 2]
    ours = logits(model, params, as_int([source]), as_int([target]))
    theirs = oracle.transformer(source, target, float64(params), heads=3)
    assert ours.shape == (1, 3, VOCAB)
    np.testing.assert_allclose(ours[0], theirs, rtol=1e-4, atol=1e-5)


def test_golden_sinusoid():
    """The first four channels of d_model 8: 10,000^(2i/8) is 1 and 10, as is 100^(2i/4)."""
    table = [
        [0, 1, 0, 1],
        [0.84147098, 0.54030231, 0.09983342, 0.99500417],
        [0.90929743, -0.41614684, 0.19866933, 0.98006658],
        [0.14112001, -0.9899925, 0.29552021, 0.95533649],
    ]
    np.testing.assert_allclose(sinusoid_table(7, 22), oracle.sinusoid(7, 22), rtol=0, atol=1e-14)
    np.testing.assert_allclose(sinusoid_table(4, 8)[:, :4], table, atol=1e-7)
