"""Scaled dot-product and multi-head attention (paper, sections 3.2.1 and 3.2.2)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from transformer.config import ModelConfig
from transformer.model.dropout import NO_DROPOUT, BoundDropout
from transformer.model.layers import xavier_uniform
from transformer.model.masks import NEG_INF
from transformer.model.positions import PositionScheme


class RowIndices(NamedTuple):
    """Places of the queries and keys of self-attention.

    A row may contain several examples (see `TokenBatch`), so a token has a position in its example and an
    index in its row.

    Attributes:
      positions: position of each query in its example.
      query_index: index of each query in its row.
      key_index: index of each key in its row.
      length: static number above every position.
    """

    positions: Int[Array, "b q"]
    query_index: Int[Array, "q"]
    key_index: Int[Array, "k"]
    length: int

    @classmethod
    def whole_rows(cls, positions: Int[Array, "b t"]) -> "RowIndices":
        """Makes the indices for self-attention over whole rows, where every token is a query and a key."""
        length = positions.shape[1]
        index = jnp.arange(length)
        return cls(positions, index, index, length)


class LayerPositions(NamedTuple):
    """The position scheme for one layer of self-attention. Each method calls a hook of `PositionScheme`."""

    scheme: PositionScheme
    layer: int | Int[Array, ""]
    indices: RowIndices

    def transform(self, heads: Float[Array, "b t h d"]) -> Float[Array, "b t h d"]:
        """Transforms queries or keys."""
        return self.scheme.transform(heads, self.indices.positions, self.indices.length)

    def bias(self, query_heads: Float[Array, "b q h d"]) -> Float[Array, "#b h q k"] | None:
        """Returns the bias that is added to the logits, or None."""
        return self.scheme.bias(self.layer, query_heads, self.indices.query_index, self.indices.key_index)

    def value_bias(self, weights: Float[Array, "b h q k"]) -> Float[Array, "b q h e"] | None:
        """Returns the bias that is added to the weighted sum of the values, or None."""
        return self.scheme.value_bias(self.layer, weights, self.indices.query_index, self.indices.key_index)


class KeysValues(NamedTuple):
    """Projected keys and values, split into heads."""

    key: Float[Array, "b k h d"]
    value: Float[Array, "b k h e"]


def scaled_dot_product_attention(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k h d"],
    value: Float[Array, "b k h e"],
    mask: Bool[Array, "#b #q k"],
    bias: Float[Array, "#b h q k"] | None = None,
    dropout_mask: Float[Array, "b h q k"] | None = None,
) -> tuple[Float[Array, "b q h e"], Float[Array, "b h q k"]]:
    """softmax(Q K^T / sqrt(d_k) + bias) V, equation 1, with the logits and the softmax in float32.

    Args:
      query, key, value: Q, K and V after their projections.
      mask: True where a query may see a key.
      bias: added to the scaled logits; the paper has no bias.
      dropout_mask: factors on the weights, 0 where a weight is dropped; the paper drops no weights.

    Returns:
      The attended values and the weights. If a query may see no key, its weights are uniform, not NaN.
    """
    scale = query.shape[-1] ** -0.5
    logits = jnp.einsum("bqhd,bkhd->bhqk", query * scale, key, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + bias
    weights = jax.nn.softmax(jnp.where(mask[:, None], logits, NEG_INF), axis=-1)
    if dropout_mask is not None:
        weights = weights * dropout_mask
    return jnp.einsum("bhqk,bkhe->bqhe", weights.astype(value.dtype), value), weights


def fused_attention(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k h d"],
    value: Float[Array, "b k h d"],
    mask: Bool[Array, "#b #q k"],
    bias: Float[Array, "#b h q k"] | None = None,
) -> Float[Array, "b q h d"]:
    """Computes `scaled_dot_product_attention` without its weights, by `jax.nn.dot_product_attention`.

    On a GPU, in half precision and for shapes that it supports, cuDNN does so without storing the logits.
    """
    (num_queries, width), num_keys = (query.shape[1], query.shape[3]), key.shape[1]
    is_half, is_even = query.dtype in (jnp.bfloat16, jnp.float16), num_queries % 2 == num_keys % 2 == 0
    by_cudnn = jax.default_backend() == "gpu" and is_half and is_even and width <= 128 and width % 8 == 0
    return jax.nn.dot_product_attention(
        query, key, value, bias, mask[:, None], implementation="cudnn" if by_cudnn else "xla"
    )


class MultiHeadAttention(nn.Module):
    """MultiHead(Q, K, V) = Concat(head_1 ... head_h) W^O.

    The projections have no bias; the initial weights are Xavier-uniform. Keys and values come from the input
    in self-attention, from the encoder's output in cross-attention, and from a cache in a decoding step. The
    attention weights are sown in Flax's collection `intermediates`.

    Attributes:
      gain: factor on the initial kernels of the value and output projections.
    """

    config: ModelConfig
    gain: float = 1.0

    def setup(self):
        config = self.config
        self.query = self._dense(config.num_heads * config.key_width)
        self.key = self._dense(config.num_heads * config.key_width)
        self.value = self._dense(config.num_heads * config.value_width, self.gain)
        self.output = self._dense(config.d_model, self.gain)

    def __call__(
        self,
        x: Float[Array, "b q m"],
        keys_values: KeysValues,
        mask: Bool[Array, "#b #q k"],
        positions: LayerPositions | None = None,
        dropout: BoundDropout = NO_DROPOUT,
        key_positions: Int[Array, "b k"] | None = None,
    ) -> Float[Array, "b q m"]:
        """Attends from `x` to keys and values.

        Args:
          x: the tokens to project to queries.
          keys_values: keys and values from the method `keys_values`.
          mask: True where a query may see a key.
          positions: the hooks of the position scheme; None in cross-attention.
          dropout: dropout for the queries' batch.
          key_positions: see `BoundDropout.weights_mask`.
        """
        query = self._split(self.query(x))
        key, value = keys_values
        bias = None
        if positions is not None:
            query = positions.transform(query)
            bias = positions.bias(query)
        dropout_mask = dropout.weights_mask(self.path, self.config.num_heads, key_positions)
        if self._is_fused(positions, dropout_mask):
            heads = fused_attention(query, key, value, mask, bias)
            return self.output(heads.reshape(*heads.shape[:2], -1))
        heads, weights = scaled_dot_product_attention(query, key, value, mask, bias, dropout_mask)
        if positions is not None:
            value_bias = positions.value_bias(weights.astype(value.dtype))
            heads = heads if value_bias is None else heads + value_bias
        self.sow("intermediates", "weights", weights)
        return self.output(heads.reshape(*heads.shape[:2], -1))

    def _is_fused(self, positions: LayerPositions | None, dropout_mask: Array | None) -> bool:
        """Returns whether to compute no weights: it was asked for, and nothing reads the weights."""
        config = self.config
        weights_are_read = (
            dropout_mask is not None
            or (positions is not None and positions.scheme.reads_weights)
            or self.is_mutable_collection("intermediates")
        )
        return config.fused_attention and config.key_width == config.value_width and not weights_are_read

    def keys_values(self, x: Float[Array, "b k m"], positions: LayerPositions | None = None) -> KeysValues:
        """Projects tokens to keys and values (K W^K and V W^V), split into heads."""
        key, value = self._split(self.key(x)), self._split(self.value(x))
        return KeysValues(key if positions is None else positions.transform(key), value)

    @nn.nowrap
    def _dense(self, features: int, gain: float = 1.0) -> nn.Dense:
        return nn.Dense(features, use_bias=False, dtype=self.config.dtype, kernel_init=xavier_uniform(gain))

    def _split(self, x):
        return x.reshape(*x.shape[:2], self.config.num_heads, -1)
