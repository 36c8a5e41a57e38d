"""The Transformer's encoder and decoder: N identical layers each (paper, section 3.1 and figure 1)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from transformer.config import TransformerConfig
from transformer.model.attention import DropWeights, MultiHeadAttention
from transformer.model.dropout import Drop
from transformer.model.layers import NORM_PLACEMENTS, NORMS, FeedForward, Map, Residual
from transformer.model.masks import Layout, causal_mask, past_mask, segment_mask
from transformer.model.order import Order, Positions
from transformer.model.positions import POSITIONS

KeysValues = tuple[Float[Array, "b s h d"], Float[Array, "b s h e"]]


class Memory(NamedTuple):
    """What the decoder needs of the source; in a search, shared by a sentence's hypotheses.

    Attributes:
      cross: the cross-attention keys and values of each decoder layer; in a search as caches.
      layout: of the source.
    """

    cross: "tuple[KeysValues, ...] | tuple[Cache, ...]"
    layout: Layout


class Cache(NamedTuple):
    """Keys and values that steps read: of a source, or what self-attention has written in any hypothesis.

    The pieces, or the steps and in each the hypotheses, lie next to each other: so both products of attention
    read them without a copy, which on CPU takes longer than the products.
    """

    key: Float[Array, "b h d k"]
    value: Float[Array, "b h e k"]

    @classmethod
    def of(cls, keys_values: KeysValues) -> "Cache":
        """Keys and values as they are projected, stored."""
        return cls(*(jnp.moveaxis(one, 1, -1) for one in keys_values))

    @property
    def keys_values(self) -> KeysValues:
        """As attention takes them."""
        return tuple(jnp.moveaxis(one, -1, 1) for one in self)

    def empty(self, length: int) -> "Cache":
        """Room for `length` pieces of such keys and values."""
        return Cache(*(jnp.zeros((*one.shape[:-1], length), one.dtype) for one in self))

    def grow(self, more: int) -> "Cache":
        """With room for `more` pieces."""
        return Cache(*(jnp.pad(one, ((0, 0), (0, 0), (0, 0), (0, more))) for one in self))

    def write(self, new: KeysValues, index: Int[Array, ""]) -> "Cache":
        """With what each hypothesis writes at step `index`."""
        place = index * new[0].shape[1]
        both = zip(self, Cache.of(new), strict=True)
        return Cache(*(jax.lax.dynamic_update_slice_in_dim(old, one, place, axis=3) for old, one in both))


class Past(NamedTuple):
    """What the hypotheses of a search have written.

    Hypotheses come and go; what they wrote stays where it is. A hypothesis is a path through it.

    Attributes:
      caches: of each layer.
      ancestors: which hypothesis wrote a hypothesis' piece at each step.
    """

    caches: tuple[Cache, ...]
    ancestors: Int[Array, "b n t"]


class Encoder(nn.Module):
    """Layers of self-attention and feed-forward."""

    config: TransformerConfig
    trained_length: int | None = None  # as in `Positions`

    def setup(self):
        self.positions = _positions(self, causal=False)
        self.layers = [EncoderLayer(self.config) for _ in range(self.config.encoder_depth)]
        self.norm = _final_norm(self.config)

    def __call__(self, x: Float[Array, "b s m"], layout: Layout, drop: Drop) -> Float[Array, "b s m"]:
        mask = segment_mask(layout.segments, layout.segments)
        x = drop(self.positions(x, layout.positions, x.shape[1]), self.path)
        for layer, order in zip(self.layers, _orders(self.positions, layout, len(self.layers)), strict=True):
            x = layer(x, mask, order, layout, drop)
        return self.norm(x)


class EncoderLayer(nn.Module):
    """Self-attention, then feed-forward, each inside its residual connection."""

    config: TransformerConfig

    def setup(self):
        self.self_attention = _attention(self.config)
        self.feed_forward = FeedForward(self.config)
        self.self_attention_residual = Residual(self.config)
        self.feed_forward_residual = Residual(self.config)

    def __call__(
        self, x: Float[Array, "b s m"], mask: Bool[Array, "b s s"], order: Order, layout: Layout, drop: Drop
    ) -> Float[Array, "b s m"]:
        def attend(y):
            kept = _dropping(self.self_attention, drop, layout)
            return self.self_attention(y, y, mask, order, kept)

        x = self.self_attention_residual(x, attend, drop)
        return self.feed_forward_residual(x, lambda y: self.feed_forward(y, drop), drop)


class Decoder(nn.Module):
    """Layers of causal self-attention, cross-attention and feed-forward."""

    config: TransformerConfig
    trained_length: int | None = None  # as in `Positions`

    def setup(self):
        self.positions = _positions(self, causal=True)
        self.layers = [DecoderLayer(self.config) for _ in range(self.config.decoder_depth)]
        self.norm = _final_norm(self.config)

    def __call__(
        self, x: Float[Array, "b t m"], layout: Layout, memory: Memory, drop: Drop
    ) -> Float[Array, "b t m"]:
        """Decodes all positions at once, each seeing only those before it."""
        mask = segment_mask(layout.segments, layout.segments) & causal_mask(x.shape[1])
        cross_mask = segment_mask(layout.segments, memory.layout.segments)
        x = drop(self.positions(x, layout.positions, x.shape[1]), self.path)
        orders = _orders(self.positions, layout, len(self.layers))
        for layer, order, cross in zip(self.layers, orders, memory.cross, strict=True):
            x = layer(x, mask, order, layout, cross, cross_mask, memory.layout, drop)
        return self.norm(x)

    def step(
        self,
        x: Float[Array, "b n m"],
        memory: Memory,
        state: Past,
        parent: Int[Array, "b n"],
        index: Int[Array, ""],
    ) -> tuple[Float[Array, "b n m"], Past]:
        """Decodes position `index` of each hypothesis and adds its keys and values to the caches."""
        rows, hypotheses, length = state.ancestors.shape
        ancestors = jnp.take_along_axis(state.ancestors, parent[..., None], axis=1)
        own = jnp.broadcast_to(jnp.arange(hypotheses)[:, None], (rows, hypotheses, 1))
        ancestors = jax.lax.dynamic_update_slice_in_dim(ancestors, own, index, axis=2)
        mask = past_mask(ancestors, index)
        cross_mask = (memory.layout.segments != 0)[:, None]
        where = jnp.broadcast_to(index, (rows, hypotheses))
        places = jnp.repeat(jnp.arange(length), hypotheses)
        x = self.positions(x, where, length)
        caches = []
        for number, (layer, cross, cache) in enumerate(
            zip(self.layers, memory.cross, state.caches, strict=True)
        ):
            order = self.positions.order(number, where, where[0], places, length)
            x, cache = layer.step(x, mask, order, cross, cross_mask, cache, index)
            caches.append(cache)
        return self.norm(x), Past(tuple(caches), ancestors)

    def cross_keys_values(self, encoded: Float[Array, "b s m"]) -> tuple[KeysValues, ...]:
        """Each layer's cross-attention keys and values of the encoder's output."""
        return tuple(layer.cross_attention.keys_values(encoded) for layer in self.layers)


class DecoderLayer(nn.Module):
    """Causal self-attention, cross-attention and feed-forward, each inside its residual connection."""

    config: TransformerConfig

    def setup(self):
        self.self_attention = _attention(self.config)
        self.cross_attention = _attention(self.config)
        self.feed_forward = FeedForward(self.config)
        self.self_attention_residual = Residual(self.config)
        self.cross_attention_residual = Residual(self.config)
        self.feed_forward_residual = Residual(self.config)

    def __call__(
        self,
        x: Float[Array, "b t m"],
        mask: Bool[Array, "b t t"],
        order: Order,
        layout: Layout,
        cross: KeysValues,
        cross_mask: Bool[Array, "b t s"],
        source_layout: Layout,
        drop: Drop,
    ) -> Float[Array, "b t m"]:
        def attend(y):
            return self.self_attention(y, y, mask, order, _dropping(self.self_attention, drop, layout))

        def attend_source(y):
            kept = _dropping(self.cross_attention, drop, source_layout)
            return self.cross_attention.attend(y, *cross, cross_mask, drop=kept)

        return self._sublayers(x, attend, attend_source, drop)

    def step(
        self,
        x: Float[Array, "b n m"],
        mask: Bool[Array, "b n k"],
        order: Order,
        cross: Cache,
        cross_mask: Bool[Array, "b 1 s"],
        cache: Cache,
        index: Int[Array, ""],
    ) -> tuple[Float[Array, "b n m"], Cache]:
        """One position of n hypotheses a sentence, the queries of one row to both attentions."""

        def attend(y):
            nonlocal cache
            cache = cache.write(self.self_attention.keys_values(y, order), index)
            return self.self_attention.attend(y, *cache.keys_values, mask, order)

        def attend_source(y):
            return self.cross_attention.attend(y, *cross.keys_values, cross_mask)

        x = self._sublayers(x, attend, attend_source, Drop())
        return x, cache

    def _sublayers(
        self, x: Float[Array, "b t m"], attend: Map, attend_source: Map, drop: Drop
    ) -> Float[Array, "b t m"]:
        x = self.self_attention_residual(x, attend, drop)
        x = self.cross_attention_residual(x, attend_source, drop)
        return self.feed_forward_residual(x, lambda y: self.feed_forward(y, drop), drop)


def _dropping(attention: MultiHeadAttention, drop: Drop, keys: Layout) -> DropWeights:
    return lambda weights: drop.attention(weights, attention.path, keys.positions)


def _orders(positions: Positions, layout: Layout, layers: int) -> list[Order]:
    """The order of each layer's self-attention over whole rows."""
    length = layout.positions.shape[1]
    index = jnp.arange(length)
    return [positions.order(layer, layout.positions, index, index, length) for layer in range(layers)]


def _positions(stack: Encoder | Decoder, causal: bool) -> Positions:
    return POSITIONS[stack.config.positions](stack.config, causal, stack.trained_length)


def _attention(config: TransformerConfig) -> MultiHeadAttention:
    return MultiHeadAttention(
        config.num_heads, config.key_width, config.value_width, config.d_model, config.dtype
    )


def _final_norm(config: TransformerConfig) -> Map:
    has_one = NORM_PLACEMENTS[config.norm_placement].final_norm
    return NORMS[config.norm](config) if has_one else lambda x: x
