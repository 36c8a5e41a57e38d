"""Where order can enter a model: the interface of the position schemes (paper, section 3.5)."""

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from transformer.config import TransformerConfig, UserError


class Order(NamedTuple):
    """A scheme as one attention layer sees it, the places of its queries and keys filled in.

    Attributes:
      transform: of queries, and of keys.
      bias: of the logits, given the queries.
      values: of the attended values, given the weights.
    """

    transform: Callable[[Float[Array, "b t h d"]], Float[Array, "b t h d"]]
    bias: Callable[[Float[Array, "b q h d"]], Float[Array, "#b h q k"] | None]
    values: Callable[[Float[Array, "b h q k"]], Float[Array, "b q h e"] | None]


UNORDERED = Order(lambda heads: heads, lambda query: None, lambda weights: None)


class Positions(nn.Module):
    """The places where order can enter a model. Each hook does nothing by default.

    Attributes:
      causal: whether this is a decoder's, where no query sees a later key.
      trained_length: pieces up to which the stack was trained; None while it is trained.
      overflows: what the scheme may do at positions from `limit` on, its default first: `error` (refused
        where data is read, NaN in the model), `clamp` (to the last position), `zero` (nothing is added),
        `extrapolate` (the scheme goes on by its own definition).
      farthest: `max_distance` where a config gives none; None: the scheme has no use for one.
    """

    config: TransformerConfig
    causal: bool = False
    trained_length: int | None = None
    overflows: ClassVar[tuple[str, ...]] = ("extrapolate", "error")
    farthest: ClassVar[int | None] = None

    @classmethod
    def check(cls, config: TransformerConfig) -> None:
        """Raises a `UserError` where the scheme cannot work with a config."""
        if config.overflow not in (None, *cls.overflows):
            raise UserError(
                f"model.overflow is {config.overflow!r}; for model.positions={config.positions!r} "
                f"it must be one of: {', '.join(cls.overflows)}"
            )
        if config.max_distance is not None and cls.farthest is None:
            raise UserError(
                f"model.max_distance is {config.max_distance}; model.positions={config.positions!r} has none"
            )

    @property
    def overflow(self) -> str:
        """The policy, resolved."""
        return self.config.overflow or self.overflows[0]

    @property
    def limit(self) -> int:
        """Where `overflow` begins: what lies past it was never trained, or is not there."""
        return min(self.config.max_positions, self.trained_length or self.config.max_positions)

    @property
    def longest(self) -> int | None:
        """Pieces of the longest sequence that is not refused, EOS included; None: any."""
        return self.limit if self.overflow == "error" else None

    @property
    def distance(self) -> int | None:
        """`max_distance`, resolved."""
        return self.config.max_distance or self.farthest

    def __call__(
        self, x: Float[Array, "b t m"], positions: Int[Array, "b t"], length: int
    ) -> Float[Array, "b t m"]:
        """The stack's input from the scaled embeddings: `add`, within what `overflow` allows."""
        if self.overflow == "extrapolate":
            return self.add(x, positions, length)
        limit = self.limit
        added = self.add(x, jnp.minimum(positions, limit - 1), min(length, limit))
        if self.overflow == "clamp":
            return added
        beyond = x if self.overflow == "zero" else jnp.nan
        return jnp.where((positions < limit)[..., None], added, beyond)

    def order(
        self,
        layer: int,
        positions: Int[Array, "b t"],
        query: Int[Array, "q"],
        key: Int[Array, "k"],
        length: int,
    ) -> Order:
        """The hooks of one layer's self-attention, for queries and keys at these indices of a row."""
        return Order(
            lambda heads: self.transform(heads, positions, length),
            lambda heads: self.bias(layer, heads, query, key),
            lambda weights: self.values(layer, weights, query, key),
        )

    def add(
        self, x: Float[Array, "b t m"], positions: Int[Array, "b t"], length: int
    ) -> Float[Array, "b t m"]:
        """Adds to the scaled embeddings. `length` is a static bound: every position is below it."""
        del positions, length
        return x

    def transform(
        self, heads: Float[Array, "b t h d"], positions: Int[Array, "b t"], length: int
    ) -> Float[Array, "b t h d"]:
        """Transforms the queries and the keys of self-attention; `length` as for `add`."""
        del positions, length
        return heads

    def bias(
        self, layer: int, heads: Float[Array, "b q h d"], query: Int[Array, "q"], key: Int[Array, "k"]
    ) -> Float[Array, "#b h q k"] | None:
        """Adds to the logits of self-attention, which are scaled already; `heads` are the queries.

        Of the indices in a row only the difference counts, since a row may hold several examples.
        """
        del layer, heads, query, key
        return None

    def values(
        self, layer: int, weights: Float[Array, "b h q k"], query: Int[Array, "q"], key: Int[Array, "k"]
    ) -> Float[Array, "b q h e"] | None:
        """Adds to the attended values of self-attention; indices as for `bias`."""
        del layer, weights, query, key
        return None
