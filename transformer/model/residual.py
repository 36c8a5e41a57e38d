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
    """The connection around one sub-layer; the output of every sub-layer is dropped (section 5.4).

    Attributes:
      has_cross_attention: whether its block has cross-attention, as the decoder's blocks do.
      final_norm: whether a stack needs one more norm at its end.
    """

    config: ModelConfig
    has_cross_attention: bool = False
    final_norm: ClassVar[bool] = False

    @classmethod
    def initial_gain(cls, config: ModelConfig, has_cross_attention: bool) -> float:
        """Factor on the initial kernels of a block's values, attention outputs and feed-forward networks."""
        return 1.0

    def setup(self):
        self.norm = NORMS[self.config.norm](self.config)

    @abc.abstractmethod
    def before(self, x: Float[Array, "b t m"]) -> Float[Array, "b t m"]:
        """The sub-layer's input."""

    @abc.abstractmethod
    def after(
        self, x: Float[Array, "b t m"], y: Float[Array, "b t m"], dropout: BoundDropout
    ) -> Float[Array, "b t m"]:
        """The connection's output, from the sub-layer's output y."""


class PostNorm(Residual):
    """LayerNorm(x + Sublayer(x)), the paper's."""

    def before(self, x):
        return x

    def after(self, x, y, dropout):
        return self.norm(x + dropout(y, self.path))


class PreNorm(Residual):
    """x + Sublayer(LayerNorm(x)), and one more norm at the end of each stack.

    Differs from the paper: the residual path is never normalised (tensor2tensor's later default).
    """

    final_norm = True

    def before(self, x):
        return self.norm(x)

    def after(self, x, y, dropout):
        return x + dropout(y, self.path)


RESIDUALS: dict[str, type[Residual]] = {"post_norm": PostNorm, "pre_norm": PreNorm}
