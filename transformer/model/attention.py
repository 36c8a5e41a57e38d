"""Scaled dot-product and multi-head attention (paper, sections 3.2.1 and 3.2.2)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from transformer.config import ModelConfig
from transformer.model.dropout import NO_DROPOUT, BoundDropout
from transformer.model.layers import rms_norm, xavier_uniform
from transformer.model.masks import NEG_INF
from transformer.model.positions import PositionScheme


class RowIndices(NamedTuple):
    """Positions and indices of the queries and keys of self-attention.

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
    """Projected keys and values, split into heads. Query heads may share them; see `group_queries`."""

    key: Float[Array, "b k g d"]
    value: Float[Array, "b k g e"]


def scaled_dot_product_attention(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k g d"],
    value: Float[Array, "b k g e"],
    mask: Bool[Array, "#b #q k"],
    bias: Float[Array, "#b h q k"] | None = None,
    dropout_mask: Float[Array, "b h q k"] | None = None,
    logit_cap: float | None = None,
) -> tuple[Float[Array, "b q h e"], Float[Array, "b h q k"]]:
    """softmax(Q K^T / sqrt(d_k) + bias) V, equation 1, with the logits and the softmax in float32.

    Args:
      query, key, value: Q, K and V after their projections. If h > g, h / g adjacent query heads share a key
        and value head.
      mask: True where a query may see a key.
      bias: added to the scaled logits; the paper has no bias.
      dropout_mask: factors on the weights, 0 where a weight is dropped; the paper drops no weights.
      logit_cap: bound c of the logits z, which become c tanh(z / c) (Gemma 2, Gemma Team 2024, section 2); if
        None, the logits have no bound, as in the paper.

    Returns:
      The attended values and the weights. If a query may see no key, its weights are uniform, not NaN.
    """
    (num_queries, num_heads, width), num_groups = query.shape[1:], key.shape[2]
    query = group_queries(query * width**-0.5, num_groups)
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    logits = logits.reshape(len(query), num_heads, num_queries, -1)
    if bias is not None:
        logits = logits + bias
    if logit_cap is not None:
        logits = logit_cap * jnp.tanh(logits / logit_cap)
    weights = jax.nn.softmax(jnp.where(mask[:, None], logits, NEG_INF), axis=-1)
    if dropout_mask is not None:
        weights = weights * dropout_mask
    shared = weights.astype(value.dtype).reshape(len(query), num_groups, -1, key.shape[1])
    heads = jnp.einsum("bhqk,bkhe->bqhe", shared, value)
    return ungroup_queries(heads, num_heads), weights


def group_queries(query: Float[Array, "b q h d"], num_groups: int) -> Float[Array, "b _ g d"]:
    """Makes the heads that share a key head further queries of one head (Ainslie et al. 2023, section 2.2).

    Head i belongs to group i // (h / g). The q h / g queries of a group are in the order of its heads. So the
    logits [b, g, q h / g, k] of the result are the logits [b, h, q, k] in another shape.
    """
    rows, num_queries, num_heads, width = query.shape
    if num_heads == num_groups:
        return query
    query = query.reshape(rows, num_queries, num_groups, -1, width)
    return jnp.moveaxis(query, 3, 1).reshape(rows, -1, num_groups, width)


