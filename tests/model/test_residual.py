"""Residual connections: their equations and their initial values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.model import oracle
from tests.support.tiny import VOCAB, random_tree, tiny_config, token_batch
from transformer.config import ModelConfig
from transformer.model import build_model
from transformer.model.dropout import NO_DROPOUT
from transformer.model.layers import NORMS
from transformer.model.residual import RESIDUALS


def test_the_initial_gain_scales_values_outputs_and_feed_forward_kernels():
    """The model has N = 1 encoder layer and M = 2 decoder layers."""
    sentence = token_batch([[4, 2]])
    plain, deep = (
        build_model(tiny_config(residual=name, encoder_layers=1), VOCAB).init(
            jax.random.key(0), sentence, sentence
        )["params"]
        for name in ("post_norm", "deepnorm")
    )

    gains = {"encoder": 0.87 * 2 ** (-1 / 16), "decoder": 24**-0.25}
    for stack, gain in gains.items():
        block = jax.tree.map(lambda a, b: np.median(a / b), deep[stack], plain[stack])["layers_0"]
        for attention in {"self_attention", "cross_attention"} & set(block):
            expected = {"query": 1, "key": 1, "value": gain, "output": gain}
            ratios = {name: float(block[attention][name]["kernel"]) for name in expected}
            assert ratios == pytest.approx(expected, rel=1e-5)
        for layer in ("inner", "outer"):
            assert block["feed_forward"][layer]["kernel"] == pytest.approx(gain, rel=1e-5)


def test_the_initial_gain_of_deepnorm_in_a_decoder_only_model():
    config = ModelConfig(kind="decoder_only", decoder_layers=5)
    assert RESIDUALS["deepnorm"].initial_gain(config, False) == pytest.approx((8 * 5) ** -0.25)


# The equations of the papers for N = 2 encoder layers and M = 5 decoder layers. The sub-layer is not linear,
# since LayerNorm would hide a factor on x + Sublayer(x).
EQUATIONS = {
    "post_norm": lambda x, norm: norm(x + x**2),
    "pre_norm": lambda x, norm: x + norm(x) ** 2,
    "sandwich": lambda x, norm: x + norm(norm(x) ** 2, "output_norm"),
    "deepnorm": lambda x, norm: norm(0.81 * (2**4 * 5) ** (1 / 16) * x + x**2),
    "deepnorm in a decoder": lambda x, norm: norm((3 * 5) ** (1 / 4) * x + x**2),
    "deepnorm in a decoder_only model": lambda x, norm: norm((2 * 5) ** (1 / 4) * x + x**2),
    "rezero": lambda x, norm: x + 0.7 * x**2,
}


@pytest.mark.parametrize("case", EQUATIONS)
def test_connections_equal_their_equations(case):
    x = np.random.default_rng(4).normal(size=(5, 7))

    def connect(residual, x):
        return residual.after(x, residual.before(x) ** 2, NO_DROPOUT)

    kind = "decoder_only" if "decoder_only" in case else "transformer"
    config = ModelConfig(kind=kind, d_model=7, num_heads=1, encoder_layers=2, decoder_layers=5)
    module = RESIDUALS[case.split()[0]](config, has_cross_attention=case.endswith("in a decoder"))
    inputs = jnp.float32(x)[None]
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), inputs, method=connect))
    params = random_tree(shapes["params"]) | ({"alpha": jnp.float32(0.7)} if case == "rezero" else {})
    output = module.apply({"params": params}, inputs, method=connect)[0]

    weights = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    expected = EQUATIONS[case](x, lambda x, name="norm": oracle.layer_norm(x, weights[name]))
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)


def test_every_connection_has_an_equation():
    assert {case.split()[0] for case in EQUATIONS} == set(RESIDUALS)


def test_trained_scalars_have_the_initial_values_of_the_papers():
    x = jnp.ones((1, 2, 7))
    config = ModelConfig(d_model=7, num_heads=1)
    rezero = RESIDUALS["rezero"](config).init(jax.random.key(0), x, x, NO_DROPOUT, method="after")
    dynamic_tanh = NORMS["dynamic_tanh"](config).init(jax.random.key(0), x)
    assert (rezero["params"]["alpha"], dynamic_tanh["params"]["alpha"]) == (0, 0.5)
