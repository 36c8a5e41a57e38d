"""Removed parts of a model, compared with the equations in NumPy and with zeroed weights, and in a search."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.model import oracle
from tests.support.tiny import VOCAB, cached_logits, random_params, sentence_pairs, tiny_config, token_batch
from transformer.config import BOS, UserError
from transformer.evaluation.ablation import ablate, effects, parts
from transformer.model import build_model

SOURCE, TARGET = [4, 5, 6, 7, 2], [10, 11, 2]
# The attentions in the order in which the oracle computes them.
ATTENTIONS = ["encoder.1.self", "encoder.2.self", "decoder.1.self", "decoder.1.cross", "decoder.2.self", "decoder.2.cross"]  # fmt: skip


def make(**changes):
    model = build_model(tiny_config(dropout_rate=0.0, **changes), VOCAB)
    return model, random_params(model)


@pytest.fixture(scope="module")
def plain():
    return make()


def logits(model, params, source=SOURCE, target=TARGET):
    return _logits(model, params, token_batch([source]), token_batch([target]))


@functools.partial(jax.jit, static_argnames="model")
def _logits(model, params, source, target):
    return model.apply({"params": params}, source, target)[0]


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("head", [1, 3])
def test_a_removed_head_equals_a_head_without_values_in_the_equations(plain, monkeypatch, attention, head):
    """The oracle sets the head's columns of W^V to zero, so the head's weighted sum is zero."""
    model, params = plain
    multi_head, calls = oracle.multi_head, iter(ATTENTIONS)

    def without_head(x, memory, weights, num_heads, *arguments, **options):
        if next(calls) == attention:
            value = np.array(weights["value"]["kernel"])
            value.reshape(len(value), num_heads, -1)[:, head - 1] = 0
            weights = {**weights, "value": {"kernel": value}}
        return multi_head(x, memory, weights, num_heads, *arguments, **options)

    monkeypatch.setattr(oracle, "multi_head", without_head)
    double = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    expected = oracle.transformer(SOURCE, TARGET, double, num_heads=3)
    removed = logits(*ablate(model, params, f"{attention}.head.{head}"))
    np.testing.assert_allclose(removed, expected, atol=2e-5)
    assert np.abs(removed - logits(model, params)).max() > 1e-3


def test_a_removed_head_equals_a_head_with_zero_rows_of_the_output_matrix(plain):
    model, params = plain
    zeroed = jax.tree.map(np.array, params)
    zeroed["decoder"]["layers_1"]["cross_attention"]["output"]["kernel"][7:14] = 0  # d_v is 7
    zeroed = jax.tree.map(jnp.asarray, zeroed)
    removed = logits(*ablate(model, params, "decoder.2.cross.head.2"))
    np.testing.assert_allclose(removed, logits(model, zeroed), atol=1e-6)


def test_removing_every_head_is_removing_the_sublayer(plain):
    model, params = plain
    sublayer = logits(*ablate(model, params, "encoder.1.self"))
    for head in (1, 2, 3):
        model, params = ablate(model, params, f"encoder.1.self.head.{head}")
    np.testing.assert_allclose(logits(model, params), sublayer, atol=1e-6)


def test_a_removed_feed_forward_layer_gives_only_the_residual(plain, monkeypatch):
    model, params = plain
    calls = iter(range(9))
    feed_forward = oracle.feed_forward
    monkeypatch.setattr(
        oracle, "feed_forward", lambda x, weights: feed_forward(x, weights) * (next(calls) != 1)
    )
    double = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    expected = oracle.transformer(SOURCE, TARGET, double, num_heads=3)  # encoder layer 2 is the second call
    np.testing.assert_allclose(logits(*ablate(model, params, "encoder.2.feed_forward")), expected, atol=2e-5)


@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "relative", "alibi", "rope"])
def test_without_positions_an_encoder_sees_a_bag_of_tokens(positions):
    model, params = make(positions=positions, num_layers=1)
    ordered, permuted = [4, 5, 6, 7, 2], [7, 5, 4, 6, 2]
    assert np.abs(logits(model, params, ordered) - logits(model, params, permuted)).max() > 1e-3
    removed = ablate(model, params, "positions")
    np.testing.assert_allclose(logits(*removed, ordered), logits(*removed, permuted), atol=1e-5)


def test_a_search_sees_the_model_without_the_part(plain):
    model, params = ablate(*plain, "decoder.1.self.head.2")
    source, target = (batch.tokens for batch in sentence_pairs())
    steps = np.insert(np.asarray(target)[:, :-1], 0, BOS, axis=1).T[:, :, None]
    cached = cached_logits(model, params, source, steps, np.zeros_like(steps), target.shape[1])
    forced = _logits(model, params, *sentence_pairs())
    np.testing.assert_allclose(np.asarray(cached)[:3, 0, 0], forced[:3], atol=1e-5)


def test_an_unknown_part_is_refused_and_the_error_lists_the_parts(plain):
    for part in (
        "decoder.3.cross.head.1",
        "decoder.1.cross.head.4",
        "encoder.1.cross",
        "encoder.0.self",
        "x",
    ):
        with pytest.raises(
            UserError, match=r"not a part of this model; choose one of: encoder.1.self, .* heads 1 to 3 of"
        ):
            ablate(*plain, part)
    recurrent = build_model(tiny_config(kind="recurrent"), VOCAB)
    with pytest.raises(UserError, match="model.kind is 'recurrent', but only parts of a transformer can be"):
        ablate(recurrent, {}, "encoder.1.self")


def test_every_part_has_an_effect_with_an_interval(plain):
    model, params = plain

    def nats(model, params):
        # Only removed parameters are zero, so their number is the size of the part.
        num_zeros = float(sum(np.sum(np.asarray(x) == 0) for x in jax.tree.leaves(params)))
        return np.array([1.0, 2.0, 3.0]) * num_zeros

    measured = effects(model, params, nats, np.array([2, 2, 2]))
    assert {effect.part for effect in measured} == set(parts(model.config))
    assert [effect.difference for effect in measured] == sorted(
        (e.difference for e in measured), reverse=True
    )
    head = next(effect for effect in measured if effect.part == "encoder.1.self.head.1")
    assert head.difference == pytest.approx(7 * 22 * 6 / 6)
    assert 7 * 22 * 0.5 <= head.low < head.difference < head.high <= 7 * 22 * 1.5
