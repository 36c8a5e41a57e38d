"""Base class of the position schemes; see `positions`."""

from typing import ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from transformer.config import ModelConfig, UserError


class Grid(NamedTuple):
    """The places of the tokens of an image: class tokens, then patches in raster order, row by row."""

    rows: int
    columns: int
    num_class_tokens: int = 0

    @property
    def num_tokens(self) -> int:
        """Number of tokens."""
        return self.rows * self.columns + self.num_class_tokens


class PositionScheme(nn.Module):
    """Base class: `add`, `transform`, `bias` and `value_bias` are hooks, which do nothing by default.

    Attributes:
      num_layers: number of blocks in the stack.
      causal: whether no query sees a later key, as in a decoder.
      trained_length: longest sequence, in tokens, that the stack was trained on; None during training.
      grid: the places of the tokens of an image; None for a sequence.
      inputs: what the scheme is defined for: "sequence", "grid" or both.
      overflow_policies: allowed values of `overflow`, the default first. The value decides what happens at
        positions from `limit` on: `error` (longer sequences are refused; the model itself returns NaN),
        `clamp` (use the last position), `zero` (add nothing), `extrapolate` (continue the definition of the
        scheme).
      default_max_distance: value of `max_distance` if the config has none; None if the scheme has no
        maximum distance.
      reads_weights: whether the scheme has a `value_bias`.
    """

    config: ModelConfig
    num_layers: int = 0
    causal: bool = False
    trained_length: int | None = None
    grid: Grid | None = None
    inputs: ClassVar[tuple[str, ...]] = ("sequence",)
    overflow_policies: ClassVar[tuple[str, ...]] = ("extrapolate", "error")
    default_max_distance: ClassVar[int | None] = None
    reads_weights: ClassVar[bool] = False

    @classmethod
    def check(cls, config: ModelConfig) -> None:
        """Raises a `UserError` if the scheme does not work with a config."""
        if config.overflow not in (None, *cls.overflow_policies):
            raise UserError(
                f"model.overflow is {config.overflow!r}; for model.positions={config.positions!r} "
                f"it must be one of: {', '.join(cls.overflow_policies)}"
            )
        if config.max_distance is not None and cls.default_max_distance is None:
            raise UserError(
                f"model.max_distance is {config.max_distance}; "
                f"it must be None for model.positions={config.positions!r}, which has no maximum distance"
            )

    @property
    def overflow(self) -> str:
        """Policy for positions beyond the last trained one; the first of `overflow_policies` by default."""
        return self.config.overflow or self.overflow_policies[0]

    @property
    def limit(self) -> int:
        """The first position that does not exist or was not reached in training."""
        if self.grid is not None:
            return self.grid.num_tokens
        return min(self.config.max_positions, self.trained_length or self.config.max_positions)

    @property
    def max_length(self) -> int | None:
        """Maximum sequence length in tokens, including EOS; None if longer sequences are also accepted."""
        return self.limit if self.overflow == "error" else None

    @property
    def max_distance(self) -> int | None:
        """Largest distance that the scheme distinguishes; None if the scheme has no maximum distance."""
        return self.config.max_distance or self.default_max_distance

    def __call__(
        self, x: Float[Array, "b t m"], positions: Int[Array, "b t"], length: int
    ) -> Float[Array, "b t m"]:
        """Calls `add` and applies the overflow policy at positions from `limit` on."""
        if self.overflow == "extrapolate":
            return self.add(x, positions, length)
        limit = self.limit
        added = self.add(x, jnp.minimum(positions, limit - 1), min(length, limit))
        if self.overflow == "clamp":
            return added
        beyond = x if self.overflow == "zero" else jnp.nan
        return jnp.where((positions < limit)[..., None], added, beyond)

    def add(
        self, x: Float[Array, "b t m"], positions: Int[Array, "b t"], length: int
    ) -> Float[Array, "b t m"]:
        """Adds positions to the scaled embeddings. Every position is below the static bound `length`."""
        return x

    def transform(
        self, heads: Float[Array, "b t h d"], positions: Int[Array, "b t"], length: int
    ) -> Float[Array, "b t h d"]:
        """Transforms the queries and the keys of self-attention; see `add` for `length`."""
        return heads

    def bias(
        self,
        layer: int | Int[Array, ""],
        query_heads: Float[Array, "b q h d"],
        query_index: Int[Array, "q"],
        key_index: Int[Array, "k"],
    ) -> Float[Array, "#b h q k"] | None:
        """Returns the bias that is added to the scaled logits of self-attention, or None.

        Indices count tokens from the start of a row, which may contain several examples. So only differences
        between indices are meaningful.
        """

    def value_bias(
        self,
        layer: int | Int[Array, ""],
        weights: Float[Array, "b h q k"],
        query_index: Int[Array, "q"],
        key_index: Int[Array, "k"],
    ) -> Float[Array, "b q h e"] | None:
        """Returns the bias that is added to the attended values, or None; see `bias` for the indices."""


def rotate(
    heads: Float[Array, "b t h d"], table: Float[np.ndarray, "_ d"], positions: Int[Array, "b t"]
) -> Float[Array, "b t h d"]:
    """Rotates channels 2i and 2i + 1 by the angle whose sine and cosine `table` has in these channels."""
    rows = jnp.asarray(table, jnp.float32)[positions][:, :, None]
    sin, cos = rows[..., 0::2], rows[..., 1::2]
    even, odd = heads[..., 0::2], heads[..., 1::2]
    rotated = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return rotated.reshape(heads.shape).astype(heads.dtype)
