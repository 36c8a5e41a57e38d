"""Fused attention: the same results where it is possible, and a fallback where it is not."""

import functools

import jax
import numpy as np
import pytest

from tests.support.tiny import (
    SEQUENCE_SCHEMES,
    VOCAB,
    cached_logits,
    mean_nll,
    random_params,
    sentence_pairs,
    tiny_config,
)
from transformer.model import attention, build_model
from transformer.model.dropout import Dropout
from transformer.model.positions import POSITIONS


@pytest.fixture
def calls(monkeypatch):
    """The shapes of the queries of fused attention."""
    shapes, function = [], attention.fused_attention

    def record(query, *arguments):
        shapes.append(query.shape)
        return function(query, *arguments)

    monkeypatch.setattr(attention, "fused_attention", record)
    return shapes


def loss_and_gradient(params, fused, **changes):
    config = tiny_config(num_layers=1, d_v=6, fused_attention=fused, **changes)
    source, target = sentence_pairs()

    def loss(params):
        model = build_model(config, VOCAB)
        return mean_nll(
            model.apply({"params": params}, source, target, Dropout(jax.random.key(1), 0.3)), target
        )

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize(
    "positions",
    [name if name == "relative" else pytest.param(name, marks=pytest.mark.slow) for name in SEQUENCE_SCHEMES],
)
def test_the_loss_and_the_gradient_are_the_same(positions, calls):
    params = random_params(build_model(tiny_config(num_layers=1, d_v=6, positions=positions), VOCAB))
    plain = loss_and_gradient(params, fused=False, positions=positions)
    assert not calls
    fused = loss_and_gradient(params, fused=True, positions=positions)
    # A scheme that reads the weights leaves cross-attention only.
    assert len(calls) == (1 if POSITIONS[positions].reads_weights else 3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), fused, plain)


@pytest.mark.slow
def test_other_attention_has_the_same_loss_and_gradient(calls):
    changes = {"num_kv_heads": 1, "qk_norm": True, "attention_window": 2, "attention_gate": True}
    params = random_params(build_model(tiny_config(num_layers=1, d_v=6, **changes), VOCAB))
    plain, fused = (loss_and_gradient(params, fused, **changes) for fused in (False, True))
    assert len(calls) == 3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), fused, plain)


@pytest.mark.parametrize(
    "changes",
    [{"dropout_sites": "all"}, {"d_k": 7}, {"logit_cap": 2.0}],
    ids=["dropout of weights", "widths", "logit cap"],
)
def test_attention_falls_back_where_the_function_does_not_suffice(changes, calls):
    config = tiny_config(num_layers=1, **{"d_v": 6, **changes})
    params = random_params(build_model(config, VOCAB))
    jax.eval_shape(lambda: loss_and_gradient(params, fused=True, **changes))
    assert not calls


def test_the_weights_can_still_be_read(calls):
    model = build_model(tiny_config(num_layers=1, d_v=6, fused_attention=True), VOCAB)
    params = random_params(model)
    calls.clear()
    apply = functools.partial(model.apply, mutable=["intermediates"])
    _, state = jax.eval_shape(apply, {"params": params}, *sentence_pairs())
    assert len(jax.tree.leaves(state["intermediates"])) == 3
    assert not calls


def test_a_mask_has_a_row_for_each_query(monkeypatch):
    """cuDNN refuses another mask. In a decoding step, the queries of a sentence are its hypotheses."""
    shapes, function = [], jax.nn.dot_product_attention

    def record(query, key, value, bias, mask, **options):
        shapes.append((mask.shape, (len(query), 1, query.shape[1], key.shape[1])))
        return function(query, key, value, bias, mask, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", record)
    model = build_model(tiny_config(num_layers=1, d_v=6, fused_attention=True), VOCAB)
    steps = np.zeros((3, 2, 4), np.int32)  # [t, b, n]
    jax.eval_shape(
        lambda: cached_logits(model, random_params(model), sentence_pairs()[0].tokens[:2], steps, steps, 3)
    )
    assert len(shapes) >= 3
    assert all(mask == expected for mask, expected in shapes)


def test_a_scheme_with_a_bias_on_the_values_says_so():
    """Otherwise fused attention would leave the bias out."""
    for scheme in POSITIONS.values():
        overrides = scheme.value_bias is not attention.PositionScheme.value_bias
        assert scheme.reads_weights == overrides, scheme
