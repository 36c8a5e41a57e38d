"""Residual connections: the equations of registered connections, and connections that this file adds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests.model import oracle

# These tests run on the connections that this file adds.
from tests.model.test_invariants import (  # noqa: F401
    Variant,
    test_a_target_token_changes_only_later_logits,
    test_an_example_has_the_same_logits_in_every_row,
    test_cached_decoding_equals_full_decoding,
    test_the_loss_halves_in_30_steps,
)
from tests.support.tiny import VOCAB, tiny_config, token_batch
from transformer.config import ModelConfig
from transformer.model import build_model, parameter_shapes
from transformer.model.dropout import NO_DROPOUT
from transformer.model.layers import NORMS
from transformer.model.residual import RESIDUALS, Residual


class Sandwich(Residual):
    """x + LayerNorm(Sublayer(LayerNorm(x))) (Ding et al. 2021)."""

    final_norm = True

    def setup(self):
        super().setup()
        self.inner_norm = NORMS[self.config.norm](self.config)

    def before(self, x):
        return self.norm(x)

    def after(self, x, y, dropout):
        return x + dropout(self.inner_norm(y), self.path)


class DeepNorm(Residual):
    """LayerNorm(alpha x + Sublayer(x)), with initial kernels scaled by beta (Wang et al. 2022, figure 2)."""

    @classmethod
    def initial_gain(cls, config, has_cross_attention):
        n, m = config.encoder_depth, config.decoder_depth
        return (12 * m) ** -0.25 if has_cross_attention else 0.87 * (n**4 * m) ** (-1 / 16)

    def before(self, x):
        return x

    def after(self, x, y, dropout):
        n, m = self.config.encoder_depth, self.config.decoder_depth
        alpha = (3 * m) ** 0.25 if self.has_cross_attention else 0.81 * (n**4 * m) ** (1 / 16)
        return self.norm(alpha * x + dropout(y, self.path))


class ReZero(Residual):
    """x + a Sublayer(x), where a is trained and 0 at first; no norm (Bachlechner et al. 2021)."""

    def setup(self):
        self.a = self.param("a", nn.initializers.zeros, ())

    def before(self, x):
        return x

    def after(self, x, y, dropout):
        return x + self.a.astype(x.dtype) * dropout(y, self.path)


NEW = {"sandwich": Sandwich, "deep_norm": DeepNorm, "rezero": ReZero}


@pytest.fixture(scope="module", autouse=True)
def _new_entries():
    with pytest.MonkeyPatch.context() as patch:
        for name, connection in NEW.items():
            patch.setitem(RESIDUALS, name, connection)
        yield


@pytest.fixture(scope="module", params=NEW)
def variant(request, _new_entries):
    return Variant({"residual": request.param})


def leaf_names(params) -> set[str]:
    paths = (path for path, _ in jax.tree.leaves_with_path(params))
    return {jax.tree_util.keystr(path[-3:], simple=True, separator="/") for path in paths}


def test_new_connections_have_their_parameters_and_no_others():
    names = {
        name: leaf_names(parameter_shapes(build_model(tiny_config(residual=name), VOCAB))) for name in NEW
    }

    norm = "feed_forward_residual/norm/scale"
    assert norm in names["deep_norm"]
    assert {norm, "feed_forward_residual/inner_norm/scale", "encoder/norm/scale"} <= names["sandwich"]
    assert "feed_forward_residual/a" in {name.partition("/")[2] for name in names["rezero"]}
    assert not any("norm" in name for name in names["rezero"])
    assert "encoder/norm/scale" not in names["deep_norm"]


def test_the_initial_gain_scales_values_outputs_and_feed_forward_kernels():
    """The model has N = 1 encoder layer and M = 2 decoder layers."""
    sentence = token_batch([[4, 2]])
    plain, deep = (
        build_model(tiny_config(residual=name, encoder_layers=1), VOCAB).init(
            jax.random.key(0), sentence, sentence
        )["params"]
        for name in ("post_norm", "deep_norm")
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


@pytest.mark.parametrize(
    ("name", "equation"),
    [
        ("post_norm", lambda x, norm: norm(x + 3 * x)),
        ("pre_norm", lambda x, norm: x + 3 * norm(x)),
    ],
)
def test_registered_connections_equal_their_equations(name, equation):
    """The equations are LayerNorm(x + Sublayer(x)) and x + Sublayer(LayerNorm(x)), with Sublayer(x) = 3 x."""
    x = np.random.default_rng(4).normal(size=(5, 7))
    rng = np.random.default_rng(5)
    weights = {"scale": rng.normal(size=7), "bias": rng.normal(size=7)}

    def connect(residual, x):
        return residual.after(x, 3 * residual.before(x), NO_DROPOUT)

    module = RESIDUALS[name](ModelConfig(d_model=7, num_heads=1))
    params = {"norm": jax.tree.map(jnp.float32, weights)}
    output = module.apply({"params": params}, jnp.float32(x)[None], method=connect)[0]

    expected = equation(x, lambda x: oracle.layer_norm(x, weights))
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)
