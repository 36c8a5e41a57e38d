"""Residual connections around the sub-layers (paper, section 3.1).

A connection is a subclass of `Residual` and an entry in `RESIDUALS`. Around a sub-layer, a block computes

    y = sublayer(residual.before(x))
    x = residual.after(x, y, dropout)
"""

import abc
from typing import ClassVar

from flax import linen as nn
from jaxtyping import Array, Float

from transformer.config import ModelConfig
from transformer.model.dropout import BoundDropout
from transformer.model.layers import NORMS


class Residual(nn.Module, metaclass=abc.ABCMeta):
    """The connection around one sub-layer. Dropout acts on the output of every sub-layer (section 5.4).

    Attributes:
      has_cross_attention: whether the block has cross-attention, as in a decoder.
      final_norm: whether a stack needs one more norm at its end.
    """

    config: ModelConfig
    has_cross_attention: bool = False
    final_norm: ClassVar[bool] = False

    @classmethod
    def initial_gain(cls, config: ModelConfig, has_cross_attention: bool) -> float:
        """Returns a factor on the initial kernels of values, attention outputs and feed-forward networks."""
        return 1.0

    def setup(self):
        self.norm = NORMS[self.config.norm](self.config)

    @abc.abstractmethod
    def before(self, x: Float[Array, "b t m"]) -> Float[Array, "b t m"]:
        """Returns the input of the sub-layer."""

    @abc.abstractmethod
    def after(
        self, x: Float[Array, "b t m"], y: Float[Array, "b t m"], dropout: BoundDropout
    ) -> Float[Array, "b t m"]:
        """Returns the output of the connection, given the output y of the sub-layer."""


class PostNorm(Residual):
    """The paper's connection, LayerNorm(x + Sublayer(x))."""

    def before(self, x):
        return x

    def after(self, x, y, dropout):
        return self.norm(x + dropout(y, self.path))


class PreNorm(Residual):
    """x + Sublayer(LayerNorm(x)), and one more norm at the end of each stack (Wang et al. 2019).

    Differs from the paper: the residual path is never normalized. This became the default of tensor2tensor.
    """

    final_norm = True

    def before(self, x):
        return self.norm(x)

    def after(self, x, y, dropout):
        return x + dropout(y, self.path)


class Sandwich(Residual):
    """x + LayerNorm(Sublayer(LayerNorm(x))), and one more norm at the end of each stack (Ding et al. 2021).

    Differs from the paper: the residual path is never normalized, and the output of a sub-layer is normalized
    before it is added.
    """

    final_norm = True

    def setup(self):
        super().setup()
        self.output_norm = NORMS[self.config.norm](self.config)

    def before(self, x):
        return self.norm(x)

    def after(self, x, y, dropout):
        return x + self.output_norm(dropout(y, self.path))


class DeepNorm(Residual):
    """LayerNorm(alpha x + Sublayer(x)), with initial kernels scaled by beta (Wang et al. 2022, figure 2).

    For N encoder layers and M decoder layers, the encoder has alpha = 0.81 (N^4 M)^(1/16) and beta = 0.87
    (N^4 M)^(-1/16); the decoder has alpha = (3 M)^(1/4) and beta = (12 M)^(-1/4). A decoder-only model has
    alpha = (2 M)^(1/4) and beta = (8 M)^(-1/4), and an image classifier has the same with N.

    Differs from the paper, where alpha and beta are 1. Differs from Wang et al.: kernels are Xavier-uniform,
    not Xavier-normal, with the same variance.
    """

    @classmethod
    def initial_gain(cls, config, has_cross_attention):
        return _deepnorm_constants(config, has_cross_attention)[1]

    def before(self, x):
        return x

    def after(self, x, y, dropout):
        alpha = _deepnorm_constants(self.config, self.has_cross_attention)[0]
        return self.norm(alpha * x + dropout(y, self.path))


def _deepnorm_constants(config: ModelConfig, has_cross_attention: bool) -> tuple[float, float]:
    """Returns alpha and beta of `DeepNorm`."""
    n, m = config.encoder_depth, config.decoder_depth
    if (depth := {"decoder_only": m, "image_classifier": n}.get(config.kind)) is not None:
        return (2 * depth) ** 0.25, (8 * depth) ** -0.25
    if has_cross_attention:
        return (3 * m) ** 0.25, (12 * m) ** -0.25
    return 0.81 * (n**4 * m) ** (1 / 16), 0.87 * (n**4 * m) ** (-1 / 16)


class ReZero(Residual):
    """x + alpha Sublayer(x), where alpha is trained and starts at 0 (Bachlechner et al. 2021, equation 1).

    At first, a stack returns its input.

    Differs from the paper: there are no norms. Differs from Bachlechner et al.: each sub-layer has its own
    alpha; in their Transformer, the sub-layers of a layer share one.
    """

    def setup(self):
        self.alpha = self.param("alpha", nn.initializers.zeros, ())

    def before(self, x):
        return x

    def after(self, x, y, dropout):
        return x + self.alpha.astype(x.dtype) * dropout(y, self.path)


RESIDUALS: dict[str, type[Residual]] = {
    "post_norm": PostNorm,
    "pre_norm": PreNorm,
    "sandwich": Sandwich,
    "deepnorm": DeepNorm,
    "rezero": ReZero,
}
