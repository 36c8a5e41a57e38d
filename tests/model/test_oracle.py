"""The model compared with the equations of the papers in float64."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.model import oracle
from tests.support.tiny import (
    SEQUENCE_SCHEMES,
    VOCAB,
    packed_batch,
    random_params,
    random_tree,
    sentence_pairs,
    tiny_config,
    token_batch,
)
from transformer.config import ModelConfig
from transformer.model import build_model
from transformer.model.attention import MultiHeadAttention, scaled_dot_product_attention
from transformer.model.block import Block, CrossInputs
from transformer.model.dropout import NO_DROPOUT, Dropout, bind_dropout
from transformer.model.layers import FEED_FORWARDS, DynamicTanh, FeedForward, rms_norm
from transformer.model.position_tables import alibi_slopes, sinusoid_table, t5_range_starts
from transformer.model.recurrent import CELLS, additive_attention


def float64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def apply(module, params, *inputs, method=None):
    """The output of a module. One compiled program is cheaper than a program for each operation."""
    return jax.jit(functools.partial(module.apply, method=method))({"params": params}, *inputs)


def module_params(module, *args, **kwargs):
    """Random parameters of a module called with these arguments."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *args, **kwargs))
    return random_tree(shapes["params"])


def test_scaled_dot_product_attention_equals_the_equation():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=shape) for shape in ((2, 3, 5, 7), (2, 11, 5, 7), (2, 11, 5, 13)))
    mask = rng.random((2, 3, 11)) < 0.6
    mask[:, :, 0] = True

    heads, weights = jax.jit(scaled_dot_product_attention)(*map(jnp.float32, (q, k, v)), jnp.array(mask))

    for b in range(2):
        for h in range(5):
            expected = oracle.attention(q[b, :, h], k[b, :, h], v[b, :, h], mask[b])
            np.testing.assert_allclose(heads[b, :, h], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-6)
    assert np.all(weights[np.broadcast_to(~mask[:, None], weights.shape)] == 0)


