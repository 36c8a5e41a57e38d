"""What the programs are made of, by their jaxprs: the types of products, the sizes of tensors."""

import math

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params

from experiments.description import full_rows
from tests.tiny import VOCAB, tiny_config
from transformer.model import build, init_params
from transformer.training.losses import Hyper, make_loss_fn


def equations(function, *args):
    """Those of inner jaxprs, too."""

    def found(jaxpr):
        for equation in jaxpr.eqns:
            yield equation
            for inner in jaxprs_in_params(equation.params):
                yield from found(inner)

    return list(found(jax.make_jaxpr(function)(*args).jaxpr))


def loss_of(config, vocab_size, source, target):
    """A model's loss as in training, and shapes of its arguments."""
    model = build(config, vocab_size)
    params = jax.eval_shape(lambda: init_params(model, 0))
    batch = full_rows(2, source)._replace(target=full_rows(2, target).target)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return make_loss_fn(model), (params, batch, key, Hyper(1.0, 0.1, 0.1))


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
    """Their factors are bfloat16, what a softmax reads is float32; and so is, in the gradient, its slope.

    `exact` are products of logits that are float32 already with ones and zeros.
    """
    loss, args = loss_of(tiny_config(dtype="bfloat16", num_layers=1, **changes), VOCAB, 5, 7)

    def float32(function, variables):
        """The products, by their einsum or the module's name, of which one of these is float32."""
        return {
            str(equation.source_info.name_stack).rpartition("/")[2]
            for equation in equations(function, *args)
            if equation.primitive.name == "dot_general"
            and any(x.aval.dtype == jnp.float32 for x in getattr(equation, variables))
        }

    assert float32(loss, "outvars") == logits
    assert float32(loss, "invars") == exact
    assert float32(jax.grad(loss, has_aux=True), "invars") == logits - {OUTPUT}


def test_relative_positions_make_no_tensor_of_queries_keys_and_channels():
    """Sizes are primes, so that a tensor has an axis if its size has the factor."""
    s, t, d, e = 11, 13, 5, 7
    sizes = {"d_model": 23, "d_ff": 29, "num_heads": 3, "d_k": d, "d_v": e, "max_distance": 9}
    loss, args = loss_of(tiny_config(positions="relative", num_layers=1, **sizes), 31, s, t)
    for equation in equations(jax.grad(loss, has_aux=True), *args):
        for x in equation.outvars:
            for pairs in (s * s, t * t, t * s):
                for channels in (d, e):
                    assert math.prod(x.aval.shape) % (pairs * channels), equation
