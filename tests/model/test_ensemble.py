"""Ensembles, which predict the mean of the probabilities of their models."""

import jax
import numpy as np
import pytest

from tests.support.tiny import VOCAB, cached_logits, random_params, sentence_pairs, tiny_config
from transformer.config import BOS
from transformer.model import build_model
from transformer.model.ensemble import ensemble


def members(*kinds):
    """Models of the given kinds, and their parameters. Models of the same kind differ only in parameters."""
    models = {kind: build_model(tiny_config(kind=kind, num_layers=1), VOCAB) for kind in kinds}
    models = [models[kind] for kind in kinds]
    return models, [random_params(model, seed) for seed, model in enumerate(models)]


def logits(model, params):
    return np.float64(jax.jit(model.apply)({"params": params}, *sentence_pairs()))


def softmax(x):
    return np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)


@pytest.mark.parametrize(
    "kinds",
    [("transformer", "recurrent_attention"), pytest.param(("transformer",) * 3, marks=pytest.mark.slow)],
)
def test_probabilities_are_the_mean_of_the_models_probabilities(kinds):
    models, params = members(*kinds)
    probabilities = [softmax(logits(*member)) for member in zip(models, params, strict=True)]
    assert np.abs(probabilities[0] - probabilities[1]).max() > 0.01

    log_probs = logits(*ensemble(models, params))

    np.testing.assert_allclose(log_probs, np.log(np.mean(probabilities, axis=0)), atol=1e-5)
    np.testing.assert_allclose(np.exp(log_probs).sum(axis=-1), 1, rtol=1e-5)


def test_two_copies_of_a_model_predict_the_same_as_the_model():
    (model,), (params,) = members("transformer")
    twice = ensemble([model, model], [params, params])
    np.testing.assert_allclose(np.exp(logits(*twice)), softmax(logits(model, params)), atol=1e-5)


def test_cached_decoding_equals_full_decoding():
    """Each sentence has two hypotheses, the target and a wrong output, which swap places at each step."""
    model, params = ensemble(*members("transformer", "recurrent"))
    source, target = sentence_pairs()
    inputs = np.insert(np.asarray(target.tokens)[:, :-1], 0, BOS, axis=1)
    tokens = np.full((4, 2, 2), 5)
    for t in range(4):
        tokens[t, :, t % 2] = inputs[:, t]

    cached = cached_logits(model, params, source.tokens, tokens, np.tile([1, 0], (4, 2, 1)), cache_length=4)

    cached = np.stack([cached[t, :, t % 2] for t in range(4)], axis=1)
    is_token = np.asarray(target.segment_ids) != 0
    np.testing.assert_allclose(cached[is_token], logits(model, params)[is_token], atol=1e-4)


def test_an_ensemble_accepts_the_lengths_that_all_its_models_accept():
    limits = (9, 7, 11)
    models = [build_model(tiny_config(positions="learned", max_positions=limit), VOCAB) for limit in limits]
    (recurrent,), _ = members("recurrent")
    assert ensemble([*models, recurrent], [{}] * 4)[0].max_lengths == (7, 7)
    assert ensemble([recurrent], [{}])[0].max_lengths == (None, None)
