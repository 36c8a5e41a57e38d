"""What holds for every entry of every dict of the model; a new entry is picked up by itself."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from tests.tiny import VOCAB, as_int, tiny_config
from transformer.config import BOS, EOS, PAD, TransformerConfig, UserError
from transformer.model import KINDS, build, init_params
from transformer.model.dropout import DROPOUT_SITES, Dropout
from transformer.model.embedding import EMBEDDINGS, Embedding
from transformer.model.layers import FEED_FORWARDS, NORM_PLACEMENTS, NORMS
from transformer.model.masks import Layout
from transformer.model.positions import POSITIONS
from transformer.model.recurrent import CELLS
from transformer.training.checkpoints import Checkpoints
from transformer.training.step import TrainState

DICTS = {
    "positions": POSITIONS,
    "norm_placement": NORM_PLACEMENTS,
    "norm": NORMS,
    "feed_forward": FEED_FORWARDS,
    "dropout_sites": DROPOUT_SITES,
    "embeddings": EMBEDDINGS,
}
DEFAULT = TransformerConfig()
# One change at a time from the paper's, and each recurrent kind with each cell.
VARIANTS = {
    "paper": {},
    **{
        name: {field: name}
        for field, entries in DICTS.items()
        for name in entries
        if name != getattr(DEFAULT, field)
    },
    **{
        f"{kind}-{cell}": {"kind": kind, "cell": cell}
        for kind, cell in itertools.product(KINDS, CELLS)
        if not KINDS[kind].packs
    },
    "uneven": {"encoder_layers": 1, "decoder_layers": 3},
    # Sequences that go on past the last position.
    "clamp": {"overflow": "clamp", "max_positions": 3},
    "zero": {"positions": "learned", "overflow": "zero", "max_positions": 3},
}


class Variant:
    """A model, its weights, and its output compiled once a shape."""

    def __init__(self, config, params=None):
        self.model = build(config, VOCAB)
        self.params = init_params(self.model, seed=2) if params is None else params
        self._apply = jax.jit(self.apply)

    def apply(self, params, source, target, layouts=(None, None), rate=None):
        dropout = None if rate is None else Dropout(jax.random.key(3), rate)
        return self.model.apply({"params": params}, source, target, *layouts, dropout)

    def logits(self, *args, **kwargs):
        return np.asarray(self._apply(self.params, *args, **kwargs))


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=VARIANTS.keys())
def variant(request):
    """One encoder layer and two decoder layers, unless the variant says otherwise: compiling takes long."""
    return Variant(tiny_config(**{"encoder_layers": 1} | request.param))


def test_causality(variant, pair):
    """The gradient of the logits at t reaches decoder inputs 0 ... t, all of them, and no later one.

    Input i is target piece i - 1, so the piece that the logits at t predict is out of their sight.
    """
    source, target = pair[0], as_int([[4, 5, 6, 7, 8]] * 2)
    weights = jax.random.normal(jax.random.key(0), (VOCAB,))

    def scores(offsets):
        """One number a target position, as a function of an offset to each embedded decoder input."""

        def intercept(embed, args, kwargs, context):
            x = embed(*args, **kwargs)
            is_target = isinstance(context.module, Embedding) and context.method_name == "target"
            return x + offsets if is_target else x

        with nn.intercept_methods(intercept):
            return variant.model.apply({"params": variant.params}, source, target)[0] @ weights

    jacobian = jax.jit(jax.jacobian(scores))(jnp.zeros((*target.shape, 22)))[:, 0]
    reach = np.abs(jacobian).max(axis=-1)  # [t, input]
    np.testing.assert_array_equal(reach > 0, np.tril(np.ones((5, 5), bool)))


def test_padding_changes_nothing(variant, pair):
    source, target = pair
    alone = variant.logits(source[1:, :3], target[1:])
    np.testing.assert_allclose(variant.logits(source, target)[1], alone[0], atol=2e-5)


def test_batch_position_changes_nothing(variant, pair):
    """Bit for bit; but XLA vectorises a recurrence's small loops across rows, each place in its own order."""
    source, target = pair
    backwards = variant.logits(source[::-1], target[::-1])[::-1]
    atol = 0 if variant.model.packs else 1e-6
    np.testing.assert_allclose(variant.logits(source, target), backwards, rtol=0, atol=atol)


def packed(pair):
    """Both pairs in one row, the second first, and the padding after them."""
    source, target = pair
    rows = (jnp.array([[*source[1, :3], *source[0], 0]]), jnp.array([[*target[1], *target[0, :3]]]))
    layouts = [
        Layout(as_int([[2, 2, 2, 1, 1, 1, 1, 1, 0]]), as_int([[0, 1, 2, 0, 1, 2, 3, 4, 0]])),
        Layout(as_int([[2, 2, 2, 2, 1, 1, 1]]), as_int([[0, 1, 2, 3, 0, 1, 2]])),
    ]
    return *rows, layouts


def exchanged(pair):
    """Each pair in the other's row, under its own id."""
    layouts = [Layout(*(one[::-1] for one in Layout.of(side))) for side in pair]
    return *(side[::-1] for side in pair), layouts


def test_packing_changes_nothing(variant, pair):
    """Nor does it change what is dropped. A model that gets one example a row gets it in another row."""
    for rate in (0.0, 0.4):  # one program
        apart = variant.logits(*pair, rate=rate)
        if variant.model.packs:
            together = variant.logits(*packed(pair), rate=rate)[0]
            second, first = together[:4], together[4:]
        else:
            second, first = variant.logits(*exchanged(pair), rate=rate)
        np.testing.assert_allclose(second, apart[1], atol=2e-5)
        np.testing.assert_allclose(first[:3], apart[0, :3], atol=2e-5)
    assert np.abs(apart - variant.logits(*pair, rate=0.0)).max() > 0.1  # something was dropped


