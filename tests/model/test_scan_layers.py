"""Layers that share one compiled block: the same losses and gradients from a smaller program."""

import jax
import numpy as np
import pytest

from tests.support.tiny import VOCAB, mean_nll, random_params, sentence_pairs, tiny_config
from transformer.model import build_model
from transformer.model.dropout import Dropout


def loss_fn(**changes):
    """Returns a model and its loss, with dropout everywhere."""
    model = build_model(tiny_config(dropout_sites="all", **changes), VOCAB)

    def loss(params):
        source, target = sentence_pairs()
        logits = model.apply({"params": params}, source, target, Dropout(jax.random.key(1), 0.3))
        return mean_nll(logits, target)

    return model, loss


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "block"])
@pytest.mark.parametrize(
    "changes",
    [
        {"positions": "relative"},
        {"residual": "pre_norm"},
        {"residual": "sandwich", "norm": "dynamic_tanh", "num_kv_heads": 1, "qk_norm": True},
        {"residual": "rezero", "logit_cap": 2.0, "attention_window": 2, "attention_gate": True},
    ],
    ids=str,
)
def test_the_gradient_is_the_same(changes, remat):
    """The scheme `relative` has other parameters in each layer, and dropout other masks."""
    model, loss = loss_fn(num_layers=3, **changes)
    params = random_params(model)
    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    scanned = loss_fn(num_layers=3, scan_layers=True, remat=remat, **changes)[1]
    scanned_value, scanned_gradient = jax.jit(jax.value_and_grad(scanned))(params)
    assert float(scanned_value) == pytest.approx(float(value), rel=1e-6)
    # Float32 sums in another order.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), scanned_gradient, gradient
    )


def num_products(**changes):
    model, loss = loss_fn(**changes)
    params = jax.eval_shape(lambda: random_params(model))
    return str(jax.make_jaxpr(loss)(params)).count("dot_general")


def test_the_blocks_are_in_the_program_once():
    """Each further layer has only the projections of the encoder's output, two keys-values products."""
    assert num_products(num_layers=2, scan_layers=True) == num_products(num_layers=1, scan_layers=True) + 2
    assert num_products(num_layers=2) > num_products(num_layers=1) + 2
