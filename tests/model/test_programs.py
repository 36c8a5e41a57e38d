"""Traced programs: the data types of matrix products, and the sizes of tensors."""

import math

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params

from tests.support.tiny import VOCAB, tiny_config, token_shapes
from transformer.model import build_model, parameter_shapes
from transformer.model.dropout import Dropout


def equations(jaxpr):
    """The equations of a program, including those of inner programs."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


def trace(function, arguments):
    return list(equations(jax.make_jaxpr(function)(*arguments).jaxpr))


def loss_and_arguments(config, vocab_size, source_length, target_length):
    """The negative log-likelihood of a batch with dropout, and the shapes of its arguments."""
    model = build_model(config, vocab_size)

    def loss(params, source, target, key):
        logits = model.apply({"params": params}, source, target, Dropout(key, 0.1))
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), target.tokens[..., None], axis=-1).sum()

    key = jax.eval_shape(lambda: jax.random.key(0))
    batches = (token_shapes(2, length) for length in (source_length, target_length))
    return loss, (parameter_shapes(model), *batches, key)


OUTPUT, ATTENTION, ADDITIVE = "...m,vm->...v", "bqhd,bkhd->bhqk", "bqsm,m->bqs"
RELATIVE, SPREAD = "bqhd,hcd->bhqc", "bhqc,qkc->bhqk"


@pytest.mark.parametrize(
    ("changes", "logits", "exact"),
    [
        ({}, {OUTPUT, ATTENTION}, set()),
        ({"positions": "relative"}, {OUTPUT, ATTENTION, RELATIVE, SPREAD}, {SPREAD}),
        ({"kind": "recurrent"}, {OUTPUT}, set()),
        ({"kind": "recurrent_attention"}, {OUTPUT, ADDITIVE}, set()),
    ],
    ids=["paper", "relative", "recurrent", "recurrent_attention"],
)
def test_products_of_a_bfloat16_model(changes, logits, exact):
    """Factors are bfloat16. Products are bfloat16 too, except for logits, which are float32.

    In the gradient, only the products that belong to logits have float32 factors. `exact` names the products
    of float32 logits with one-hot vectors.
    """
    config = tiny_config(dtype="bfloat16", num_layers=1, **changes)
    loss, arguments = loss_and_arguments(config, VOCAB, 5, 7)

    def float32_products(function, variables):
        """The einsum or the module of every product with a float32 result or a float32 factor."""
        return {
            str(equation.source_info.name_stack).rpartition("/")[2]
            for equation in trace(function, arguments)
            if equation.primitive.name == "dot_general"
            and any(x.aval.dtype == jnp.float32 for x in getattr(equation, variables))
        }

    assert float32_products(loss, "outvars") == logits
    assert float32_products(loss, "invars") == exact
    assert float32_products(jax.grad(loss), "invars") == logits


def test_relative_positions_make_no_tensor_of_queries_keys_and_channels():
    """Sizes are primes, so the factors of a tensor's size tell which axes the tensor has."""
    s, t, d, e = 11, 13, 5, 7
    sizes = {"d_model": 23, "d_ff": 29, "num_heads": 3, "d_k": d, "d_v": e, "max_distance": 9}
    config = tiny_config(positions="relative", num_layers=1, **sizes)
    loss, arguments = loss_and_arguments(config, 31, s, t)

    for equation in trace(jax.grad(loss), arguments):
        for x in equation.outvars:
            for pairs in (s * s, t * t, t * s):
                for channels in (d, e):
                    assert math.prod(x.aval.shape) % (pairs * channels), equation
