"""The blocks of the Transformer, and stacks of blocks (paper, section 3.1 and figure 1)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from transformer.config import ModelConfig
from transformer.model.attention import KeysValues, LayerPositions, MultiHeadAttention, RowIndices
from transformer.model.cache import KVCache
from transformer.model.dropout import NO_DROPOUT, BoundDropout
from transformer.model.layers import NORMS, FeedForward
from transformer.model.masks import window_mask
from transformer.model.position_scheme import Grid
from transformer.model.positions import POSITIONS
from transformer.model.residual import RESIDUALS

# What the forward pass of a block keeps for the backward pass, which computes the rest again. None keeps all.
REMAT: dict[str, Callable[..., bool] | None] = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # the results of the projections
    "block": jax.checkpoint_policies.nothing_saveable,  # only the input of the block
}


class CrossInputs(NamedTuple):
    """Inputs from the source for the cross-attention of one layer.

    Attributes:
      keys_values: the keys and values of the encoder's output.
      mask: the source tokens that each target token may see.
      positions: positions of the source tokens; only dropout reads them.
    """

    keys_values: KeysValues
    mask: Bool[Array, "b #q s"]
    positions: Int[Array, "b s"] | None = None


class Block(nn.Module):
    """Self-attention, cross-attention (in a decoder) and a feed-forward network, with residual connections.

    The encoder and the decoder use this class, in training and in a search.
    """

    config: ModelConfig
    has_cross_attention: bool

    def setup(self):
        config, residual = self.config, RESIDUALS[self.config.residual]
        gain = residual.initial_gain(config, self.has_cross_attention)
        self.self_attention = MultiHeadAttention(config, gain)
        self.self_attention_residual = residual(config, self.has_cross_attention)
        if self.has_cross_attention:
            self.cross_attention = MultiHeadAttention(config, gain)
            self.cross_attention_residual = residual(config, self.has_cross_attention)
        self.feed_forward = FeedForward(config, gain)
        self.feed_forward_residual = residual(config, self.has_cross_attention)

    def __call__(
        self,
        x: Float[Array, "b q m"],
        mask: Bool[Array, "b q k"],
        positions: LayerPositions | None,
        dropout: BoundDropout = NO_DROPOUT,
        cross: CrossInputs | None = None,
        cache: KVCache | None = None,
        first_entry: Int[Array, ""] | int | None = None,
    ) -> tuple[Float[Array, "b q m"], KVCache | None]:
        """Applies the block.

        Args:
          x: the tokens of whole rows or, in a search, one token of each hypothesis.
          mask: True where a query of self-attention may see a key.
          positions: the hooks of the position scheme; if None, self-attention sees no positions.
          dropout: dropout for the batch of `x`.
          cross: inputs of cross-attention.
          cache: keys and values of the previous steps; if None, only those of `x` are attended to.
          first_entry: the first entry of the cache to which the keys and values of `x` are written.

        Returns:
          The output, and the cache with the keys and values of `x` added; None without a cache.
        """
        y = self.self_attention_residual.before(x)
        keys_values = self.self_attention.keys_values(y, positions)
        if cache is not None:
            cache = cache.write(keys_values, first_entry)
            keys_values = cache.load()
        y = self.self_attention(y, keys_values, mask, positions, dropout)
        x = self.self_attention_residual.after(x, y, dropout)

        if self.has_cross_attention:
            y = self.cross_attention_residual.before(x)
            y = self.cross_attention(
                y, cross.keys_values, cross.mask, dropout=dropout, key_positions=cross.positions
            )
            x = self.cross_attention_residual.after(x, y, dropout)

        y = self.feed_forward_residual.before(x)
        y = self.feed_forward(y, dropout)
        x = self.feed_forward_residual.after(x, y, dropout)
        return x, cache


class Stack(nn.Module):
    """N identical blocks above the sum of embeddings and positions: the encoder or the decoder.

    Attributes:
      num_layers: number of blocks.
      causal: whether no token sees a later one.
      has_cross_attention: whether the blocks have cross-attention.
      trained_length: see `PositionScheme`.
      grid: see `PositionScheme`.
    """

    config: ModelConfig
    num_layers: int
    causal: bool
    has_cross_attention: bool
    trained_length: int | None = None
    grid: Grid | None = None

    def setup(self):
        config = self.config
        scheme = POSITIONS[config.positions]
        self.positions = scheme(config, self.num_layers, self.causal, self.trained_length, self.grid)
        self.layers = [Block(config, self.has_cross_attention) for _ in range(self.num_layers)]
        self.norm = NORMS[config.norm](config) if RESIDUALS[config.residual].final_norm else None

    def __call__(
        self,
        x: Float[Array, "b q m"],
        mask: Bool[Array, "b q k"],
        indices: RowIndices,
        dropout: BoundDropout = NO_DROPOUT,
        cross: Sequence[CrossInputs] | None = None,
        caches: Sequence[KVCache] | None = None,
        first_entry: Int[Array, ""] | int | None = None,
    ) -> tuple[Float[Array, "b q m"], tuple[KVCache | None, ...]]:
        """Applies the blocks to embedded tokens; see `Block`. `cross` and `caches` have one entry per layer.

        Returns:
          The output of the last block, and the cache of each layer.
        """
        absent = [None] * len(self.layers)
        written = []
        if (window := self.config.attention_window) is not None:
            mask = mask & window_mask(indices.query_index, indices.key_index, window)
        x = dropout(self.positions(x, indices.positions, indices.length), self.path)
        if self._is_scanned(caches):
            x = self._scan(x, mask, indices, dropout, cross)
            return x if self.norm is None else self.norm(x), (None,) * len(self.layers)
        for number, inputs in enumerate(zip(cross or absent, caches or absent, strict=True)):
            x, cache = self._apply(number, x, mask, indices, dropout, *inputs, first_entry)
            written.append(cache)
        return x if self.norm is None else self.norm(x), tuple(written)

    def _apply(self, number, x, mask, indices, dropout, cross, cache, first_entry):
        """Applies one block; in a backward pass, computes again what `config.remat` does not keep."""

        def apply(stack, x):
            positions = LayerPositions(stack.positions, number, indices)
            return stack.layers[number](x, mask, positions, dropout, cross, cache, first_entry)

        policy = REMAT[self.config.remat]
        return apply(self, x) if policy is None else nn.remat(apply, policy=policy)(self, x)

    def _is_scanned(self, caches) -> bool:
        """Returns whether all blocks share a program. A decoder with caches would copy them for that."""
        writes = any(map(self.is_mutable_collection, ("params", "intermediates")))
        return self.config.scan_layers and caches is None and not writes

    def _scan(self, x, mask, indices, dropout, cross):
        """Applies all blocks in a program that is compiled once. Their weights are stacked for this call."""
        names = [f"layers_{number}" for number in range(len(self.layers))]
        paths = [(*self.path, name) for name in names]
        weights = _stack([self.variables["params"][name] for name in names])
        keys_values = _stack([inputs.keys_values for inputs in cross]) if cross else None
        block = Block(self.config, self.has_cross_attention, parent=None)

        def apply(x, layer):
            number, weights, keys_values = layer
            return block.apply(
                {"params": weights},
                x,
                mask,
                LayerPositions(self.positions, number, indices),
                dropout.in_layer(paths, number),
                cross[0]._replace(keys_values=keys_values) if cross else None,
            )

        policy = REMAT[self.config.remat]
        apply = apply if policy is None else jax.checkpoint(apply, policy=policy)
        return jax.lax.scan(apply, x, (jnp.arange(len(names)), weights, keys_values))[0]

    def cross_keys_values(self, encoder_output: Float[Array, "b s m"]) -> tuple[KeysValues, ...]:
        """Returns the keys and values of the encoder's output for the cross-attention of each layer."""
        return tuple(layer.cross_attention.keys_values(encoder_output) for layer in self.layers)


def _stack(trees):
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *trees)