def test_a_query_that_sees_no_key_does_not_give_nan():
    x = jnp.ones((1, 2, 1, 3))
    heads, weights = jax.jit(scaled_dot_product_attention)(x, x, x, jnp.zeros((1, 2, 2), bool))
    assert np.isfinite(heads).all()
    assert np.isfinite(weights).all()


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, {}),
        ({"num_heads": 6, "num_kv_heads": 2}, {"num_kv_heads": 2}),
        ({"num_kv_heads": 1}, {"num_kv_heads": 1}),
        ({"qk_norm": True}, {}),
        ({"logit_cap": 0.5}, {"cap": 0.5}),
        ({"attention_gate": True}, {}),
    ],
    ids=str,
)
def test_multi_head_attention_equals_the_equations(changes, options):
    rng = np.random.default_rng(1)
    x, memory = rng.normal(size=(1, 3, 22)), rng.normal(size=(1, 5, 22))
    mask = jnp.array([[[1, 1, 0, 1, 0], [0, 1, 1, 1, 1], [1, 0, 0, 0, 0]]], bool)

    def attend(attention, x, memory):
        return attention(x, attention.keys_values(memory), mask)

    config = tiny_config(**changes)
    module, inputs = MultiHeadAttention(config), (jnp.float32(x), jnp.float32(memory))
    params = module_params(module, *inputs, method=attend)
    output = apply(module, params, *inputs, method=attend)

    expected = oracle.multi_head(
        x[0], memory[0], float64(params), config.num_heads, np.array(mask[0]), **options
    )
    np.testing.assert_allclose(output[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("positions", "max_distance"),
    [*((name, 3 if name == "relative" else None) for name in SEQUENCE_SCHEMES), ("t5_bias", 20)],
)
def test_a_whole_transformer_equals_the_equations(positions, max_distance):
    """Sentences are longer than `max_distance`, and longer than the T5 ranges that are single distances.

    The model has two layers per stack with two of the schemes, and one layer with the others.
    """
    num_layers = 2 if positions in ("sinusoidal", "relative") else 1
    config = tiny_config(
        num_layers=num_layers, positions=positions, max_positions=32, max_distance=max_distance
    )
    model = build_model(config, VOCAB)
    params = random_params(model)
    source, target = np.random.default_rng(0).integers(4, VOCAB, (2, 29))
    target = target[:23]

    logits = apply(model, params, token_batch([source]), token_batch([target]))

    expected = oracle.transformer(source, target, float64(params), 3, positions, max_distance=max_distance)
    assert logits.shape == (1, 23, VOCAB)
    np.testing.assert_allclose(logits[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prefix", ["bidirectional", pytest.param("causal", marks=pytest.mark.slow)])
def test_a_whole_decoder_only_model_equals_the_equations(prefix):
    """Two pairs are packed in a row, whose sides have different lengths; a third row is padding."""
    model = build_model(tiny_config(kind="decoder_only", prefix=prefix), VOCAB)
    params, rng = random_params(model), np.random.default_rng(0)
    pairs = [(rng.integers(4, VOCAB, s), rng.integers(4, VOCAB, t)) for s, t in ((5, 3), (2, 6), (4, 4))]
    rows = [{7: pairs[0], 3: pairs[1]}, {5: pairs[2]}, {}]
    source, target = (
        packed_batch([{number: pair[side] for number, pair in row.items()} for row in rows])
        for side in (0, 1)
    )

    def logits_of_both_sides(model, source, target):
        return model.source_target_logit_factors(source, target).logits(), model(source, target)

    logits, target_logits = apply(model, params, source, target, method=logits_of_both_sides)
    logits = np.split(np.asarray(logits), [source.tokens.shape[1]], axis=1)

    np.testing.assert_allclose(target_logits[:2], logits[1][:2], atol=1e-5)
    for row, start, pair in ((0, (0, 0), pairs[0]), (0, (5, 3), pairs[1]), (1, (0, 0), pairs[2])):
        expected = oracle.decoder_only(*pair, float64(params), 3, prefix == "bidirectional")
        expected = np.split(expected, [len(pair[0])])
        for side in (0, 1):
            tokens = slice(start[side], start[side] + len(pair[side]))
            np.testing.assert_allclose(logits[side][row, tokens], expected[side], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("positions", ["rope", pytest.param("relative", marks=pytest.mark.slow)])
def test_a_whole_transformer_with_other_attention_equals_the_equations(positions):
    """`rope` rotates four of the six channels of a head. The cap is near the logits, which are of order 1."""
    config = tiny_config(
        num_layers=1,
        positions=positions,
        num_kv_heads=1,
        qk_norm=True,
        logit_cap=2.0,
        attention_window=3,
        attention_gate=True,
        rope_base=100.0,
        rope_fraction=2 / 3,
    )
    model = build_model(config, VOCAB)
    params = random_params(model)
    source, target = [4, 9, 11, 5, 5, 7, 2], [8, 4, 12, 6, 2]

    logits = apply(model, params, token_batch([source]), token_batch([target]))

    options = {"num_kv_heads": 1, "window": 3, "cap": 2.0, "rope": (100, 4), "max_distance": 16}
    expected = oracle.transformer(source, target, float64(params), 3, positions, **options)
    np.testing.assert_allclose(logits[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("kind", [pytest.param("recurrent", marks=pytest.mark.slow), "recurrent_attention"])
def test_a_whole_recurrent_model_equals_the_equations(kind, cell):
    """The model uses dropout, and with `lstm` has two layers per stack. Each side is padded in one row."""
    model = build_model(tiny_config(num_layers=2 if cell == "lstm" else 1, kind=kind, cell=cell), VOCAB)
    params = random_params(model)
    pair, dropout = sentence_pairs(), Dropout(jax.random.key(3), 0.4)

    logits = apply(model, params, *pair, dropout)

    sides = dict(zip(("encoder", "decoder"), pair, strict=True))

    @functools.partial(jax.jit, static_argnames=("site", "width"))
    def factors(batch, site, width):
        ones = jnp.ones((*batch.tokens.shape, width))
        return bind_dropout(dropout, batch)(ones, tuple(site.split("/")))

    for row in range(2):
        source, target = (np.trim_zeros(np.asarray(side.tokens[row])) for side in pair)

        def drop(x, site, row=row):
            batch = sides[site.partition("/")[0]]
            return x * np.asarray(factors(batch, site, x.shape[1]))[row, : len(x)]

        attends = kind == "recurrent_attention"
        expected = oracle.recurrent(source, target, float64(params), cell, attends, drop)
        np.testing.assert_allclose(logits[row, : len(target)], expected, rtol=1e-4, atol=1e-5)


def test_a_decoder_block_equals_the_equations():
    """The block computes LayerNorm(x + Sublayer(x)) three times. All sizes are primes."""
    rng = np.random.default_rng(3)
    x, memory = rng.normal(size=(2, 11)), rng.normal(size=(3, 11))
    causal = jnp.tril(jnp.ones((1, 2, 2), bool))

    def decode(block, x, memory):
        cross = CrossInputs(block.cross_attention.keys_values(memory), jnp.ones((1, 1, 3), bool))
        return block(x, causal, None, cross=cross)[0]

    config = ModelConfig(d_model=11, d_ff=13, num_heads=3, d_k=5, d_v=7)
    block, inputs = Block(config, has_cross_attention=True), (jnp.float32(x[None]), jnp.float32(memory[None]))
    params = module_params(block, *inputs, method=decode)
    output = apply(block, params, *inputs, method=decode)

    expected = oracle.post_norm_layer(x, float64(params), 3, np.array(causal[0]), memory)
    np.testing.assert_allclose(output[0], expected, rtol=1e-5, atol=1e-5)


def test_rms_norm_equals_the_equation():
    """The equation is x / sqrt(mean(x^2) + eps) * g (Zhang and Sennrich 2019, equation 4)."""
    rng = np.random.default_rng(5)
    x, scale = rng.normal(size=(5, 7)), rng.normal(size=7)

    norm = rms_norm(ModelConfig(d_model=7, num_heads=1))
    output = apply(norm, {"scale": jnp.float32(scale)}, jnp.float32(x))

    expected = oracle.rms_norm(x, {"scale": scale})
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-6)


def test_dynamic_tanh_equals_the_equation():
    """The equation is gamma * tanh(alpha x) + beta (Zhu et al. 2025, section 4)."""
    rng = np.random.default_rng(6)
    x, scale, bias = rng.normal(size=(5, 7)), rng.normal(size=7), rng.normal(size=7)
    params = {"alpha": jnp.float32(0.7), "scale": jnp.float32(scale), "bias": jnp.float32(bias)}

    output = apply(DynamicTanh(ModelConfig(d_model=7, num_heads=1)), params, jnp.float32(x[None]))

    np.testing.assert_allclose(output[0], scale * np.tanh(0.7 * x) + bias, rtol=1e-5, atol=1e-6)


ACTIVATIONS = {
    "relu": lambda x: np.maximum(0, x),
    "gelu": lambda x: x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))) / 2,
    "glu": oracle.sigmoid,
    "bilinear": lambda x: x,
    "swiglu": lambda x: x * oracle.sigmoid(x),
}
ACTIVATIONS |= {"reglu": ACTIVATIONS["relu"], "geglu": ACTIVATIONS["gelu"]}


@pytest.mark.parametrize("name", FEED_FORWARDS)
def test_feed_forward_equals_the_equations(name):
    """The equations are equation 2 of the paper, and equations 5 and 6 of Shazeer (2020)."""
    x = np.random.default_rng(7).normal(size=(5, 7))
    inputs = jnp.float32(x[None])

    def transform(module, inputs):
        return module(inputs, NO_DROPOUT)

    module = FeedForward(ModelConfig(d_model=7, d_ff=11, num_heads=1, feed_forward=name))
    params = module_params(module, inputs, method=transform)
    output = apply(module, params, inputs, method=transform)[0]

    weights, activation = float64(params), ACTIVATIONS[name]
    inner, outer = weights["inner"]["kernel"], weights["outer"]["kernel"]
    if "gate" in weights:
        assert set(weights["inner"]) == {"kernel"}
        expected = (activation(x @ weights["gate"]["kernel"]) * (x @ inner)) @ outer
    else:
        expected = activation(x @ inner + weights["inner"]["bias"]) @ outer + weights["outer"]["bias"]
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)


def test_additive_attention_equals_the_equations():
    rng = np.random.default_rng(8)
    s, h = rng.normal(size=(2, 3, 5)), rng.normal(size=(2, 11, 7))
    w_a, u_a, v_a = rng.normal(size=(5, 13)), rng.normal(size=(7, 13)), rng.normal(size=13)
    lengths = [11, 4]
    mask = np.arange(11) < np.array(lengths)[:, None]

    contexts, weights = jax.jit(additive_attention)(
        *map(jnp.float32, (s @ w_a, h @ u_a, h)), jnp.array(mask), jnp.float32(v_a)
    )

    for b, length in enumerate(lengths):
        for q in range(3):
            context, alpha = oracle.additive_attention(s[b, q], h[b, :length], w_a, u_a, v_a)
            np.testing.assert_allclose(contexts[b, q], context, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(weights[b, q, :length], alpha, rtol=1e-5, atol=1e-6)
    assert np.all(weights[1, :, 4:] == 0)


def test_t5_range_starts_equal_the_released_table():
    """The values are from the released code. The first ranges are single distances; then ranges grow."""
    assert t5_range_starts(16, 128).tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]
    assert t5_range_starts(32, 128)[:16].tolist() == list(range(1, 17))
    assert t5_range_starts(32, 128)[-1] < 128


def test_alibi_slopes_equal_those_of_the_paper():
    """The paper gives the slopes for 8 and 16 heads. Slopes for 12 heads follow the rule in its section 3."""
    np.testing.assert_allclose(alibi_slopes(8), [2.0**-n for n in range(1, 9)])
    np.testing.assert_allclose(alibi_slopes(16), [2.0 ** (-n / 2) for n in range(1, 17)])
    np.testing.assert_allclose(alibi_slopes(12)[8:], [2.0**-0.5, 2.0**-1.5, 2.0**-2.5, 2.0**-3.5])


def test_sinusoids_equal_values_computed_by_hand():
    """The divisor 10,000^(2i/8) is 1 and 10 for the first four of 8 channels."""
    table = [
        [0, 1, 0, 1],
        [0.84147098, 0.54030231, 0.09983342, 0.99500417],
        [0.90929743, -0.41614684, 0.19866933, 0.98006658],
        [0.14112001, -0.9899925, 0.29552021, 0.95533649],
    ]
    np.testing.assert_allclose(sinusoid_table(7, 22), oracle.sinusoid(7, 22), rtol=0, atol=1e-14)
    np.testing.assert_allclose(sinusoid_table(4, 8)[:, :4], table, atol=1e-7)
