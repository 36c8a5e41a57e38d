"""Invariants of every entry in every dict of the model.

A new entry is tested without a change to this file, except for a new kind of model.

Compilation takes most of the time. So the tests of a variant share one program for logits, with fixed shapes.
The test of decoding compiles one more, and the fast set compiles other shapes, bfloat16 and the gradient for a
few variants only.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from tests.support.tiny import (
    SEQUENCE_SCHEMES,
    VOCAB,
    cached_logits,
    mean_nll,
    packed_batch,
    random_params,
    tiny_config,
    token_batch,
    train,
)
from transformer.config import BOS, EOS, PAD, ModelConfig, UserError
from transformer.model import CHOICES, KINDS, TEXT_KINDS, build_model, init_params
from transformer.model.dropout import Dropout
from transformer.model.positions import POSITIONS
from transformer.model.recurrent import CELLS

# Tolerance for float32 sums in a different order, as in a different shape or program. Logits are of order 1.
OTHER_ORDER = 2e-5
# Tolerance between rows of the same batch. XLA vectorizes recurrences and, on some processors, the products
# of relative positions across rows, so two rows may add the same numbers in different orders.
ROW_ROUNDING = 1e-6
# Config fields that change only how a token is transformed on its own, as the tests of whole rows show. A
# decoding step uses the same block, so the test of cached decoding skips these fields.
PER_TOKEN_FIELDS = {"norm", "feed_forward", "dropout_sites"}


# Entries with invariants of their own: kinds, cells, and those of images (test_image_classifier.py).
OTHER_FIELDS = ("kind", "cell", "pooling")
GRID_POSITIONS = {*POSITIONS} - {*SEQUENCE_SCHEMES}
RECURRENT = ("recurrent", "recurrent_attention")
DECODER_ONLY = (("causal", "sinusoidal"), ("bidirectional", "t5_bias"), ("bidirectional", "relative"))
# Each change of attention alone. The variant `attention` has all of them.
ATTENTION = {
    "multi_query": {"num_kv_heads": 1},
    "qk_norm": {"qk_norm": True},
    "logit_cap": {"logit_cap": 2.0},
    "window": {"attention_window": 2},
    "gate": {"attention_gate": True},
    "partial_rope": {"positions": "rope", "rope_base": 100.0, "rope_fraction": 2 / 3},
}


def variants() -> dict[str, dict]:
    """Variants by name: the paper's model with one change, and each recurrent kind with each cell."""
    default = ModelConfig()
    changes = {"paper": {}}
    for field, entries in CHOICES.items():
        if field not in OTHER_FIELDS:
            changes |= {
                name: {field: name}
                for name in entries
                if name != getattr(default, field) and name not in GRID_POSITIONS
            }
    for kind, cell in itertools.product(RECURRENT, CELLS):
        changes[f"{kind}-{cell}"] = {"kind": kind, "cell": cell}
    # A decoder-only model joins source and target, so its schemes see other positions and indices.
    for prefix, positions in DECODER_ONLY:
        changes[f"decoder_only-{prefix}-{positions}"] = {
            "kind": "decoder_only",
            "prefix": prefix,
            "positions": positions,
        }
    changes["uneven"] = {"encoder_layers": 1, "decoder_layers": 2}
    # In these two variants, sequences are longer than `max_positions`.
    changes["clamp"] = {"overflow": "clamp", "max_positions": 3}
    changes["zero"] = {"positions": "learned", "overflow": "zero", "max_positions": 3}
    changes["attention"] = {name: value for entry in ATTENTION.values() for name, value in entry.items()}
    changes["decoder_only-attention"] = changes["attention"] | {"kind": "decoder_only"}
    return changes | ATTENTION


VARIANTS = variants()


# Each of these is also part of a variant in the fast set, or differs from one in a part that acts on each token
# alone and that is compared with its equation.
SLOW = {
    *ATTENTION,
    *("decoder_only-bidirectional-relative", "decoder_only-bidirectional-t5_bias"),
    *("recurrent-gru", "recurrent_attention-gru", "zero", "two_way", "untied", "uneven"),
    *("sinusoidal_concat", "rms_norm", "gelu", "clamp", "decoder_only-attention"),
    *("sandwich", "deepnorm", "rezero", "dynamic_tanh", "glu", "bilinear", "reglu", "geglu"),
}
# Variants that the fast set trains: a Transformer with all options of attention, and a recurrent model. The
# golden run trains the paper's model.
TRAINED = {"attention", "recurrent_attention-lstm"}
# Variants that the fast set computes without padding and in bfloat16: together, they have every kind of layer,
# and positions that change the inputs, the queries and keys, or the weights.
UNPADDED = {"paper", "relative", *TRAINED}