def test_cached_steps_equal_the_full_decoder(variant, pair):
    """Two hypotheses a sentence, the target and another that must not leak into it, change places each step."""
    model, variables = variant.model, {"params": variant.params}
    source, _ = pair
    target = as_int([[10, 11, 4, 2], [12, 4, 5, 2]])
    other = target[::-1]
    full = variant.logits(source, target), variant.logits(source, other)
    memory, state = jax.jit(lambda source: model.apply(variables, source, 2, 6, method="start"))(source)
    step = jax.jit(lambda *args: model.apply(variables, *args, method="step"))
    tokens, parents = jnp.full((2, 2), BOS), as_int([[1, 0]] * 2)
    for index in range(4):
        out, state = step(memory, state, tokens, parents, jnp.int32(index))
        for place in range(2):
            np.testing.assert_allclose(out[:, place], full[(place + index) % 2][:, index], atol=2e-5)
        tokens = jnp.stack([(target, other)[(place + index + 1) % 2][:, index] for place in range(2)], axis=1)


def test_jit_equals_eager(variant, pair):
    eager = variant.apply(variant.params, *pair)
    np.testing.assert_allclose(variant.logits(*pair), eager, atol=1e-5)


def test_bfloat16_stays_near_float32(variant, pair):
    """8 bits of mantissa through two layers: 0.15 is about six roundings of a logit of order 4."""
    half = Variant(dataclasses.replace(variant.model.config, dtype="bfloat16"), variant.params)
    ours = half.logits(*pair)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, variant.logits(*pair), atol=0.15)


def test_saved_and_restored(variant, tmp_path):
    state = TrainState(jnp.int32(7), variant.params, optax.scale_by_adam().init(variant.params))
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    checkpoints.save(state, {"tokens_seen": 3}, 1.0)
    restored, facts = checkpoints.restore(jax.tree.map(jnp.zeros_like, state))
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert facts["tokens_seen"] == 3


def train(variant, pairs, steps, rate=1e-2):
    """The losses of some steps on the same pairs, and the weights after them."""
    source, target = pairs
    optimizer = optax.adam(rate)

    @jax.jit
    def update(params, moments):
        def loss(params):
            log_probs = jax.nn.log_softmax(variant.apply(params, source, target))
            return -jnp.take_along_axis(log_probs, target[..., None], axis=-1).mean()

        value, gradients = jax.value_and_grad(loss)(params)
        updates, moments = optimizer.update(gradients, moments)
        return optax.apply_updates(params, updates), moments, value

    params, moments, losses = variant.params, optimizer.init(variant.params), []
    for _ in range(steps):
        params, moments, value = update(params, moments)
        losses.append(float(value))
    return losses, params


def test_loss_halves_in_30_steps(variant):
    source = as_int(np.random.default_rng(0).integers(4, VOCAB, (16, 5)))
    losses, _ = train(variant, (source, source), 31)
    assert losses[-1] < losses[0] / 2


@pytest.mark.slow
def test_learns_to_copy(variant):
    """New sentences of 2 to 6 pieces each step; then ones never seen come out right, piece by piece.

    Without positions the encoder sees a bag of pieces, of which no decoder can know the order; nor can it
    know that of pieces past the last position.
    """
    rng = np.random.default_rng(0)

    def sentences(rows):
        tokens = rng.integers(4, VOCAB, (rows, 7))
        lengths = rng.integers(2, 7, (rows, 1))
        tokens[np.arange(7) == lengths] = EOS
        return as_int(np.where(np.arange(7) > lengths, PAD, tokens))

    steps = 3_000
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))

    @jax.jit
    def update(params, moments, tokens):
        def loss(params):
            log_probs = jax.nn.log_softmax(variant.apply(params, tokens, tokens))
            nll = -jnp.take_along_axis(log_probs, tokens[..., None], axis=-1)[..., 0]
            return jnp.mean(nll, where=tokens != PAD)

        updates, moments = optimizer.update(jax.grad(loss)(params), moments)
        return optax.apply_updates(params, updates), moments

    params, moments = variant.params, optimizer.init(variant.params)
    for _ in range(steps):
        params, moments = update(params, moments, sentences(64))
    tokens = sentences(256)
    predicted = jax.jit(variant.apply)(params, tokens, tokens).argmax(axis=-1)
    right = np.mean((predicted == tokens)[tokens != PAD])
    if variant.model.config.positions == "none":
        assert right < 0.8
    elif variant.model.config.max_positions < 7:
        assert right < 0.98
    else:
        assert right > 0.99


def test_every_name_is_known_to_build():
    assert len(VARIANTS) == 4 + sum(len(entries) - 1 for entries in DICTS.values()) + 2 * len(CELLS)


@pytest.mark.parametrize(
    "field", ["kind", "positions", "norm", "norm_placement", "feed_forward", "dropout_sites", "embeddings"]
)
def test_unknown_names_are_refused_by_build(field):
    with pytest.raises(UserError, match=rf"model.{field} is 'x'; it must be one of: "):
        build(tiny_config(**{field: "x"}), VOCAB)


def test_an_unknown_cell_is_refused():
    with pytest.raises(UserError, match="model.cell is 'x'; it must be one of: gru, lstm"):
        build(tiny_config(kind="recurrent", cell="x"), VOCAB)
