"""Several models as one, by hand and in search."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import VOCAB, logits, tiny_config
from transformer.config import DecodeConfig
from transformer.decoding.shrinking import ModelSearch
from transformer.model import build, init_params
from transformer.model.ensemble import ensemble


def members(*kinds):
    """Models and weights; those of one kind differ in their weights."""
    models = [build(tiny_config(kind=kind), VOCAB) for kind in kinds]
    return models, [init_params(model, seed=number) for number, model in enumerate(models)]


def probabilities(model, params, pair):
    found = np.float64(logits(model, params, *pair))
    return np.exp(found) / np.exp(found).sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("kinds", [("transformer",) * 3, ("transformer", "recurrent_attention")])
def test_the_mean_of_the_probabilities(pair, kinds, same):
    """Also where models of one kind are one module, with weights of several seeds."""
    models, params = members(*kinds)
    if same:
        models = [models[kinds.index(kind)] for kind in kinds]
    each = [probabilities(*one, pair) for one in zip(models, params, strict=True)]
    assert np.abs(each[0] - each[1]).max() > 0.01
    found = logits(*ensemble(models, params), *pair)
    np.testing.assert_allclose(found, np.log(np.mean(each, axis=0)), atol=1e-5)
    np.testing.assert_allclose(np.exp(found).sum(axis=-1), 1, rtol=1e-5)


def test_piece_by_piece_is_all_at_once(pair):
    """Two hypotheses of a sentence that continue one another by turns; no model keeps what another one did."""
    model, params = ensemble(*members("transformer", "recurrent"))
    source, target = pair
    full = logits(model, params, *pair)
    apply = jax.jit(model.apply, static_argnames=("method", "hypotheses", "length"))
    variables = {"params": params}
    memory, state = apply(variables, source, hypotheses=2, length=target.shape[1], method="start")
    previous = jnp.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=1)
    for index in range(target.shape[1]):
        own = index % 2  # which of the two reads the target; it continues the other one
        wrong = jnp.full_like(previous[:, index], 5)
        token = jnp.stack([previous[:, index], wrong][:: 1 if own == 0 else -1], axis=1)
        parent = jnp.full_like(token, 1 - own if index else 0)
        found, state = apply(variables, memory, state, token, parent, jnp.int32(index), method="step")
        there = target[:, index] != 0
        np.testing.assert_allclose(found[there, own], full[there, index], atol=1e-4)


@pytest.mark.parametrize("beam_size", [1, 3])
def test_a_model_twice_is_itself(pair, beam_size):
    (model,), (params,) = members("transformer")
    twice, both = ensemble([model, model], [params, params])
    config = DecodeConfig(beam_size=beam_size)
    limits = jnp.array([7, 6], jnp.int32)
    alone, together = (
        jax.jit(ModelSearch(one, config, beam_size), static_argnums=3)(weights, pair[0], limits, 7)
        for one, weights in ((model, params), (twice, both))
    )
    np.testing.assert_array_equal(alone.tokens, together.tokens)
    np.testing.assert_allclose(alone.score, together.score, atol=1e-4)  # a sum of 7 rounded logarithms


def test_it_goes_as_far_as_its_shortest_member():
    lengths = [build(tiny_config(positions="learned", max_positions=most), VOCAB) for most in (9, 7, 11)]
    assert ensemble([*lengths, *members("recurrent")[0]], [{}] * 4)[0].longest == (7, 7)
    assert ensemble(members("recurrent")[0], [{}])[0].longest == (None, None)
