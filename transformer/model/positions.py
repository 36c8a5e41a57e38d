"""How a model knows the order of its pieces (paper, section 3.5).

A scheme is a subclass of `Positions` that overrides some of its hooks, and an entry in `POSITIONS`. Encoder
and decoder hold one each; cross-attention has no order of its own and sees none.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array

from transformer.config import UserError
from transformer.model.order import Positions


class Sinusoidal(Positions):
    """PE(pos, 2i) = sin(pos / 10000^(2i/d_model)), PE(pos, 2i+1) = cos(the same). No end, no parameters."""

    overflows = ("extrapolate", "error", "clamp", "zero")

    @classmethod
    def check(cls, config):
        super().check(config)
        if config.d_model % 2:
            raise UserError(f"model.d_model is {config.d_model}; sinusoids come in pairs, so it must be even")

    def add(self, x, positions, length):
        return x + jnp.asarray(self.table(length), x.dtype)[positions]

    def table(self, length: int) -> np.ndarray:
        """What is added at each position: [length, m]."""
        return sinusoid_table(length, self.config.d_model)


class SinusoidalConcat(Sinusoidal):
    """The sinusoids of tensor2tensor: all sines, then all cosines.

    Differs from the paper: the layout, and the wavelengths, whose i-th is 2 pi 10000^(i/(d_model/2 - 1)), so
    that the last one is exactly 10000 times the first.
    """

    def table(self, length):
        pairs = self.config.d_model // 2
        exponent = np.arange(pairs) / max(pairs - 1, 1)
        angle = np.arange(length)[:, None] / 10_000**exponent
        return np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)


class Learned(Positions):
    """A trained vector for each position (Table 3, row E; Gehring et al. 2017), one table a stack.

    The paper does not say how it starts; here as the embeddings do, N(0, d_model^-0.5).
    """

    overflows = ("error", "clamp", "zero")

    def setup(self):
        shape = (self.config.max_positions, self.config.d_model)
        self.table = self.param("table", nn.initializers.normal(self.config.d_model**-0.5), shape)

    def add(self, x, positions, length):
        del length
        return x + self.table[positions].astype(x.dtype)


class Absent(Positions):
    """No positions: a decoder still tells order by what its mask hides, an encoder sees a bag of pieces.

    Differs from the paper: nothing is added (Haviv et al. 2022; Kazemnejad et al. 2023).
    """


class Relative(Positions):
    """A trained key and a trained value for each distance (Shaw et al. 2018, equations 3 and 4).

    e_ij = x_i W^Q (x_j W^K + a^K_ij)^T / sqrt(d_k) and z_i = sum_j alpha_ij (x_j W^V + a^V_ij), where a_ij
    depends on j - i, clipped to `max_distance` (16, as theirs for base). Each layer and head has its own.
    A query's products with the 2 * 16 + 1 keys are spread over the distances, and its weights gathered from
    them, by a one-hot product: the largest tensor is [q, k, 2 * 16 + 1].

    Differs from the paper: relative positions, in attention, in the place of sinusoids.
    """

    farthest = 16

    @nn.nowrap
    def _table(self, name: str, depth: int, width: int) -> Array:
        init = nn.initializers.variance_scaling(1, "fan_avg", "uniform", batch_axis=(0, 1))
        return self.param(name, init, (depth, self.config.num_heads, 2 * self.distance + 1, width))

    def setup(self):
        depth = self.config.decoder_depth if self.causal else self.config.encoder_depth
        self.key_table = self._table("key_table", depth, self.config.key_width)
        self.value_table = self._table("value_table", depth, self.config.value_width)

    def _one_hot(self, query, key, dtype):
        """Which row of the tables a query and a key use: [q, k, c]."""
        distance = jnp.clip(key[None, :] - query[:, None], -self.distance, self.distance)
        return jax.nn.one_hot(distance + self.distance, 2 * self.distance + 1, dtype=dtype)

    def bias(self, layer, heads, query, key):
        table = self.key_table[layer].astype(heads.dtype)
        products = jnp.einsum(
            "bqhd,hcd->bhqc", heads * heads.shape[-1] ** -0.5, table, preferred_element_type=jnp.float32
        )
        return jnp.einsum("bhqc,qkc->bhqk", products, self._one_hot(query, key, jnp.float32))

    def values(self, layer, weights, query, key):
        by_distance = jnp.einsum("bhqk,qkc->bhqc", weights, self._one_hot(query, key, weights.dtype))
        return jnp.einsum("bhqc,hce->bqhe", by_distance, self.value_table[layer].astype(weights.dtype))


class T5Bias(Positions):
    """A trained number for each head and range of distances (Raffel et al. 2020, section 2.1).

    Of 32 ranges, half in each direction in the encoder, one half are single distances and the others grow
    with the logarithm up to `max_distance` (128), beyond which all is one. The layers of a stack share them.

    Differs from the paper: a bias of the logits in the place of sinusoids; from T5: logits stay scaled.
    """

    ranges: ClassVar[int] = 32
    farthest = 128

    @classmethod
    def check(cls, config):
        super().check(config)
        if config.max_distance is not None and config.max_distance <= cls.ranges // 2:
            raise UserError(
                f"model.max_distance is {config.max_distance}; "
                f"for model.positions='t5_bias' it must be above {cls.ranges // 2}"
            )

    def setup(self):
        init = nn.initializers.normal(self.config.d_model**-0.5)
        self.table = self.param("table", init, (self.ranges, self.config.num_heads))

    def bias(self, layer, heads, query, key):
        del layer, heads
        distance = key[None, :] - query[:, None]
        ranges = self.ranges if self.causal else self.ranges // 2
        begins = t5_ranges(ranges, self.distance)
        number = jnp.searchsorted(begins, jnp.abs(distance), side="right", method="compare_all")
        if not self.causal:
            number += jnp.where(distance > 0, ranges, 0)
        return jnp.moveaxis(self.table[number], -1, 0)[None]


class Alibi(Positions):
    """Logits fall with the distance, each head at a slope of its own (Press et al. 2022, section 3).

    Differs from the paper: no positions are added; from ALiBi, which has a decoder only: in the encoder the
    distance counts in both directions alike.
    """

    def bias(self, layer, heads, query, key):
        del layer, heads
        distance = jnp.abs(key[None, :] - query[:, None]).astype(jnp.float32)
        slopes = jnp.asarray(alibi_slopes(self.config.num_heads), jnp.float32)
        return (-slopes[:, None, None] * distance)[None]


class Rope(Positions):
    """Rotates queries and keys by angles that grow with the position (Su et al. 2021, equations 14 and 34).

    Channels 2i and 2i + 1 turn by pos / 10000^(2i/d_k), so that a logit depends on the distance alone. Sines
    and cosines are those of the paper's table, at a width of d_k.

    Differs from the paper: queries and keys are rotated; nothing is added to the embeddings.
    """

    @classmethod
    def check(cls, config):
        super().check(config)
        if config.key_width % 2:
            raise UserError(
                f"model.d_k is {config.key_width}; model.positions='rope' turns pairs, so it must be even"
            )

    def transform(self, heads, positions, length):
        table = jnp.asarray(sinusoid_table(length, heads.shape[-1]), jnp.float32)[positions][:, :, None]
        sin, cos = table[..., 0::2], table[..., 1::2]
        even, odd = heads[..., 0::2], heads[..., 1::2]
        turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
        return turned.reshape(heads.shape).astype(heads.dtype)


def sinusoid_table(length: int, d_model: int) -> np.ndarray:
    """The paper's table [length, d_model], computed in float64: sine in even, cosine in odd channels."""
    exponent = np.arange(0, d_model, 2) / d_model
    angle = np.arange(length)[:, None] / 10_000**exponent
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(length, d_model)


def t5_ranges(ranges: int, last: int) -> np.ndarray:
    """The distance at which each range but the first begins, in one direction."""
    exact = ranges // 2
    growth = (last / exact) ** (np.arange(ranges - exact) / (ranges - exact))
    return np.concatenate([np.arange(1, exact), np.ceil(exact * growth - 1e-9)]).astype(np.int32)


def alibi_slopes(heads: int) -> np.ndarray:
    """2^(-8/h), 2^(-16/h), ...; where h is no power of two, those of the one below it, then every second one
    of twice as many."""
    power = 1 << (heads.bit_length() - 1)
    slopes = 2.0 ** (-8 * np.arange(1, power + 1) / power)
    between = 2.0 ** (-8 * np.arange(1, 2 * power + 1, 2) / (2 * power))
    return np.concatenate([slopes, between])[:heads]


POSITIONS: dict[str, type[Positions]] = {
    "sinusoidal": Sinusoidal,
    "sinusoidal_concat": SinusoidalConcat,
    "learned": Learned,
    "none": Absent,
    "relative": Relative,
    "t5_bias": T5Bias,
    "alibi": Alibi,
    "rope": Rope,
}
