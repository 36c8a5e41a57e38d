"""Pieces to vectors and back: the embeddings and the pre-softmax transformation (paper, section 3.4)."""

from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int


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


class Shared(NamedTuple):
    """Which matrix each of the three uses serves; equal names are one matrix."""

    source: str
    target: str
    output: str


EMBEDDINGS: dict[str, Shared] = {
    "three_way": Shared("table", "table", "table"),  # the paper's
    "two_way": Shared("source_table", "table", "table"),  # Press and Wolf 2017
    "untied": Shared("source_table", "table", "output_table"),
}


class Embedding(nn.Module):
    """The matrices for source, target and output, each initialised N(0, d_model^-0.5)."""

    vocab_size: int
    d_model: int
    shared: Shared
    dtype: str = "float32"

    def setup(self):
        init, shape = nn.initializers.normal(self.d_model**-0.5), (self.vocab_size, self.d_model)
        self.tables = {name: self.param(name, init, shape) for name in dict.fromkeys(self.shared)}

    def source(self, tokens: Int[Array, "b s"]) -> Float[Array, "b s m"]:
        """Embeds source pieces, multiplied by sqrt(d_model)."""
        return self._embed(self.shared.source, tokens)

    def target(self, tokens: Int[Array, "b t"]) -> Float[Array, "b t m"]:
        """Embeds target pieces, multiplied by sqrt(d_model)."""
        return self._embed(self.shared.target, tokens)

    def factors(self, x: Float[Array, "b t m"]) -> Factors:
        """The pre-softmax linear transformation."""
        return Factors(x, self.tables[self.shared.output])

    def _embed(self, name, tokens):
        return self.tables[name][tokens].astype(self.dtype) * self.d_model**0.5
