"""What a scheme does past `max_positions`, what it refuses, and that a new one needs no other edit."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.model.test_invariants import Variant, train
from tests.tiny import VOCAB, as_int, tiny_config
from transformer.config import EOS, UserError
from transformer.decoding.search import ChoosingSearch, Rules, run
from transformer.model import build, init_params
from transformer.model.positions import POSITIONS, Positions

LIMIT = 3
X = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 22)), jnp.float32)
WHERE = jnp.arange(5)[None]


def added(positions, overflow, limit=LIMIT):
    """What the scheme adds at positions 0 ... 4."""
    module = POSITIONS[positions](tiny_config(positions=positions, max_positions=limit, overflow=overflow))
    out, _ = module.init_with_output({"params": jnp.zeros(2, jnp.uint32)}, X, WHERE, 5)
    return np.asarray(out - X)[0], module.longest


@pytest.mark.parametrize("positions", ["sinusoidal", "sinusoidal_concat", "learned"])
def test_past_the_end(positions):
    error, longest = added(positions, "error")
    assert longest == LIMIT
    assert np.isnan(error[LIMIT:]).all()
    clamped, longest = added(positions, "clamp")
    assert longest is None
    np.testing.assert_allclose(clamped[LIMIT:], clamped[[LIMIT - 1] * 2], atol=1e-6)
    zero, longest = added(positions, "zero")
    assert longest is None
    np.testing.assert_array_equal(zero[LIMIT:], 0)
    for one in (error, clamped, zero):
        np.testing.assert_allclose(one[:LIMIT], clamped[:LIMIT], atol=1e-6)
        assert (np.abs(one[:LIMIT]).max(axis=1) > 0).all()


@pytest.mark.parametrize("positions", ["sinusoidal", "sinusoidal_concat"])
def test_sinusoids_extrapolate(positions):
    short, longest = added(positions, "extrapolate")
    assert longest is None
    np.testing.assert_array_equal(short, added(positions, "error", limit=9)[0])


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_sequence_past_an_error_is_nan_never_silence(positions):
    model = build(tiny_config(positions=positions, max_positions=LIMIT, overflow="error"), VOCAB)
    assert model.longest == (LIMIT, LIMIT)
    encoded = model.apply({"params": init_params(model, 0)}, as_int([[4, 5, 6, 7]]), method="encode")
    assert np.isnan(np.asarray(encoded)).any()


def test_padding_past_the_end_changes_nothing():
    model = build(tiny_config(positions="learned", max_positions=5), VOCAB)
    params = init_params(model, 0)
    source, target = as_int([[4, 5, 2]]), as_int([[6, 2]])
    short = model.apply({"params": params}, source, target)
    long = model.apply({"params": params}, *(jnp.pad(one, ((0, 0), (0, 5))) for one in (source, target)))
    np.testing.assert_allclose(long[:, :2], short, atol=2e-5)


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_overflow_begins_where_training_ended(positions):
    """The rows of a table between the two were never trained; nothing may read them."""
    clamp = build(tiny_config(positions=positions, overflow="clamp"), VOCAB, (LIMIT, LIMIT + 1))
    params = init_params(clamp, 0)
    for stack, end in (("encoder", LIMIT), ("decoder", LIMIT + 1)) if positions == "learned" else ():
        table = params[stack]["positions"]["table"]
        params[stack]["positions"]["table"] = table.at[end:].set(jnp.nan)
    pieces = as_int([[4, 5, 6, 7, 2]])
    assert np.isfinite(np.asarray(clamp.apply({"params": params}, pieces, pieces))).all()
    assert clamp.longest == (None, None)
    error = build(tiny_config(positions=positions, overflow="error"), VOCAB, (LIMIT, LIMIT + 1))
    assert error.longest == (LIMIT, LIMIT + 1)
    encoded = error.apply({"params": params}, pieces, method="encode")
    assert np.isnan(np.asarray(encoded)).any()


def test_the_default_policies():
    default = {name: scheme(tiny_config(positions=name)).overflow for name, scheme in POSITIONS.items()}
    assert default.pop("learned") == "error"
    assert set(default.values()) == {"extrapolate"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"positions": "rope", "d_k": 5},
            "model.d_k is 5; model.positions='rope' turns pairs, so it must be even",
        ),
        ({"positions": "sinusoidal", "d_model": 21}, "model.d_model is 21; sinusoids come in pairs"),
        ({"positions": "sinusoidal_concat", "d_model": 21}, "model.d_model is 21; sinusoids come in pairs"),
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
            "model.max_distance is 16; model.positions='rope' has none",
        ),
        (
            {"kind": "recurrent", "positions": "x"},
            "model.positions is 'x'; it must be one of: ",
        ),
        ({"cell": "x"}, "model.cell is 'x'; it must be one of: gru, lstm"),
        (
            {"positions": "t5_bias", "max_distance": 16},
            "model.max_distance is 16; for model.positions='t5_bias' it must be above 16",
        ),
    ],
    ids=str,
)
def test_what_a_scheme_refuses(changes, message):
    with pytest.raises(UserError) as error:
        build(tiny_config(**changes), VOCAB)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


class Binary(Positions):
    """The bits of the position, in the first channels. Defined here alone."""

    def add(self, x, positions, length):
        bits = positions[..., None] >> jnp.arange(5) & 1
        return x + jnp.pad(bits, ((0, 0), (0, 0), (0, x.shape[-1] - 5))).astype(x.dtype)


def test_a_new_scheme_trains_and_decodes(monkeypatch):
    """One class and one entry, from outside; it learns to reverse, which takes positions."""
    monkeypatch.setitem(POSITIONS, "binary", Binary)
    variant = Variant(tiny_config(positions="binary", num_layers=1))
    pieces = np.random.default_rng(0).integers(4, VOCAB, (32, 5))
    source, target = (
        as_int(np.pad(one, ((0, 0), (0, 1)), constant_values=EOS)) for one in (pieces, pieces[:, ::-1])
    )
    losses, params = train(variant, (source, target), 300)
    assert losses[-1] < 0.05
    model, variables = variant.model, {"params": params}
    memory, state = model.apply(variables, source, 1, 8, method="start")

    def step(tokens, parents, state, index):
        return model.apply(variables, memory, state, tokens, parents, index, method="step")

    found = run(ChoosingSearch(), step, state, Rules(jnp.full(32, 8)), 8)
    assert (found.tokens[:, 0, :6] == target).mean() > 0.95
