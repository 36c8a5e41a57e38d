"""The model against the paper's equations in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.model import oracle
from tests.tiny import VOCAB, as_int, logits, tiny_config
from transformer.config import TransformerConfig
from transformer.model import KINDS, build, init_params
from transformer.model.attention import MultiHeadAttention, scaled_dot_product_attention
from transformer.model.dropout import Drop, Dropout, dropper
from transformer.model.layers import FEED_FORWARDS, FeedForward, Residual, rms_norm
from transformer.model.masks import Layout
from transformer.model.order import UNORDERED
from transformer.model.positions import POSITIONS, alibi_slopes, sinusoid_table, t5_ranges
from transformer.model.recurrent import CELLS, additive_attention
from transformer.model.stacks import DecoderLayer


def float64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def moved(params):
    """Norms and biases start at 1 and 0, where a mistake would not show."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    return tree.unflatten(
        [x + 0.1 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
    )


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


@pytest.mark.parametrize(
    ("positions", "max_distance"),
    [*((name, 3 if name == "relative" else None) for name in POSITIONS), ("t5_bias", 20)],
)
def test_whole_transformer(positions, max_distance):
    """Longer than `max_distance` and than the ranges of T5 that hold one distance each."""
    model = build(tiny_config(positions=positions, max_positions=32, max_distance=max_distance), VOCAB)
    params = moved(init_params(model, seed=1))
    source, target = np.random.default_rng(0).integers(4, VOCAB, (2, 29))
    ours = logits(model, params, as_int([source]), as_int([target[:23]]))
    theirs = oracle.transformer(source, target[:23], float64(params), 3, positions, max_distance)
    assert ours.shape == (1, 23, VOCAB)
    np.testing.assert_allclose(ours[0], theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "transformer"])
def test_whole_recurrent_model(kind, cell, pair):
    """Two layers a side, either side padded in some row; without dropout and with."""
    model = build(tiny_config(kind=kind, cell=cell), VOCAB)
    shapes = jax.eval_shape(
        lambda: init_params(model, seed=1)
    )  # to compile it would take as long as the test
    params = jax.tree.map(lambda x: 4 * x, moved(jax.tree.map(lambda x: jnp.zeros(x.shape), shapes)))
    apply = jax.jit(model.apply)
    layouts = [Layout.of(one) for one in pair]
    for rate in (0.0, 0.4):
        dropout = Dropout(jax.random.key(3), rate)
        ours = apply({"params": params}, *pair, *layouts, dropout)
        for row, (source, target) in enumerate(zip(*map(np.asarray, pair), strict=True)):

            def drop(x, site, row=row, dropout=dropout):
                layout = layouts[site.startswith("decoder")]
                ones = jnp.ones((*layout.segments.shape, x.shape[1]))
                return x * np.asarray(dropper(dropout, layout)(ones, tuple(site.split("/"))))[row, : len(x)]

            source, target = np.trim_zeros(source), np.trim_zeros(target)
            attends = kind == "recurrent_attention"
            theirs = oracle.recurrent(source, target, float64(params), cell, attends, drop)
            np.testing.assert_allclose(ours[row, : len(target)], theirs, rtol=1e-4, atol=1e-5)


def test_post_norm_layer_of_prime_sizes():
    """LayerNorm(x + Sublayer(x)) three times, at sizes that share no factor."""
    rng = np.random.default_rng(3)
    config = TransformerConfig(d_model=11, d_ff=13, num_heads=3, d_k=5, d_v=7, norm_placement="post")
    x, memory = rng.normal(size=(2, 11)), rng.normal(size=(3, 11))
    layer = DecoderLayer(config)

    def run(layer, x, memory):
        rows, cross = jnp.float32(x)[None], jnp.float32(memory)[None]
        layout, source = Layout.of(as_int([[1, 1]])), Layout.of(as_int([[1, 1, 1]]))
        causal = jnp.array([[[True, False], [True, True]]])
        keys_values = layer.cross_attention.keys_values(cross)
        return layer(rows, causal, UNORDERED, layout, keys_values, jnp.ones((1, 2, 3), bool), source, Drop())

    params = moved(layer.init(jax.random.key(0), x, memory, method=run)["params"])
    ours = layer.apply({"params": params}, x, memory, method=run)[0]
    theirs = oracle.post_norm_layer(x, float64(params), 3, np.tril(np.ones((2, 2), bool)), memory)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_pre_norm_residual():
    """x + Sublayer(LayerNorm(x))."""
    x = np.random.default_rng(4).normal(size=(5, 7))
    module = Residual(TransformerConfig(d_model=7, num_heads=1, norm_placement="pre"))
    args = jnp.float32(x)[None], lambda y: 3 * y, Drop()
    params = moved(module.init(jax.random.key(0), *args)["params"])
    ours = module.apply({"params": params}, *args)[0]
    theirs = x + 3 * oracle.layer_norm(x, float64(params)["norm"])
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_rms_norm():
    """x / sqrt(mean(x^2) + eps) * g (Zhang and Sennrich 2019, equation 4)."""
    x = np.random.default_rng(5).normal(size=(5, 7))
    scale = np.random.default_rng(6).normal(size=7)
    params = {"params": {"scale": jnp.float32(scale)}}
    ours = rms_norm(TransformerConfig(d_model=7, num_heads=1)).apply(params, jnp.float32(x))
    theirs = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-6) * scale
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


