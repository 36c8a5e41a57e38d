"""Scaled dot-product and multi-head attention (paper, sections 3.2.1 and 3.2.2)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from transformer.model.order import UNORDERED, Order

# Drops attention weights; the paper drops none.
DropWeights = Callable[[Float[Array, "b h q k"]], Float[Array, "b h q k"]]


def keep(weights: Float[Array, "b h q k"]) -> Float[Array, "b h q k"]:
    """Drops no attention weight."""
    return weights


def scaled_dot_product_attention(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k h d"],
    value: Float[Array, "b k h e"],
    mask: Bool[Array, "#b #q k"],
    bias: Float[Array, "#b h q k"] | None = None,
    drop: DropWeights = keep,
) -> tuple[Float[Array, "b q h e"], Float[Array, "b h q k"]]:
    """softmax(Q K^T / sqrt(d_k) + bias) V, equation 1, with the logits and the softmax in float32.

    Returns:
      The attended values and the weights. A query that may see nothing gets uniform weights, not NaN.
    """
    scale = query.shape[-1] ** -0.5
    logits = jnp.einsum("bqhd,bkhd->bhqk", query * scale, key, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + bias
    logits = jnp.where(mask[:, None], logits, -1e9)
    weights = drop(jax.nn.softmax(logits, axis=-1))
    return jnp.einsum("bhqk,bkhe->bqhe", weights.astype(value.dtype), value), weights


class MultiHeadAttention(nn.Module):
    """MultiHead(Q, K, V) = Concat(head_1 ... head_h) W^O; projections without bias, Xavier-uniform.

    Serves self-attention (`memory` is `x`), causal self-attention (by the mask) and cross-attention
    (`memory` is the encoder's output). A cached decoder calls `keys_values` and `attend` by themselves.
    """

    num_heads: int
    d_k: int
    d_v: int
    d_model: int
    dtype: str = "float32"

    def setup(self):
        def dense(features):
            init = nn.initializers.xavier_uniform()
            return nn.Dense(features, use_bias=False, dtype=self.dtype, kernel_init=init)

        self.query = dense(self.num_heads * self.d_k)
        self.key = dense(self.num_heads * self.d_k)
        self.value = dense(self.num_heads * self.d_v)
        self.output = dense(self.d_model)

    def __call__(
        self,
        x: Float[Array, "b q m"],
        memory: Float[Array, "b k m"],
        mask: Bool[Array, "#b #q k"],
        order: Order = UNORDERED,
        drop: DropWeights = keep,
    ) -> Float[Array, "b q m"]:
        """Attends from `x` to `memory`."""
        return self.attend(x, *self.keys_values(memory, order), mask, order, drop)

    def keys_values(
        self, memory: Float[Array, "b k m"], order: Order = UNORDERED
    ) -> tuple[Float[Array, "b k h d"], Float[Array, "b k h e"]]:
        """K W^K and V W^V, split into heads."""
        return order.transform(self._split(self.key(memory))), self._split(self.value(memory))

    def attend(
        self,
        x: Float[Array, "b q m"],
        key: Float[Array, "b k h d"],
        value: Float[Array, "b k h e"],
        mask: Bool[Array, "#b #q k"],
        order: Order = UNORDERED,
        drop: DropWeights = keep,
    ) -> Float[Array, "b q m"]:
        """Attends from `x` to keys and values that are already projected; sows the weights."""
        query = order.transform(self._split(self.query(x)))
        heads, weights = scaled_dot_product_attention(query, key, value, mask, order.bias(query), drop)
        if (more := order.values(weights.astype(value.dtype))) is not None:
            heads = heads + more
        self.sow("intermediates", "weights", weights)
        return self.output(heads.reshape(*heads.shape[:2], -1))

    def _split(self, x):
        return x.reshape(*x.shape[:2], self.num_heads, -1)
