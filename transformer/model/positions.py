"""How a model knows the order of its pieces (paper, section 3.5).

A scheme is a subclass of `Positions` that overrides one of three hooks, and an entry in `POSITIONS`.
Encoder and decoder hold one each; cross-attention has no order of its own and sees none.
"""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from transformer.config import TransformerConfig, UserError


class Positions(nn.Module):
    """The three places where order can enter a model. Each hook does nothing by default.

    Attributes:
      longest: sequence length (pieces) beyond which the scheme has no answer; None: no limit.
    """

    config: TransformerConfig

    @classmethod
    def check(cls, config: TransformerConfig) -> None:
        """Raises a `UserError` where the scheme cannot work with a config."""

    @property
    def longest(self) -> int | None:
        return None

    def add(
        self, x: Float[Array, "b t m"], positions: Int[Array, "b t"], length: int
    ) -> Float[Array, "b t m"]:
        """Adds to the scaled embeddings. `length` is a static bound: every position is below it."""
        del positions, length
        return x

    def transform(
        self, heads: Float[Array, "b t h d"], positions: Int[Array, "b t"]
    ) -> Float[Array, "b t h d"]:
        """Transforms the queries and the keys of self-attention."""
        del positions
        return heads

    def bias(self, query: Int[Array, "q"], key: Int[Array, "k"]) -> Float[Array, "h q k"] | None:
        """Adds to the logits of self-attention; of the indices in a row only the difference counts."""
        del query, key
        return None


class Sinusoidal(Positions):
    """PE(pos, 2i) = sin(pos / 10000^(2i/d_model)), PE(pos, 2i+1) = cos(the same). No end, no parameters."""

    @classmethod
    def check(cls, config):
        if config.d_model % 2:
            raise UserError(f"model.d_model is {config.d_model}; sinusoids come in pairs, so it must be even")

    def add(self, x, positions, length):
        table = jnp.asarray(sinusoid_table(length, self.config.d_model), x.dtype)
        return x + table[positions]


class Learned(Positions):
    """A trained vector for each position (Table 3, row E; Gehring et al. 2017), one table a stack.

    The paper does not say how it starts; here as the embeddings do, N(0, d_model^-0.5).
    """

    @property
    def longest(self) -> int | None:
        return self.config.max_positions

    def setup(self):
        shape = (self.config.max_positions, self.config.d_model)
        self.table = self.param("table", nn.initializers.normal(self.config.d_model**-0.5), shape)

    def add(self, x, positions, length):
        del length
        # A position past the table becomes NaN, never another position's vector.
        return x + jnp.take(self.table, positions, axis=0, mode="fill").astype(x.dtype)


def sinusoid_table(length: int, d_model: int) -> np.ndarray:
    """The paper's table [length, d_model], computed in float64: sine in even, cosine in odd channels."""
    exponent = np.arange(0, d_model, 2) / d_model
    angle = np.arange(length)[:, None] / 10_000**exponent
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(length, d_model)


POSITIONS: dict[str, type[Positions]] = {
    "sinusoidal": Sinusoidal,
    "learned": Learned,
}
