"""Positions as a trained model sees them, for any position scheme.

Only the hooks of `PositionScheme` are called, so a new scheme needs no code here.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, PyTree

from transformer.model.attention import RowIndices
from transformer.model.block import Stack


class PositionEffects(NamedTuple):
    """The hooks of a position scheme, applied to inputs that show their effect. None if a hook does nothing.

    Attributes:
      table: the vector that is added to the embedding at each position.
      similarity: products of positions with each other. With a table, the dot products of its vectors. If
        queries and keys are rotated, the mean cosine between a vector at one position and the same vector at
        the other position.
      bias: bias of the logits for each difference of positions, key minus query, from -(t - 1) to t - 1. If
        the bias depends on the query, the root mean square over queries of unit length in all directions.
    """

    table: Float[np.ndarray, "t m"] | None
    similarity: Float[np.ndarray, "t t"] | None
    bias: Float[np.ndarray, "layers h _"] | None

    @property
    def similarity_name(self) -> str:
        """Name of the products in `similarity`."""
        return "mean cosine after rotation" if self.table is None else "dot product"

    @property
    def bias_by_layer(self) -> dict[str, Float[np.ndarray, "h _"]]:
        """The bias of "layer 1", "layer 2" and so on, or of "all layers" if it is the same in all."""
        if self.bias is None:
            return {}
        if np.all(self.bias == self.bias[0]):
            return {"all layers": self.bias[0]}
        return {f"layer {number}": bias for number, bias in enumerate(self.bias, start=1)}


def position_effects(model: nn.Module, params: PyTree, length: int) -> dict[str, PositionEffects]:
    """Returns the effects of positions by stack, "encoder" or "decoder".

    Args:
      model: a model of text; a recurrent model has no stack with positions.
      params: the parameters of the model.
      length: number of positions. If the model has fewer, all of them.
    """
    stacks = {name: getattr(model.bind({"params": params}), name, None) for name in ("encoder", "decoder")}
    return {name: _effects(stack, length) for name, stack in stacks.items() if isinstance(stack, Stack)}


def _effects(stack: Stack, length: int) -> PositionEffects:
    scheme, config = stack.positions, stack.config
    length = min(length, scheme.max_length or length)
    indices = RowIndices.whole_rows(jnp.arange(length)[None])
    table = np.asarray(scheme(jnp.zeros((1, length, config.d_model)), indices.positions, length)[0])
    basis = jnp.eye(config.key_width)
    repeated = jnp.broadcast_to(basis, (1, length, *basis.shape))
    rotated = np.asarray(scheme.transform(repeated, indices.positions, length)[0])
    bias = _bias(stack, indices)
    if table.any():
        return PositionEffects(table, table @ table.T, bias)
    if not np.allclose(rotated, repeated[0]):
        return PositionEffects(None, np.einsum("pid,qid->pq", rotated, rotated) / config.key_width, bias)
    return PositionEffects(None, None, bias)


def _bias(stack: Stack, indices: RowIndices) -> Float[np.ndarray, "layers h _"] | None:
    """Returns the bias by the distance from the middle of a row that is twice as long."""
    config, length = stack.config, indices.length
    distances = jnp.arange(-(length - 1), length)

    def bias(layer: int, query: Float[Array, "d"]) -> Float[Array, "h k"] | None:
        heads = jnp.broadcast_to(query, (1, 1, config.num_heads, config.key_width))
        row = stack.positions.bias(layer, heads, jnp.zeros(1, jnp.int32), distances)
        return None if row is None else row[0, :, 0]

    zero = jnp.zeros(config.key_width)
    if bias(0, zero) is None:
        return None
    constant = np.stack([bias(layer, zero) for layer in range(stack.num_layers)])
    if constant.any():
        return constant
    # A unit query is scaled by d_k^-0.5, as all queries are.
    basis = jnp.eye(config.key_width)
    layers = [jax.vmap(functools.partial(bias, layer))(basis) for layer in range(stack.num_layers)]
    return np.stack([np.sqrt(np.mean(np.square(biases), axis=0)) for biases in layers])
