"""What holds for every position scheme and norm placement; a new dict entry is picked up by itself."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from tests.tiny import VOCAB, as_int, logits, tiny_config
from transformer.config import BOS, TransformerConfig, UserError
from transformer.model import build, init_params, longest_sequence
from transformer.model.dropout import Dropout
from transformer.model.layers import NORM_PLACEMENTS, Embedding
from transformer.model.masks import Layout
from transformer.model.positions import POSITIONS

VARIANTS = list(itertools.product(POSITIONS, NORM_PLACEMENTS))


@pytest.fixture(scope="module", params=VARIANTS, ids=["-".join(variant) for variant in VARIANTS])
def variant(request):
    positions, norm_placement = request.param
    model = build(tiny_config(positions=positions, norm_placement=norm_placement), VOCAB)
    return model, init_params(model, seed=2)


def test_causality(variant, pair):
    """The gradient of the logits at t reaches decoder inputs 0 ... t, all of them, and no later one.

    Input i is target piece i - 1, so the piece that the logits at t predict is out of their sight.
    """
    model, params = variant
    source, target = pair[0], as_int([[4, 5, 6, 7, 8]] * 2)
    weights = jax.random.normal(jax.random.key(0), (VOCAB,))

    def scores(offsets):
        """One number a target position, as a function of an offset to each embedded decoder input."""
        embedded = []

        def intercept(embed, args, kwargs, context):
            x = embed(*args, **kwargs)
            if isinstance(context.module, Embedding) and context.method_name == "__call__":
                embedded.append(x)
                x = x if len(embedded) == 1 else x + offsets  # the source is embedded first
            return x

        with nn.intercept_methods(intercept):
            return model.apply({"params": params}, source, target)[0] @ weights

    jacobian = jax.jacobian(scores)(jnp.zeros((*target.shape, 22)))[:, 0]
    reach = np.abs(jacobian).max(axis=-1)  # [t, input]
    np.testing.assert_array_equal(reach > 0, np.tril(np.ones((5, 5), bool)))


def test_padding_changes_nothing(variant, pair):
    model, params = variant
    source, target = pair
    padded = logits(model, params, source, target)
    alone = logits(model, params, source[1:, :3], target[1:])
    np.testing.assert_allclose(padded[1], alone[0], atol=2e-5)
    more = logits(model, params, jnp.pad(source, ((0, 0), (0, 3))), jnp.pad(target, ((0, 0), (0, 2))))
    np.testing.assert_allclose(padded[0, :3], more[0, :3], atol=2e-5)


def test_batch_position_changes_nothing(variant, pair):
    model, params = variant
    source, target = pair
    forwards = logits(model, params, source, target)
    backwards = logits(model, params, source[::-1], target[::-1])
    np.testing.assert_array_equal(forwards, backwards[::-1])


def packed(pair):
    """Both pairs in one row, the second first, and the padding after them."""
    source, target = pair
    rows = (jnp.array([[*source[1, :3], *source[0], 0]]), jnp.array([[*target[1], *target[0, :3]]]))
    layouts = [
        Layout(as_int([[2, 2, 2, 1, 1, 1, 1, 1, 0]]), as_int([[0, 1, 2, 0, 1, 2, 3, 4, 0]])),
        Layout(as_int([[2, 2, 2, 2, 1, 1, 1]]), as_int([[0, 1, 2, 3, 0, 1, 2]])),
    ]
    return *rows, *layouts


@pytest.mark.parametrize("rate", [None, 0.4], ids=["plain", "dropout"])
def test_packing_changes_nothing(variant, pair, rate):
    model, params = variant
    dropout = None if rate is None else Dropout(jax.random.key(3), rate)
    apart = logits(model, params, *pair, dropout=dropout)
    together = logits(model, params, *packed(pair), dropout)[0]
    np.testing.assert_allclose(together[:4], apart[1], atol=2e-5)
    np.testing.assert_allclose(together[4:], apart[0, :3], atol=2e-5)


def test_cached_steps_equal_the_full_decoder(variant, pair):
    """Two hypotheses a sentence: the target, and another that must not leak into it."""
    model, params = variant
    source, _ = pair
    target = as_int([[10, 11, 4, 2], [12, 4, 5, 2]])
    other = target[::-1]
    full = logits(model, params, source, target), logits(model, params, source, other)
    memory, state = model.apply({"params": params}, source, 2, 6, method="start")
    step = jax.jit(lambda *args: model.apply({"params": params}, *args, method="step"))
    tokens = jnp.full((2, 2), BOS)
    for index in range(4):
        out, state = step(memory, state, tokens, jnp.int32(index))
        for hypothesis in range(2):
            np.testing.assert_allclose(out[:, hypothesis], full[hypothesis][:, index], atol=2e-5)
        tokens = jnp.stack([target[:, index], other[:, index]], axis=1)


def test_jit_equals_eager(variant, pair):
    model, params = variant
    eager = model.apply({"params": params}, *pair)
    np.testing.assert_allclose(logits(model, params, *pair), eager, atol=1e-5)


def test_bfloat16_stays_near_float32(variant, pair):
    """8 bits of mantissa through two post-norm layers: 0.15 is about six roundings of a logit of order 4."""
    model, params = variant
    half = build(TransformerConfig(**{**vars(model.config), "dtype": "bfloat16"}), VOCAB)
    ours = logits(half, params, *pair)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, logits(model, params, *pair), atol=0.15)


def test_loss_halves_in_30_steps(variant):
    model, params = variant
    source = as_int(np.random.default_rng(0).integers(4, VOCAB, (16, 5)))
    optimizer = optax.adam(1e-2)

    @jax.jit
    def update(params, moments):
        def loss(params):
            log_probs = jax.nn.log_softmax(model.apply({"params": params}, source, source))
            return -jnp.take_along_axis(log_probs, source[..., None], axis=-1).mean()

        value, gradients = jax.value_and_grad(loss)(params)
        updates, moments = optimizer.update(gradients, moments)
        return optax.apply_updates(params, updates), moments, value

    moments, losses = optimizer.init(params), []
    for _ in range(31):
        params, moments, value = update(params, moments)
        losses.append(float(value))
    assert losses[-1] < losses[0] / 2


def test_a_position_past_the_table_is_nan_not_another_position():
    model = build(tiny_config(positions="learned", max_positions=3), VOCAB)
    params = init_params(model, seed=0)
    out = model.apply({"params": params}, as_int([[4, 5, 6, 7]]), method="encode")
    assert np.isnan(np.asarray(out)).any()
    assert longest_sequence(model.config) == 3
    assert longest_sequence(tiny_config()) is None


@pytest.mark.parametrize("field", ["positions", "norm_placement"])
def test_unknown_names_are_refused_by_build(field):
    with pytest.raises(UserError, match=rf"model.{field} is 'x'; it must be one of: "):
        build(tiny_config(**{field: "x"}), VOCAB)
