"""Embeddings and the pre-softmax linear transformation (paper, section 3.4)."""

from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int


class LogitFactors(NamedTuple):
    """The two factors whose product is the logits.

    A loss can compute the product in chunks, so that the logits are never all in memory.

    Attributes:
      vectors: the decoder's output for each token, in the compute dtype.
      table: the pre-softmax linear transformation, one row per class, float32.
    """

    vectors: Float[Array, "... m"]
    table: Float[Array, "v m"]

    def logits(self) -> Float[Array, "... v"]:
        """Returns vectors table^T, in float32."""
        table = self.table.astype(self.vectors.dtype)
        return jnp.einsum("...m,vm->...v", self.vectors, table, preferred_element_type=jnp.float32)


class Tables(NamedTuple):
    """Names of the matrices for source tokens, target tokens and output. Equal names share one matrix."""

    source: str
    target: str
    output: str


EMBEDDINGS: dict[str, Tables] = {
    "three_way": Tables("table", "table", "table"),  # the paper's
    "two_way": Tables("source_table", "table", "table"),  # Press and Wolf 2017
    "untied": Tables("source_table", "table", "output_table"),
}


class Embedding(nn.Module):
    """The matrices for source tokens, target tokens and output.

    The initial weights are normal with standard deviation d_model^-0.5.

    Attributes:
      names: an entry of `EMBEDDINGS`.
    """

    vocab_size: int
    d_model: int
    names: Tables
    dtype: str = "float32"

    def setup(self):
        init, shape = nn.initializers.normal(self.d_model**-0.5), (self.vocab_size, self.d_model)
        self.tables = {name: self.param(name, init, shape) for name in dict.fromkeys(self.names)}

    def source(self, tokens: Int[Array, "b s"]) -> Float[Array, "b s m"]:
        """Embeds source tokens, multiplied by sqrt(d_model)."""
        return self._embed(self.names.source, tokens)

    def target(self, tokens: Int[Array, "b t"]) -> Float[Array, "b t m"]:
        """Embeds target tokens, multiplied by sqrt(d_model)."""
        return self._embed(self.names.target, tokens)

    def logit_factors(self, x: Float[Array, "b t m"]) -> LogitFactors:
        """Returns the decoder's output together with the matrix of the pre-softmax linear transformation."""
        return LogitFactors(x, self.tables[self.names.output])

    def _embed(self, name, tokens):
        return self.tables[name][tokens].astype(self.dtype) * self.d_model**0.5
