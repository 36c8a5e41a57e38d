"""Position schemes, which tell a model the order of tokens (paper, section 3.5).

A scheme is a subclass of `PositionScheme` that overrides some of its hooks, and an entry in `POSITIONS`.
The encoder and the decoder each have an instance of the scheme; cross-attention sees no positions. On the
patches of an image, a scheme without a second dimension counts them in raster order.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array

from transformer.config import ModelConfig, UserError
from transformer.model.grid_positions import Rope2D, Sinusoidal2D
from transformer.model.position_scheme import PositionScheme, rotate
from transformer.model.position_tables import (
    alibi_slopes,
    sinusoid_concat_table,
    sinusoid_table,
    t5_range_starts,
)


class Sinusoidal(PositionScheme):
    """PE(pos, 2i) = sin(pos / 10000^(2i/d_model)), PE(pos, 2i+1) = cos(the same); no parameters."""

    inputs = ("sequence", "grid")
    overflow_policies = ("extrapolate", "error", "clamp", "zero")

    @classmethod
    def check(cls, config):
        super().check(config)
        if config.d_model % 2:
            raise UserError(f"model.d_model is {config.d_model}; it must be even: sinusoids come in pairs")

    def add(self, x, positions, length):
        return x + jnp.asarray(self.table(length), x.dtype)[positions]

    def table(self, length: int) -> np.ndarray:
        """Returns the vector that is added at each position: [length, m]."""
        return sinusoid_table(length, self.config.d_model)


class SinusoidalConcat(Sinusoidal):
    """The sinusoids of tensor2tensor: all sines, then all cosines.

    Differs from the paper: the layout and the wavelengths. Wavelength i is 2 pi 10000^(i/(d_model/2 - 1)), so
    the last wavelength is exactly 10000 times the first.
    """

    def table(self, length):
        return sinusoid_concat_table(length, self.config.d_model)


class Learned(PositionScheme):
    """A trained vector per position (Table 3, row E; Gehring et al. 2017), one table per stack.

    The paper does not give the initial values; here they are normal with standard deviation d_model^-0.5,
    like the embeddings. An image has a vector for each of its tokens, whatever `max_positions` is
    (Dosovitskiy et al. 2021, section 3.1).
    """

    inputs = ("sequence", "grid")
    overflow_policies = ("error", "clamp", "zero")

    def setup(self):
        num_positions = self.config.max_positions if self.grid is None else self.grid.num_tokens
        shape = (num_positions, self.config.d_model)
        self.table = self.param("table", nn.initializers.normal(self.config.d_model**-0.5), shape)

    def add(self, x, positions, length):
        return x + self.table[positions].astype(x.dtype)


class NoPositions(PositionScheme):
    """No positions. A decoder can infer the order from the causal mask; an encoder sees a bag of tokens.

    Differs from the paper: nothing is added (Haviv et al. 2022; Kazemnejad et al. 2023).
    """

    inputs = ("sequence", "grid")


class Relative(PositionScheme):
    """A trained key and a trained value per distance (Shaw et al. 2018, equations 3 and 4).

    e_ij = x_i W^Q (x_j W^K + a^K_ij)^T / sqrt(d_k) and z_i = sum_j alpha_ij (x_j W^V + a^V_ij), where a_ij
    depends on the layer, on the head and on j - i, clipped to `max_distance` (16, as in the base model of
    Shaw et al.). Each query is multiplied by all 2 * 16 + 1 vectors a^K; a product with one-hot vectors then
    selects the result for each key. So the largest tensor is [q, k, 2 * 16 + 1].

    Differs from the paper: relative positions in attention instead of sinusoids.
    """

    default_max_distance = 16
    reads_weights = True

    def setup(self):
        self.key_table = self._table("key_table", self.config.key_width)
        self.value_table = self._table("value_table", self.config.value_width)

    def bias(self, layer, query_heads, query_index, key_index):
        query = query_heads * query_heads.shape[-1] ** -0.5
        table = self.key_table[layer].astype(query.dtype)
        products = jnp.einsum("bqhd,hcd->bhqc", query, table, preferred_element_type=jnp.float32)
        return jnp.einsum("bhqc,qkc->bhqk", products, self._one_hot(query_index, key_index, jnp.float32))

    def value_bias(self, layer, weights, query_index, key_index):
        one_hot = self._one_hot(query_index, key_index, weights.dtype)
        by_distance = jnp.einsum("bhqk,qkc->bhqc", weights, one_hot)
        return jnp.einsum("bhqc,hce->bqhe", by_distance, self.value_table[layer].astype(weights.dtype))

    @nn.nowrap
    def _table(self, name: str, width: int) -> Array:
        init = nn.initializers.variance_scaling(1, "fan_avg", "uniform", batch_axis=(0, 1))
        return self.param(
            name, init, (self.num_layers, self.config.num_heads, 2 * self.max_distance + 1, width)
        )

    def _one_hot(self, query_index, key_index, dtype):
        """Returns one-hot indices [q, k, c] into the tables, which have c vectors per head."""
        last = self.max_distance
        distance = jnp.clip(key_index[None, :] - query_index[:, None], -last, last)
        return jax.nn.one_hot(distance + last, 2 * last + 1, dtype=dtype)


class T5Bias(PositionScheme):
    """A trained bias per head and range of distances (Raffel et al. 2020, section 2.1).

    An encoder has 16 ranges in each direction; a decoder has 32. Half of the ranges are single distances. The
    others grow logarithmically up to `max_distance` (128 by default); the last range also contains all larger
    distances. The layers of a stack share the biases.

    Differs from the paper: a bias of the logits instead of sinusoids. Differs from T5: logits stay scaled.
    """

    num_ranges: ClassVar[int] = 32
    default_max_distance = 128

    @classmethod
    def check(cls, config):
        super().check(config)
        if config.max_distance is not None and config.max_distance <= cls.num_ranges // 2:
            raise UserError(
                f"model.max_distance is {config.max_distance}; "
                f"it must be above {cls.num_ranges // 2} for model.positions='t5_bias'"
            )

    def setup(self):
        init = nn.initializers.normal(self.config.d_model**-0.5)
        self.table = self.param("table", init, (self.num_ranges, self.config.num_heads))

    def bias(self, layer, query_heads, query_index, key_index):
        distance = key_index[None, :] - query_index[:, None]
        ranges = self.num_ranges if self.causal else self.num_ranges // 2
        starts = t5_range_starts(ranges, self.max_distance)
        number = jnp.searchsorted(starts, jnp.abs(distance), side="right", method="compare_all")
        if not self.causal:
            number += jnp.where(distance > 0, ranges, 0)
        return jnp.moveaxis(self.table[number], -1, 0)[None]


class Alibi(PositionScheme):
    """Logits that fall linearly with the distance, with one slope per head (Press et al. 2022, section 3).

    Differs from the paper: no positions are added. Differs from ALiBi, which has only a decoder: in the
    encoder, both directions have the same slopes.
    """

    def bias(self, layer, query_heads, query_index, key_index):
        distance = jnp.abs(key_index[None, :] - query_index[:, None]).astype(jnp.float32)
        slopes = jnp.asarray(alibi_slopes(self.config.num_heads), jnp.float32)
        return (-slopes[:, None, None] * distance[None])[None]


class Rope(PositionScheme):
    """Queries and keys rotated by angles that grow with the position (Su et al. 2021, equations 14 and 34).

    Channels 2i and 2i + 1 are rotated by pos / rope_base^(2i/r), where r is the number of rotated channels:
    d_k, or the first d_k * rope_fraction channels (GPT-NeoX; Black et al. 2022, section 2.1.1). So positions
    affect a logit only through the distance between query and key. With the default base, the sines and
    cosines are those of the paper's table with width r.

    Differs from the paper: queries and keys are rotated; nothing is added to the embeddings.
    """

    inputs = ("sequence", "grid")

    @classmethod
    def check(cls, config):
        super().check(config)
        num_rotated = cls.num_rotated(config)
        if config.rope_fraction < 1 and (num_rotated % 2 or not num_rotated):
            raise UserError(
                f"model.rope_fraction is {config.rope_fraction}, which rotates {num_rotated} of the "
                f"{config.key_width} channels of a head; it must rotate an even number of channels, 2 or more"
            )
        if num_rotated % 2:
            raise UserError(
                f"model.d_k is {config.key_width}; it must be even, since 'rope' rotates pairs of channels"
            )

    @staticmethod
    def num_rotated(config: ModelConfig) -> int:
        """Returns the number of channels of a head that are rotated."""
        return round(config.key_width * config.rope_fraction)

    def transform(self, heads, positions, length):
        num_rotated = self.num_rotated(self.config)
        rotated = rotate(
            heads[..., :num_rotated],
            sinusoid_table(length, num_rotated, self.config.rope_base),
            positions,
        )
        if num_rotated == heads.shape[-1]:
            return rotated
        return jnp.concatenate([rotated, heads[..., num_rotated:]], axis=-1)


POSITIONS: dict[str, type[PositionScheme]] = {
    "sinusoidal": Sinusoidal,
    "sinusoidal_concat": SinusoidalConcat,
    "learned": Learned,
    "none": NoPositions,
    "relative": Relative,
    "t5_bias": T5Bias,
    "alibi": Alibi,
    "rope": Rope,
    "sinusoidal_2d": Sinusoidal2D,
    "rope_2d": Rope2D,
}


def check_positions(config: ModelConfig) -> None:
    """Checks that the position scheme of a config works with its model.

    Raises:
      UserError: the scheme is not defined for the kind of model, or does not accept the config.
    """
    needed = "grid" if config.kind == "image_classifier" else "sequence"
    if needed not in POSITIONS[config.positions].inputs:
        names = ", ".join(sorted(name for name, scheme in POSITIONS.items() if needed in scheme.inputs))
        raise UserError(
            f"model.positions is {config.positions!r}; with model.kind={config.kind}, it must be one of: "
            f"{names}"
        )
    POSITIONS[config.positions].check(config)