def ungroup_queries(heads: Float[Array, "b _ g e"], num_heads: int) -> Float[Array, "b q h e"]:
    """Returns the heads of the queries that `group_queries` made queries of one head."""
    rows, _, num_groups, width = heads.shape
    if num_heads == num_groups:
        return heads
    heads = heads.reshape(rows, num_heads // num_groups, -1, num_groups, width)
    return jnp.moveaxis(heads, 1, 3).reshape(rows, -1, num_heads, width)


def fused_attention(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k g d"],
    value: Float[Array, "b k g d"],
    mask: Bool[Array, "#b #q k"],
    bias: Float[Array, "#b h q k"] | None = None,
) -> Float[Array, "b q h d"]:
    """Computes `scaled_dot_product_attention` without its weights, by `jax.nn.dot_product_attention`.

    On a GPU, in half precision and for shapes that it supports, cuDNN does so without storing the logits.
    """
    (num_queries, width), num_keys = (query.shape[1], query.shape[3]), key.shape[1]
    is_half, is_even = query.dtype in (jnp.bfloat16, jnp.float16), num_queries % 2 == num_keys % 2 == 0
    by_cudnn = jax.default_backend() == "gpu" and is_half and is_even and width <= 128 and width % 8 == 0
    # cuDNN does not broadcast a mask over the queries, such as that of cross-attention in a decoding step.
    mask = jnp.broadcast_to(mask[:, None], (len(mask), 1, num_queries, num_keys))
    return jax.nn.dot_product_attention(
        query, key, value, bias, mask, implementation="cudnn" if by_cudnn else "xla"
    )


class MultiHeadAttention(nn.Module):
    """MultiHead(Q, K, V) = Concat(head_1 ... head_h) W^O.

    The projections have no bias; the initial weights are Xavier-uniform. Keys and values come from the input
    in self-attention, from the encoder's output in cross-attention, and from a cache in a decoding step. The
    attention weights are sown in Flax's collection `intermediates`.

    Differs from the paper:
      with `num_kv_heads`, query heads share keys and values (Shazeer 2019; Ainslie et al. 2023);
      with `qk_norm`, RMSNorm is applied to the queries and keys of each head, before positions; the heads
      share its trained scale (Dehghani et al. 2023, section 2: LayerNorm without centering and bias);
      with `attention_gate`, the heads are multiplied by sigmoid(x W_g) (Qiu et al. 2025, section 2.2);
      with `logit_cap`, the logits are bounded; see `scaled_dot_product_attention`.

    Attributes:
      gain: factor on the initial kernels of the value and output projections.
    """

    config: ModelConfig
    gain: float = 1.0

    def setup(self):
        config = self.config
        self.query = self._dense(config.num_heads * config.key_width)
        self.key = self._dense(config.key_value_heads * config.key_width)
        self.value = self._dense(config.key_value_heads * config.value_width, self.gain)
        self.output = self._dense(config.d_model, self.gain)
        if config.qk_norm:
            self.query_norm, self.key_norm = rms_norm(config), rms_norm(config)
        if config.attention_gate:
            self.gate = self._dense(config.num_heads * config.value_width)

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
        config = self.config
        query = self._split(self.query(x), config.num_heads)
        query = self.query_norm(query) if config.qk_norm else query
        key, value = keys_values
        bias = None
        if positions is not None:
            query = positions.transform(query)
            bias = positions.bias(query)
        dropout_mask = dropout.weights_mask(self.path, config.num_heads, key_positions)
        if self._is_fused(positions, dropout_mask):
            return self._join(x, fused_attention(query, key, value, mask, bias))
        heads, weights = scaled_dot_product_attention(
            query, key, value, mask, bias, dropout_mask, config.logit_cap
        )
        if positions is not None:
            value_bias = positions.value_bias(weights.astype(value.dtype))
            heads = heads if value_bias is None else heads + value_bias
        self.sow("intermediates", "weights", weights)
        return self._join(x, heads)

    def _is_fused(self, positions: LayerPositions | None, dropout_mask: Array | None) -> bool:
        """Returns whether to compute no weights: it was asked for, it is possible, and nothing reads them."""
        config = self.config
        weights_are_read = (
            dropout_mask is not None
            or (positions is not None and positions.scheme.reads_weights)
            or self.is_mutable_collection("intermediates")
        )
        is_possible = config.key_width == config.value_width and config.logit_cap is None
        return config.fused_attention and is_possible and not weights_are_read

    def keys_values(self, x: Float[Array, "b k m"], positions: LayerPositions | None = None) -> KeysValues:
        """Projects tokens to keys and values (K W^K and V W^V), split into heads."""
        key, value = (self._split(dense(x), self.config.key_value_heads) for dense in (self.key, self.value))
        key = self.key_norm(key) if self.config.qk_norm else key
        return KeysValues(key if positions is None else positions.transform(key), value)

    def _join(self, x, heads):
        """Concatenates the heads [b, q, h, e]; multiplies them by the gate, if there is one, and by W^O."""
        joined = heads.reshape(*heads.shape[:2], -1)
        return self.output(joined * jax.nn.sigmoid(self.gate(x)) if self.config.attention_gate else joined)

    @nn.nowrap
    def _dense(self, features: int, gain: float = 1.0) -> nn.Dense:
        return nn.Dense(features, use_bias=False, dtype=self.config.dtype, kernel_init=xavier_uniform(gain))

    def _split(self, x, num_heads):
        return x.reshape(*x.shape[:2], num_heads, -1)