ACTIVATIONS = {
    "relu": lambda x: np.maximum(0, x),
    "gelu": lambda x: x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))) / 2,
    "glu": lambda x: 1 / (1 + np.exp(-x)),
    "bilinear": lambda x: x,
}
ACTIVATIONS |= {
    "reglu": ACTIVATIONS["relu"],
    "geglu": ACTIVATIONS["gelu"],
    "swiglu": lambda x: x * ACTIVATIONS["glu"](x),
}


@pytest.mark.parametrize("name", FEED_FORWARDS)
def test_feed_forward(name):
    """Equation 2; Shazeer 2020, equations 5 and 6."""
    x = np.random.default_rng(7).normal(size=(5, 7))
    module = FeedForward(TransformerConfig(d_model=7, d_ff=11, num_heads=1, feed_forward=name))
    params = moved(module.init(jax.random.key(0), jnp.float32(x)[None], Drop())["params"])
    ours = module.apply({"params": params}, jnp.float32(x)[None], Drop())[0]
    weights, activation = float64(params), ACTIVATIONS[name]
    inner, outer = weights["inner"]["kernel"], weights["outer"]["kernel"]
    if "gate" in weights:
        assert set(weights["inner"]) == {"kernel"}
        theirs = (activation(x @ weights["gate"]["kernel"]) * (x @ inner)) @ outer
    else:
        theirs = activation(x @ inner + weights["inner"]["bias"]) @ outer + weights["outer"]["bias"]
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_additive_attention():
    rng = np.random.default_rng(8)
    s, h = rng.normal(size=(2, 3, 5)), rng.normal(size=(2, 11, 7))
    w_a, u_a, v_a = rng.normal(size=(5, 13)), rng.normal(size=(7, 13)), rng.normal(size=13)
    lengths = [11, 4]
    mask = np.arange(11) < np.array(lengths)[:, None]
    contexts, weights = additive_attention(
        *map(jnp.float32, (s @ w_a, h @ u_a, h)), jnp.array(mask), jnp.float32(v_a)
    )
    for b, length in enumerate(lengths):
        for q in range(3):
            context, alpha = oracle.additive_attention(s[b, q], h[b, :length], w_a, u_a, v_a)
            np.testing.assert_allclose(contexts[b, q], context, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(weights[b, q, :length], alpha, rtol=1e-5, atol=1e-6)
    assert np.all(weights[1, :, 4:] == 0)


def test_t5_ranges():
    """From the released code's table: up to 7 (bidirectional) or 15 a range a distance, then logarithmic."""
    assert t5_ranges(16, 128).tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]
    assert t5_ranges(32, 128)[:16].tolist() == list(range(1, 17))
    assert t5_ranges(32, 128)[-1] < 128


def test_alibi_slopes():
    """The paper's for 8 and for 16 heads; for 12, as its section 3 says of heads that are no power of two."""
    np.testing.assert_allclose(alibi_slopes(8), [2.0**-n for n in range(1, 9)])
    np.testing.assert_allclose(alibi_slopes(16), [2.0 ** (-n / 2) for n in range(1, 17)])
    np.testing.assert_allclose(alibi_slopes(12)[8:], [2.0**-0.5, 2.0**-1.5, 2.0**-2.5, 2.0**-3.5])


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