class Variant:
    """A model with one layer per stack, its parameters, and a program for its loss, logits and gradient."""

    num_rows, source_length, target_length = 8, 9, 7

    def __init__(self, changes):
        self.changes = changes
        self.model = build_model(tiny_config(**{"num_layers": 1} | changes), VOCAB)
        self.params = random_params(self.model)
        self.flat_params, self._unravel = ravel_pytree(self.params)
        self.compiled = jax.jit(self.apply)
        self._loss_and_gradient = jax.jit(jax.value_and_grad(self._loss))

    def apply(self, flat_params, source, target, rate=0.0):
        variables = {"params": self._unravel(flat_params)}
        return self.model.apply(variables, source, target, Dropout(jax.random.key(3), rate))

    def _loss(self, flat_params, source, target):
        return mean_nll(self.apply(flat_params, source, target), target)

    def loss_and_gradient(self, flat_params, source, target):
        loss, gradient = self._loss_and_gradient(flat_params, source, target)
        return float(loss), np.asarray(gradient)

    def logits(self, source_rows, target_rows, rate=0.0, padding=PAD) -> np.ndarray:
        """Logits [row, target token, class]. Each row maps segment ids to tokens."""
        batches = [
            batch._replace(tokens=jnp.where(batch.segment_ids == 0, padding, batch.tokens))
            for batch in self.batches(source_rows, target_rows)
        ]
        return np.asarray(self.compiled(self.flat_params, *batches, rate))

    def batches(self, source_rows, target_rows):
        """Batches of the given rows, padded to the shape of the compiled program."""
        empty = [{}] * (self.num_rows - len(source_rows))
        source = packed_batch([*source_rows, *empty], self.source_length)
        return source, packed_batch([*target_rows, *empty], self.target_length)


@functools.cache
def variant_named(name) -> Variant:
    return Variant(VARIANTS[name])


def all_variants(fast):
    """The parameters of a fixture: all variants, of which those not in `fast` are marked as slow."""
    return [pytest.param(name, id=name, marks=() if name in fast else pytest.mark.slow) for name in VARIANTS]


@pytest.fixture(scope="module", params=all_variants(fast={*VARIANTS} - SLOW))
def variant(request):
    return variant_named(request.param)


@pytest.fixture(params=all_variants(fast=TRAINED))
def trained_variant(request):
    return variant_named(request.param)


@pytest.fixture(scope="module", params=all_variants(fast=UNPADDED))
def unpadded_variant(request):
    """A variant with a batch of one sentence without padding."""
    return variant_named(request.param), [packed_batch([{B: side[B]}]) for side in (SOURCES, TARGETS)]


A, B = 1, 2  # the segment ids of two examples
SOURCES = {A: [4, 5, 6, 7, 2], B: [8, 9, 2]}
TARGETS = {A: [10, 11, 2], B: [12, 4, 5, 2]}


def rows_of(sentences, rows):
    return [{example: sentences[example] for example in row} for row in rows]


def test_a_target_token_changes_only_later_logits(variant):
    """The logits at position i predict token i from the tokens before it. Row i changes token i.

    The model has one layer, so with an attention window the token changes only that many logits.
    """
    reach = variant.model.config.attention_window or 7
    target = [4, 5, 6, 7, 8, 9, 2]
    targets = [{A: [*target[:i], 10, *target[i + 1 :]]} for i in range(len(target))]

    *changed, original = variant.logits([{A: SOURCES[A]}] * 8, [*targets, {A: target}])

    for i, logits in enumerate(changed):
        np.testing.assert_allclose(logits[: i + 1], original[: i + 1], rtol=0, atol=ROW_ROUNDING)
        change = np.abs(logits[i + 1 :] - original[i + 1 :]).max(axis=-1)
        assert (change[:reach] > ROW_ROUNDING).all()
        assert (change[reach:] <= ROW_ROUNDING).all()


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_an_example_has_the_same_logits_in_every_row(variant, rate):
    """The example is alone in a different row or, if the model supports packing, follows another example."""
    packs = variant.model.supports_packing
    rows = [[A], [B], [B], [A], [B, A] if packs else [B]]

    logits = variant.logits(rows_of(SOURCES, rows), rows_of(TARGETS, rows), rate)

    atol = 0 if packs else ROW_ROUNDING
    np.testing.assert_allclose(logits[3, :3], logits[0, :3], rtol=0, atol=atol)
    np.testing.assert_allclose(logits[2, :4], logits[1, :4], rtol=0, atol=atol)
    np.testing.assert_allclose(logits[4, :4], logits[1, :4], atol=OTHER_ORDER)
    if packs:
        np.testing.assert_allclose(logits[4, 4:], logits[0, :3], atol=OTHER_ORDER)


def test_dropout_depends_on_the_rate_and_the_example(variant):
    rows = [{A: SOURCES[A]}, {B: SOURCES[A]}], [{A: TARGETS[A]}, {B: TARGETS[A]}]

    full, dropped = variant.logits(*rows), variant.logits(*rows, rate=0.4)

    np.testing.assert_allclose(full[0], full[1], atol=OTHER_ORDER)
    assert np.abs(dropped[0] - full[0]).max() > 0.1
    assert np.abs(dropped[0] - dropped[1]).max() > 0.1


def test_padding_may_have_any_token(variant):
    rows = [{B: SOURCES[B]}], [{B: TARGETS[B]}]
    np.testing.assert_array_equal(
        variant.logits(*rows, padding=11)[0, :4], variant.logits(*rows, padding=PAD)[0, :4]
    )


