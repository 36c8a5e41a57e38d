"""Position schemes: positions beyond the limit, invalid configs, and a scheme that a test adds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.tiny import (
    SEQUENCE_SCHEMES,
    VOCAB,
    greedy_search,
    random_params,
    tiny_config,
    token_batch,
    train,
)
from transformer.batch import TokenBatch
from transformer.config import EOS, UserError
from transformer.model import build_model, init_params
from transformer.model.positions import POSITIONS, PositionScheme

LIMIT = 3
EMBEDDED = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 22)), jnp.float32)


def added(positions, overflow, max_positions=LIMIT):
    """The vectors added at positions 0 ... 4, and the longest sequence that the scheme accepts."""
    config = tiny_config(positions=positions, max_positions=max_positions, overflow=overflow)
    scheme = POSITIONS[positions](config)
    add = jax.jit(functools.partial(scheme.init_with_output, length=5))
    output, _ = add(jax.random.key(0), EMBEDDED, np.arange(5)[None])
    return np.asarray(output - EMBEDDED)[0], scheme.max_length


@pytest.mark.parametrize("positions", ["sinusoidal", "sinusoidal_concat", "learned"])
def test_positions_beyond_the_limit_follow_the_overflow_policy(positions):
    error, clamp, zero = (added(positions, overflow) for overflow in ("error", "clamp", "zero"))

    assert (error[1], clamp[1], zero[1]) == (LIMIT, None, None)
    assert np.isnan(error[0][LIMIT:]).all()
    np.testing.assert_allclose(clamp[0][LIMIT:], clamp[0][[LIMIT - 1] * 2], atol=1e-6)
    np.testing.assert_array_equal(zero[0][LIMIT:], 0)
    for vectors, _ in (error, zero):
        np.testing.assert_allclose(vectors[:LIMIT], clamp[0][:LIMIT], atol=1e-6)
    assert (np.abs(clamp[0][:LIMIT]).max(axis=1) > 0).all()
    # Neighboring positions before the limit have different vectors.
    assert (np.abs(np.diff(clamp[0][:LIMIT], axis=0)).max(axis=1) > 1e-3).all()


@pytest.mark.parametrize("positions", ["sinusoidal", "sinusoidal_concat"])
def test_sinusoids_extrapolate(positions):
    vectors, max_length = added(positions, "extrapolate")
    assert max_length is None
    np.testing.assert_array_equal(vectors, added(positions, "error", max_positions=9)[0])


def encode(model, params, source):
    return jax.jit(functools.partial(model.apply, method="encode"))({"params": params}, source)


@pytest.mark.parametrize("positions", SEQUENCE_SCHEMES)
def test_a_sequence_beyond_the_limit_gives_nan_with_the_error_policy(positions):
    config = tiny_config(positions=positions, max_positions=LIMIT, overflow="error", num_layers=1)
    model = build_model(config, VOCAB)
    assert model.max_lengths == (LIMIT, LIMIT)
    output = encode(model, random_params(model), token_batch([[4, 5, 6, 7]]))
    assert np.isnan(output).any()


def test_padding_has_position_0_so_that_it_never_overflows():
    batch = TokenBatch.from_tokens(jnp.array([[4, 5, 2, 0, 0], [4, 5, 6, 7, 2]]))
    assert batch.positions.tolist() == [[0, 1, 2, 0, 0], [0, 1, 2, 3, 4]]


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_overflow_begins_where_training_ended(positions):
    """Rows of a table beyond the longest training example were never trained, so nothing may read them."""
    trained_lengths = (LIMIT, LIMIT + 1)
    config = {"positions": positions, "num_layers": 1}
    clamp = build_model(tiny_config(overflow="clamp", **config), VOCAB, trained_lengths)
    error = build_model(tiny_config(overflow="error", **config), VOCAB, trained_lengths)
    params = random_params(clamp)
    if positions == "learned":
        for stack, end in zip(("encoder", "decoder"), trained_lengths, strict=True):
            table = params[stack]["positions"]["table"]
            params[stack]["positions"]["table"] = table.at[end:].set(jnp.nan)
    tokens = token_batch([[4, 5, 6, 7, 2]])

    assert np.isfinite(jax.jit(clamp.apply)({"params": params}, tokens, tokens)).all()
    assert clamp.max_lengths == (None, None)
    assert np.isnan(encode(error, params, tokens)).any()
    assert error.max_lengths == trained_lengths


def test_only_learned_positions_have_the_error_policy_by_default():
    policies = {name: scheme(tiny_config(positions=name)).overflow for name, scheme in POSITIONS.items()}
    assert policies.pop("learned") == "error"
    assert set(policies.values()) == {"extrapolate"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"positions": "rope", "d_k": 5},
            "model.d_k is 5; it must be even, since 'rope' rotates pairs of channels",
        ),
        (
            {"positions": "rope", "rope_fraction": 0.5},
            "model.rope_fraction is 0.5, which rotates 3 of the 6 channels of a head; it must rotate an even number of channels, 2 or more",
        ),
        (
            {"positions": "rope", "rope_fraction": 0.01},
            "model.rope_fraction is 0.01, which rotates 0 of the 6 channels of a head; it must rotate an even number of channels, 2 or more",
        ),
        (
            {"positions": "sinusoidal", "d_model": 21},
            "model.d_model is 21; it must be even: sinusoids come in pairs",
        ),
        (
            {"positions": "sinusoidal_concat", "d_model": 21},
            "model.d_model is 21; it must be even: sinusoids come in pairs",
        ),
        (
            {"positions": "learned", "overflow": "extrapolate"},
            "model.overflow is 'extrapolate'; for model.positions='learned' it must be one of: error, clamp, zero",
        ),
        (
            {"positions": "alibi", "overflow": "zero"},
            "model.overflow is 'zero'; for model.positions='alibi' it must be one of: extrapolate, error",
        ),
        (
            {"positions": "rope", "max_distance": 16},
            "model.max_distance is 16; it must be None for model.positions='rope', which has no maximum distance",
        ),
        (
            {"positions": "t5_bias", "max_distance": 16},
            "model.max_distance is 16; it must be above 16 for model.positions='t5_bias'",
        ),
    ],
    ids=str,
)
def test_impossible_configs_are_refused(changes, message):
    with pytest.raises(UserError) as error:
        build_model(tiny_config(**changes), VOCAB)
    assert str(error.value) == message


class Binary(PositionScheme):
    """Adds the bits of the position to the first channels."""

    def add(self, x, positions, length):
        bits = positions[..., None] >> jnp.arange(5)[None, None] & 1
        return x + jnp.pad(bits, ((0, 0), (0, 0), (0, x.shape[-1] - 5))).astype(x.dtype)


@pytest.mark.slow
def test_a_new_scheme_trains_and_decodes(monkeypatch):
    """The test adds a class and an entry of `POSITIONS`. To reverse a sentence, a model needs positions."""
    monkeypatch.setitem(POSITIONS, "binary", Binary)
    model = build_model(tiny_config(positions="binary", num_layers=1), VOCAB)
    words = np.random.default_rng(0).integers(4, VOCAB, (32, 5))
    source, target = (token_batch([[*row, EOS] for row in side]) for side in (words, words[:, ::-1]))

    losses, params = train(model, init_params(model, 0), [(source, target)] * 300, learning_rate=1e-2)

    assert losses[-1] < 0.05
    output = greedy_search(model, params, source.tokens, length=6)
    assert (output == target.tokens).mean() > 0.95
