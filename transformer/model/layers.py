"""Embeddings, the position-wise feed-forward network and the residual connection (paper, 3.1, 3.3, 3.4)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from transformer.config import TransformerConfig, choose
from transformer.model.dropout import Drop

Map = Callable[[Float[Array, "b t m"]], Float[Array, "b t m"]]


class Factors(NamedTuple):
    """The two factors of the logits, kept apart for a loss that never holds all of their product.

    Attributes:
      x: the decoder's output for each piece, in the compute dtype.
      table: the pre-softmax linear transformation, a row a class, float32.
    """

    x: Float[Array, "... m"]
    table: Float[Array, "v m"]

    def logits(self) -> Float[Array, "... v"]:
        """x table^T, in float32."""
        table = self.table.astype(self.x.dtype)
        return jnp.einsum("...m,vm->...v", self.x, table, preferred_element_type=jnp.float32)


class Embedding(nn.Module):
    """One matrix for source, target and output (section 3.4), initialised N(0, d_model^-0.5)."""

    vocab_size: int
    d_model: int
    dtype: str = "float32"

    def setup(self):
        init = nn.initializers.normal(self.d_model**-0.5)
        self.table = self.param("table", init, (self.vocab_size, self.d_model))

    def __call__(self, tokens: Int[Array, "b t"]) -> Float[Array, "b t m"]:
        """Embeds, multiplied by sqrt(d_model)."""
        return self.table[tokens].astype(self.dtype) * self.d_model**0.5

    def factors(self, x: Float[Array, "b t m"]) -> Factors:
        """The pre-softmax linear transformation, with the same weights."""
        return Factors(x, self.table)


class FeedForward(nn.Module):
    """FFN(x) = max(0, x W_1 + b_1) W_2 + b_2, equation 2."""

    d_ff: int
    d_model: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "b t m"]) -> Float[Array, "b t m"]:
        init = nn.initializers.xavier_uniform()
        hidden = nn.Dense(self.d_ff, dtype=self.dtype, kernel_init=init, name="inner")(x)
        return nn.Dense(self.d_model, dtype=self.dtype, kernel_init=init, name="outer")(jax.nn.relu(hidden))


def layer_norm(config: TransformerConfig, name: str | None = None) -> nn.LayerNorm:
    """LayerNorm (Ba et al. 2016) with statistics in float32, in two passes, eps 1e-6."""
    return nn.LayerNorm(epsilon=1e-6, dtype=config.dtype, use_fast_variance=False, name=name)


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


NORM_PLACEMENTS = {
    "post": NormPlacement(post_norm, final_norm=False),
    "pre": NormPlacement(pre_norm, final_norm=True),
}


class Residual(nn.Module):
    """The connection around each sub-layer, whose output is dropped before it is added (section 5.4)."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b t m"], sublayer: Map, drop: Drop) -> Float[Array, "b t m"]:
        placement = choose(NORM_PLACEMENTS, self.config.norm_placement, "model.norm_placement")
        return placement.connect(layer_norm(self.config, "norm"), x, lambda y: drop(sublayer(y), self.path))