def test_padding_changes_nothing(unpadded_variant):
    variant, batches = unpadded_variant

    unpadded = variant.compiled(variant.flat_params, *batches)

    padded = variant.logits([{B: SOURCES[B]}], [{B: TARGETS[B]}])
    np.testing.assert_allclose(padded[0, :4], unpadded[0], atol=OTHER_ORDER)


def test_bfloat16_stays_near_float32(unpadded_variant):
    """bfloat16 has 8 bits of mantissa. The tolerance of 0.15 is about six roundings of a logit of order 4."""
    variant, batches = unpadded_variant
    half = build_model(dataclasses.replace(variant.model.config, dtype="bfloat16"), VOCAB)

    logits = jax.jit(half.apply)({"params": variant.params}, *batches)

    assert logits.dtype == jnp.float32
    expected = variant.compiled(variant.flat_params, *batches)
    np.testing.assert_allclose(logits, expected, atol=0.15)


def test_cached_decoding_equals_full_decoding(variant):
    """The two hypotheses of a sentence swap places at each step. Neither may affect the other."""
    if PER_TOKEN_FIELDS & set(variant.changes):
        pytest.skip("a layer that acts on each token alone never sees the cache")
    paths = np.array([[[10, 11, 4, 2], [12, 4, 5, 2]], [[12, 4, 5, 2], [10, 11, 4, 2]]])  # [path, b, t]
    inputs = np.insert(paths[..., :-1], 0, BOS, axis=-1)
    path = (np.arange(4)[:, None] + np.arange(2)) % 2  # the path in each place at each step
    tokens = np.stack([inputs[path[t], :, t].T for t in range(4)])
    parents = np.tile([1, 0], (4, 2, 1))
    source_rows = rows_of(SOURCES, [[A], [B]])

    cached = cached_logits(
        variant.model, variant.params, packed_batch(source_rows).tokens, tokens, parents, cache_length=6
    )

    full = np.stack([variant.logits(source_rows, [{A: first}, {B: second}]) for first, second in paths])
    for t, place in itertools.product(range(4), range(2)):
        np.testing.assert_allclose(cached[t, :, place], full[path[t, place], :2, t], atol=OTHER_ORDER)


def test_the_loss_halves_in_30_steps(trained_variant):
    """The optimizer is Adam, written in NumPy, with a learning rate of 0.01."""
    rows = [
        {A: tokens} for tokens in np.random.default_rng(0).integers(4, VOCAB, (trained_variant.num_rows, 5))
    ]
    batches = trained_variant.batches(rows, rows)

    params, losses, mean, square = np.asarray(trained_variant.flat_params), [], 0, 0
    for step in range(1, 32):
        loss, gradient = trained_variant.loss_and_gradient(params, *batches)
        losses.append(loss)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        params = params - 0.01 * (mean / (1 - 0.9**step)) / np.sqrt(square / (1 - 0.999**step) + 1e-8)

    assert losses[-1] < losses[0] / 2


@pytest.mark.slow
def test_a_model_learns_to_copy(variant):
    """Trains on new sentences of 2 to 6 tokens at each step, then tests on other sentences (teacher forcing).

    Without positions, the encoder sees a bag of tokens, and the decoder cannot know their order. The same is
    true of the tokens beyond the last position.
    """
    model = build_model(tiny_config(**{"encoder_layers": 1} | variant.changes), VOCAB)
    rng = np.random.default_rng(0)
    num_steps = 3_000

    def sentences(num_rows):
        lengths = rng.integers(2, 7, num_rows)
        return token_batch([[*rng.integers(4, VOCAB, length), EOS] for length in lengths], 7)

    batches = ((batch, batch) for batch in (sentences(64) for _ in range(num_steps)))
    schedule = optax.cosine_decay_schedule(3e-3, num_steps)
    _, params = train(model, init_params(model, seed=2), batches, schedule)

    test = sentences(256)
    predicted = jax.jit(model.apply)({"params": params}, test, test).argmax(axis=-1)
    accuracy = np.mean((predicted == test.tokens)[test.segment_ids != 0])
    if model.config.positions == "none":
        assert accuracy < 0.8
    elif model.config.max_positions < 7:
        assert accuracy < 0.98
    else:
        assert accuracy > 0.99


def test_every_entry_has_a_variant():
    entries = sum(len(CHOICES[field]) - 1 for field in CHOICES if field not in OTHER_FIELDS)
    entries -= len(GRID_POSITIONS)
    recurrent = len(RECURRENT) * len(CELLS)
    assert len(VARIANTS) == 1 + entries + recurrent + len(DECODER_ONLY) + 3 + 2 + len(ATTENTION)
    assert {*TEXT_KINDS} == {"transformer", "decoder_only", *RECURRENT}
    assert {*KINDS} - {*TEXT_KINDS} == {"image_classifier"}


@pytest.mark.parametrize("field", CHOICES)
def test_an_unknown_name_is_refused(field):
    known = ", ".join(sorted(CHOICES[field]))
    with pytest.raises(UserError, match=f"^model.{field} is 'x'; it must be one of: {known}$"):
        build_model(tiny_config(**{field: "x"}), VOCAB)
