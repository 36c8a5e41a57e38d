"""Attention weights of a model, and their entropies."""

import jax
import numpy as np
import pytest

from tests.support.tiny import VOCAB, random_params, tiny_config
from transformer.batch import TokenBatch
from transformer.config import UserError
from transformer.evaluation.attention import (
    attention_entropies,
    attention_weights,
    continuation_weights,
    mask_params,
)
from transformer.model import build_model, parameter_shapes

SOURCE, TARGET = [4, 5, 6, 7, 2], [10, 11, 2]


def weights_of(**changes):
    """Weights of a model with random parameters."""
    model, rng = build_model(tiny_config(**changes), VOCAB), np.random.default_rng(1)
    params = jax.tree.map(lambda x: np.float32(rng.normal(size=x.shape)), parameter_shapes(model))
    return attention_weights(model, params, SOURCE, TARGET)


def test_attention_weights_cover_every_layer_and_head():
    weights = weights_of()
    assert weights.encoder.shape == (2, 3, 5, 5)
    assert weights.decoder.shape == (2, 3, 3, 3)
    assert weights.cross.shape == (2, 3, 3, 5)
    for array in weights:
        np.testing.assert_allclose(array.sum(axis=-1), 1, rtol=1e-5)
    assert np.all(np.triu(weights.decoder[0, 0], 1) == 0)
    assert not np.allclose(weights.cross[0], weights.cross[1])


def test_a_recurrent_model_has_only_cross_attention():
    weights = weights_of(kind="recurrent_attention", num_layers=1)
    assert weights.encoder is weights.decoder is None
    assert weights.cross.shape == (1, 1, 3, 5)
    np.testing.assert_allclose(weights.cross.sum(axis=-1), 1, rtol=1e-5)


def test_the_weights_of_a_decoder_only_model_are_parts_of_one_attention():
    weights = weights_of(kind="decoder_only")
    assert weights.encoder.shape == (2, 3, 5, 5)
    assert weights.cross.shape == (2, 3, 3, 5)
    np.testing.assert_allclose(weights.encoder.sum(axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(weights.cross.sum(axis=-1) + weights.decoder.sum(axis=-1), 1, rtol=1e-5)
    assert np.all(np.triu(weights.encoder[0, 0], 1) == 0)
    assert np.all(np.triu(weights.decoder[0, 0], 1) == 0)


def test_a_model_without_attention_is_refused():
    with pytest.raises(UserError, match="model.kind is 'recurrent', which has no attention to show"):
        weights_of(kind="recurrent", num_layers=1)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (np.ones((5, 5)), np.tri(3), np.ones((3, 5)))),
        ({"kind": "decoder_only"}, (np.tri(5), np.tri(3), np.ones((3, 5)))),
        pytest.param(
            {"kind": "decoder_only", "prefix": "bidirectional"},
            (np.ones((5, 5)), np.tri(3), np.ones((3, 5))),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"attention_window": 2, "positions": "alibi"},
            (np.tri(5, k=1) - np.tri(5, k=-2), np.tri(3) - np.tri(3, k=-2), np.ones((3, 5))),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_mask_params_show_which_keys_a_query_may_see(changes, expected):
    model = build_model(tiny_config(**changes), VOCAB)
    weights = attention_weights(model, mask_params(random_params(model)), SOURCE, TARGET)
    for values, mask in zip(weights, expected, strict=True):
        np.testing.assert_array_equal((values > 0).all(axis=(0, 1)), mask > 0)
        np.testing.assert_array_equal((values > 0).any(axis=(0, 1)), mask > 0)


def test_a_language_model_attends_to_the_tokens_that_it_has_read():
    model = build_model(tiny_config(kind="decoder_only"), VOCAB)
    params = random_params(model)
    weights = continuation_weights(model, params, SOURCE)
    assert weights.encoder is weights.cross is None
    assert weights.decoder.shape == (2, 3, 5, 5)
    np.testing.assert_allclose(weights.decoder.sum(axis=-1), 1, rtol=1e-5)
    # A decoder-only model reads BOS and its source as a language model does.
    joint = attention_weights(model, params, SOURCE, TARGET)
    np.testing.assert_allclose(weights.decoder, joint.encoder, rtol=1e-4, atol=1e-6)


def test_the_entropy_of_uniform_weights_is_the_log_of_the_number_of_keys():
    """All parameters are zero, so every query attends equally to all keys that it may see."""
    model = build_model(tiny_config(), VOCAB)
    params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), parameter_shapes(model))
    source = TokenBatch.from_tokens(np.array([SOURCE, [4, 2, 0, 0, 0]]))
    target = TokenBatch.from_tokens(np.array([TARGET, [10, 2, 0]]))
    entropies = attention_entropies(model, params, source, target)
    encoder = (5 * np.log(5) + 2 * np.log(2)) / 7
    decoder = (np.log(1) + np.log(2) + np.log(3) + np.log(1) + np.log(2)) / 5
    cross = (3 * np.log(5) + 2 * np.log(2)) / 5
    for layer in ("layers_0", "layers_1"):
        assert entropies.pop(f"encoder.{layer}.self_attention") == pytest.approx(encoder, rel=1e-5)
        assert entropies.pop(f"decoder.{layer}.self_attention") == pytest.approx(decoder, rel=1e-5)
        assert entropies.pop(f"decoder.{layer}.cross_attention") == pytest.approx(cross, rel=1e-5)
    assert not entropies


def test_every_token_of_a_decoder_only_model_is_a_query():
    """All parameters are zero, so the token at position i attends equally to i + 1 tokens."""
    model = build_model(tiny_config(kind="decoder_only"), VOCAB)
    params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), parameter_shapes(model))
    source, target = (TokenBatch.from_tokens(np.array([tokens])) for tokens in (SOURCE, TARGET))
    entropies = attention_entropies(model, params, source, target)
    expected = np.log(np.arange(1, 9)).mean()
    assert entropies == {
        f"decoder.layers_{layer}.self_attention": pytest.approx(expected, rel=1e-5) for layer in (0, 1)
    }


def test_a_model_without_attention_has_no_entropies():
    model = build_model(tiny_config(kind="recurrent", num_layers=1), VOCAB)
    params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), parameter_shapes(model))
    batches = (TokenBatch.from_tokens(np.array([tokens])) for tokens in (SOURCE, TARGET))
    assert attention_entropies(model, params, *batches) == {}
