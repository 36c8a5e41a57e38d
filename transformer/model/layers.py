"""Feed-forward networks (paper, section 3.3) and norms."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from transformer.config import ModelConfig
from transformer.model.dropout import BoundDropout


class Activation(NamedTuple):
    """The activation between the linear maps of a feed-forward network.

    Attributes:
      function: applied to the first linear map of the input.
      gated: whether the result is multiplied by a second linear map of the input.
    """

    function: Callable[[Float[Array, "b t f"]], Float[Array, "b t f"]]
    gated: bool


def gelu(x: Float[Array, "b t f"]) -> Float[Array, "b t f"]:
    """Returns x Phi(x), with the exact normal distribution function (Hendrycks and Gimpel 2016)."""
    return jax.nn.gelu(x, approximate=False)


FEED_FORWARDS: dict[str, Activation] = {
    "relu": Activation(jax.nn.relu, gated=False),  # the paper's
    "gelu": Activation(gelu, gated=False),
    "glu": Activation(jax.nn.sigmoid, gated=True),
    "bilinear": Activation(jax.nn.identity, gated=True),
    "reglu": Activation(jax.nn.relu, gated=True),
    "geglu": Activation(gelu, gated=True),
    "swiglu": Activation(jax.nn.silu, gated=True),
}


def xavier_uniform(gain: float = 1.0) -> nn.initializers.Initializer:
    """Draws uniform weights with variance gain^2 * 2 / (inputs + outputs) (Glorot and Bengio 2010)."""
    return nn.initializers.variance_scaling(gain**2, "fan_avg", "uniform")


class FeedForward(nn.Module):
    """FFN(x) = max(0, x W_1 + b_1) W_2 + b_2 (equation 2), or a gated network (f(x W) * (x V)) W_2.

    Differs from the paper if `feed_forward` is not relu. The gated networks are those of Shazeer (2020,
    equations 5 and 6) and have no biases. With `equal_parameters`, the width of a gated network is two thirds
    of d_ff, rounded, as in Shazeer's experiments.

    Attributes:
      gain: factor on the initial kernels.
    """

    config: ModelConfig
    gain: float = 1.0

    @nn.compact
    def __call__(self, x: Float[Array, "b t m"], dropout: BoundDropout) -> Float[Array, "b t m"]:
        """Applies the network to each token separately."""
        config, (function, gated) = self.config, FEED_FORWARDS[self.config.feed_forward]
        width = round(config.d_ff * 2 / 3) if gated and config.equal_parameters else config.d_ff

        def dense(features, name):
            init = xavier_uniform(self.gain)
            return nn.Dense(features, not gated, dtype=config.dtype, kernel_init=init, name=name)

        hidden = dense(width, "inner")(x)
        hidden = function(dense(width, "gate")(x)) * hidden if gated else function(hidden)
        return dense(config.d_model, "outer")(dropout.hidden(hidden, self.path))


def layer_norm(config: ModelConfig) -> nn.LayerNorm:
    """LayerNorm (Ba et al. 2016), eps 1e-6. Statistics are computed in float32, in two passes."""
    return nn.LayerNorm(epsilon=1e-6, dtype=config.dtype, use_fast_variance=False)


def rms_norm(config: ModelConfig) -> nn.RMSNorm:
    """RMSNorm (Zhang and Sennrich 2019), eps 1e-6. It subtracts no mean and has no bias.

    Differs from the paper: LayerNorm is replaced.
    """
    return nn.RMSNorm(epsilon=1e-6, dtype=config.dtype)


class DynamicTanh(nn.Module):
    """DyT(x) = scale * tanh(alpha x) + bias (Zhu et al. 2025, section 4); alpha starts at 0.5.

    Each activation is transformed alone, in float32; there are no statistics.

    Differs from the paper: LayerNorm is replaced.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b t m"]) -> Float[Array, "b t m"]:
        """Transforms the activations of each token."""
        alpha = self.param("alpha", nn.initializers.constant(0.5), ())
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        y = scale[None, None] * jnp.tanh(alpha * x) + bias[None, None]
        return y.astype(self.config.dtype)


NORMS: dict[str, Callable[[ModelConfig], nn.Module]] = {
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "dynamic_tanh": DynamicTanh,
}
