"""Recomputation in the backward pass: the same gradients with less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.costs import trace_passes
from tests.support.tiny import VOCAB, mean_nll, random_params, sentence_pairs, tiny_config
from transformer.config import UserError
from transformer.model import build_model
from transformer.model.dropout import Dropout

CHANGES = {"num_layers": 1, "positions": "relative", "dropout_sites": "all", "residual": "pre_norm"}


def loss_fn(remat):
    model = build_model(tiny_config(remat=remat, **CHANGES), VOCAB)

    def loss(params):
        source, target = sentence_pairs()
        return mean_nll(
            model.apply({"params": params}, source, target, Dropout(jax.random.key(1), 0.3)), target
        )

    return model, loss


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["block", "dots"])
def test_the_gradient_is_the_same(remat):
    """A layer has parameters of its own and reads those of the positions; dropout is on everywhere."""
    model, loss = loss_fn("none")
    params = random_params(model)
    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    other_value, other_gradient = jax.jit(jax.value_and_grad(loss_fn(remat)[1]))(params)
    assert float(other_value) == pytest.approx(float(value), rel=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), other_gradient, gradient
    )


def kept_bytes(remat):
    model, loss = loss_fn(remat)
    params = jax.eval_shape(lambda: random_params(model))
    return trace_passes(lambda params: (loss(params), jnp.zeros(())), params).kept_bytes


def test_less_is_kept_for_the_backward_pass():
    assert kept_bytes("block") < kept_bytes("dots") < kept_bytes("none")


def test_an_unknown_name_is_refused():
    with pytest.raises(UserError, match="model.remat is 'all'; it must be one of: block, dots, none"):
        build_model(tiny_config(remat="all"), VOCAB)
