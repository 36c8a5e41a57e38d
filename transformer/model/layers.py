"""The position-wise feed-forward network and the residual connection (paper, sections 3.1 and 3.3)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
from flax import linen as nn
from jaxtyping import Array, Float

from transformer.config import TransformerConfig
from transformer.model.dropout import Drop

Map = Callable[[Float[Array, "b t m"]], Float[Array, "b t m"]]


class Activation(NamedTuple):
    """What stands between the matrices of a feed-forward network.

    Attributes:
      function: of one product with the input.
      gated: whether a second product is multiplied by the function's value.
    """

    function: Callable[[Float[Array, "b t f"]], Float[Array, "b t f"]]
    gated: bool


FEED_FORWARDS: dict[str, Activation] = {
    "relu": Activation(jax.nn.relu, gated=False),
    "gelu": Activation(lambda x: jax.nn.gelu(x, approximate=False), gated=False),
    "glu": Activation(jax.nn.sigmoid, gated=True),
    "bilinear": Activation(lambda x: x, gated=True),
    "reglu": Activation(jax.nn.relu, gated=True),
    "geglu": Activation(lambda x: jax.nn.gelu(x, approximate=False), gated=True),
    "swiglu": Activation(jax.nn.silu, gated=True),
}


class FeedForward(nn.Module):
    """FFN(x) = max(0, x W_1 + b_1) W_2 + b_2, equation 2; or gated, (f(x W) * x V) W_2.

    Differs from the paper where `feed_forward` is not relu. The gated family is Shazeer's (2020, equations 5
    and 6), without biases; with `equal_parameters` its f is two thirds of d_ff, rounded, as there.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b t m"], drop: Drop) -> Float[Array, "b t m"]:
        config, activation = self.config, FEED_FORWARDS[self.config.feed_forward]
        gated = activation.gated
        width = round(config.d_ff * 2 / 3) if gated and config.equal_parameters else config.d_ff

        def dense(features, name):
            init = nn.initializers.xavier_uniform()
            return nn.Dense(features, not gated, dtype=config.dtype, kernel_init=init, name=name)

        hidden = dense(width, "inner")(x)
        hidden = (
            activation.function(dense(width, "gate")(x)) * hidden if gated else activation.function(hidden)
        )
        return dense(config.d_model, "outer")(drop.feed_forward(hidden, self.path))


def layer_norm(config: TransformerConfig, name: str | None = None) -> nn.LayerNorm:
    """LayerNorm (Ba et al. 2016) with statistics in float32, in two passes, eps 1e-6."""
    return nn.LayerNorm(epsilon=1e-6, dtype=config.dtype, use_fast_variance=False, name=name)


def rms_norm(config: TransformerConfig, name: str | None = None) -> nn.RMSNorm:
    """RMSNorm (Zhang and Sennrich 2019): neither mean nor bias; eps 1e-6.

    Differs from the paper: LayerNorm.
    """
    return nn.RMSNorm(epsilon=1e-6, dtype=config.dtype, name=name)


NORMS: dict[str, Callable[..., nn.Module]] = {"layer_norm": layer_norm, "rms_norm": rms_norm}


def post_norm(norm: Map, x: Float[Array, "b t m"], sublayer: Map) -> Float[Array, "b t m"]:
    """LayerNorm(x + Sublayer(x)): the paper's."""
    return norm(x + sublayer(x))


def pre_norm(norm: Map, x: Float[Array, "b t m"], sublayer: Map) -> Float[Array, "b t m"]:
    """x + Sublayer(LayerNorm(x)), and one more norm at the end of each stack.

    Differs from the paper: the residual path is never normalised (tensor2tensor's later default).
    """
    return x + sublayer(norm(x))


class NormPlacement(NamedTuple):
    """Where a norm stands.

    Attributes:
      connect: (norm, x, sublayer) -> the residual connection's output.
      final_norm: whether a stack needs one more norm at its end.
    """

    connect: Callable[[Map, Float[Array, "b t m"], Map], Float[Array, "b t m"]]
    final_norm: bool


NORM_PLACEMENTS: dict[str, NormPlacement] = {
    "post": NormPlacement(post_norm, final_norm=False),
    "pre": NormPlacement(pre_norm, final_norm=True),
}


class Residual(nn.Module):
    """The connection around each sub-layer, whose output is dropped before it is added (section 5.4)."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b t m"], sublayer: Map, drop: Drop) -> Float[Array, "b t m"]:
        norm = NORMS[self.config.norm](self.config, "norm")
        connect = NORM_PLACEMENTS[self.config.norm_placement].connect
        return connect(norm, x, lambda y: drop(sublayer(y), self.path))
