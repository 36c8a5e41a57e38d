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
    """x + Sublayer(LayerNorm(x)), and one more norm at the end of each stack.

    Differs from the paper: the residual path is never normalized (tensor2tensor's later default).
    """

    final_norm = True

    def before(self, x):
        return self.norm(x)

    def after(self, x, y, dropout):
        return x + dropout(y, self.path)


RESIDUALS: dict[str, type[Residual]] = {"post_norm": PostNorm, "pre_norm": PreNorm}
