"""The encoder-decoder Transformer (paper, section 3.1 and figure 1).

Three ways in: `__call__` for training (logits of every target piece at once), `encode` and `decode` for its
halves, and `start` with `step` for searching piece by piece with cached keys and values.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from transformer.config import BOS, TransformerConfig, choose
from transformer.model.attention import MultiHeadAttention, Rotate
from transformer.model.dropout import Drop, Dropout, dropper
from transformer.model.layers import NORM_PLACEMENTS, Embedding, Factors, FeedForward, Residual, layer_norm
from transformer.model.masks import Layout, causal_mask, segment_mask, written_mask
from transformer.model.positions import POSITIONS, Positions

KeysValues = tuple[Float[Array, "b s h d"], Float[Array, "b s h e"]]


class Memory(NamedTuple):
    """What a search needs of a source sentence, shared by its hypotheses and computed once.

    Attributes:
      cross: the cross-attention keys and values of each decoder layer.
      mask: which source pieces each target piece may attend to.
    """

    cross: tuple[KeysValues, ...]
    mask: Bool[Array, "b #t s"]


class Cache(NamedTuple):
    """The self-attention keys and values that one decoder layer has written so far."""

    key: Float[Array, "b n k h d"]
    value: Float[Array, "b n k h e"]


class Transformer(nn.Module):
    """Maps source and target pieces to next-piece logits."""

    config: TransformerConfig
    vocab_size: int

    def setup(self):
        self.embedding = Embedding(self.vocab_size, self.config.d_model, self.config.dtype)
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)

    def __call__(
        self,
        source: Int[Array, "b s"],
        target: Int[Array, "b t"],
        source_layout: Layout | None = None,
        target_layout: Layout | None = None,
        dropout: Dropout | None = None,
    ) -> Float[Array, "b t v"]:
        """Logits of each target piece given the source and the target pieces before it.

        Args:
          source: pieces, each example closed by EOS; rows padded with PAD.
          target: pieces to predict, each example closed by EOS. The model shifts them right by itself.
          source_layout: examples and positions of packed rows; None: one example a row.
          target_layout: likewise for the target.
          dropout: key and rate while training; None: no dropout.
        """
        return self.factors(source, target, source_layout, target_layout, dropout).logits()

    def factors(
        self,
        source: Int[Array, "b s"],
        target: Int[Array, "b t"],
        source_layout: Layout | None = None,
        target_layout: Layout | None = None,
        dropout: Dropout | None = None,
    ) -> Factors:
        """As `__call__`, but the logits are left as a product that is not worked out."""
        source_layout = Layout.of(source) if source_layout is None else source_layout
        encoded = self.encode(source, source_layout, dropout)
        return self._decoded(encoded, source_layout, target, target_layout, dropout)

    def encode(
        self,
        source: Int[Array, "b s"],
        source_layout: Layout | None = None,
        dropout: Dropout | None = None,
    ) -> Float[Array, "b s m"]:
        """The encoder's output for each source piece."""
        layout = Layout.of(source) if source_layout is None else source_layout
        return self.encoder(self.embedding(source), layout, dropper(dropout, layout))

    def decode(
        self,
        encoded: Float[Array, "b s m"],
        source_layout: Layout,
        target: Int[Array, "b t"],
        target_layout: Layout | None = None,
        dropout: Dropout | None = None,
    ) -> Float[Array, "b t v"]:
        """Logits of each target piece given an encoded source and the target pieces before it."""
        return self._decoded(encoded, source_layout, target, target_layout, dropout).logits()

    def _decoded(self, encoded, source_layout, target, target_layout, dropout) -> Factors:
        layout = Layout.of(target) if target_layout is None else target_layout
        x = self.embedding(shift_right(target, layout.positions))
        memory = self._memory(encoded, segment_mask(layout.segments, source_layout.segments))
        return self.embedding.factors(self.decoder(x, layout, memory, dropper(dropout, layout)))

    def start(
        self, source: Int[Array, "b s"], hypotheses: int, length: int
    ) -> tuple[Memory, tuple[Cache, ...]]:
        """Encodes sentences, one a row, and makes room to search `length` pieces for each hypothesis."""
        layout = Layout.of(source)
        memory = self._memory(self.encode(source, layout), (layout.segments != 0)[:, None])

        def empty(projected):
            rows, _, heads, width = projected.shape
            return jnp.zeros((rows, hypotheses, length, heads, width), projected.dtype)

        return memory, tuple(Cache(empty(key), empty(value)) for key, value in memory.cross)

    def step(
        self,
        memory: Memory,
        state: tuple[Cache, ...],
        token: Int[Array, "b n"],
        index: Int[Array, ""],
    ) -> tuple[Float[Array, "b n v"], tuple[Cache, ...]]:
        """Reads each hypothesis' piece number `index` (BOS is number 0) and predicts the next one."""
        x, state = self.decoder.step(self.embedding(token), memory, state, index)
        return self.embedding.factors(x).logits(), state

    def _memory(self, encoded: Float[Array, "b s m"], mask: Bool[Array, "b t s"]) -> Memory:
        return Memory(self.decoder.cross_keys_values(encoded), mask)


def shift_right(tokens: Int[Array, "b t"], positions: Int[Array, "b t"]) -> Int[Array, "b t"]:
    """The decoder's input: each piece's predecessor, BOS for the first of each segment (figure 1)."""
    previous = jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)))
    return jnp.where(positions == 0, BOS, previous)


class Encoder(nn.Module):
    """N identical layers of self-attention and feed-forward (section 3.1)."""

    config: TransformerConfig

    def setup(self):
        self.positions = _positions(self.config)
        self.layers = [EncoderLayer(self.config) for _ in range(self.config.num_layers)]
        self.norm = _final_norm(self.config)

    def __call__(self, x: Float[Array, "b s m"], layout: Layout, drop: Drop) -> Float[Array, "b s m"]:
        index = jnp.arange(x.shape[1])
        mask = segment_mask(layout.segments, layout.segments)
        bias = self.positions.bias(index, index)
        rotate = _rotation(self.positions, layout.positions)
        x = drop(self.positions.add(x, layout.positions, x.shape[1]), self.path)
        for layer in self.layers:
            x = layer(x, mask, rotate, bias, drop)
        return self.norm(x)


class EncoderLayer(nn.Module):
    """Self-attention, then feed-forward, each inside its residual connection."""

    config: TransformerConfig

    def setup(self):
        self.self_attention = _attention(self.config)
        self.feed_forward = _feed_forward(self.config)
        self.self_attention_residual = Residual(self.config)
        self.feed_forward_residual = Residual(self.config)

    def __call__(
        self,
        x: Float[Array, "b s m"],
        mask: Bool[Array, "b s s"],
        rotate: Rotate,
        bias: Float[Array, "h s s"] | None,
        drop: Drop,
    ) -> Float[Array, "b s m"]:
        x = self.self_attention_residual(x, lambda y: self.self_attention(y, y, mask, rotate, bias), drop)
        return self.feed_forward_residual(x, self.feed_forward, drop)


class Decoder(nn.Module):
    """N identical layers of causal self-attention, cross-attention and feed-forward (section 3.1)."""

    config: TransformerConfig

    def setup(self):
        self.positions = _positions(self.config)
        self.layers = [DecoderLayer(self.config) for _ in range(self.config.num_layers)]
        self.norm = _final_norm(self.config)

    def __call__(
        self, x: Float[Array, "b t m"], layout: Layout, memory: Memory, drop: Drop
    ) -> Float[Array, "b t m"]:
        """Decodes all positions at once, each seeing only those before it."""
        index = jnp.arange(x.shape[1])
        mask = segment_mask(layout.segments, layout.segments) & causal_mask(x.shape[1])
        bias = self.positions.bias(index, index)
        rotate = _rotation(self.positions, layout.positions)
        x = drop(self.positions.add(x, layout.positions, x.shape[1]), self.path)
        for layer, cross in zip(self.layers, memory.cross, strict=True):
            x = layer(x, mask, rotate, bias, cross, memory.mask, drop)
        return self.norm(x)

    def step(
        self,
        x: Float[Array, "b n m"],
        memory: Memory,
        state: tuple[Cache, ...],
        index: Int[Array, ""],
    ) -> tuple[Float[Array, "b n m"], tuple[Cache, ...]]:
        """Decodes position `index` of each hypothesis and adds its keys and values to the caches."""
        length = state[0].key.shape[2]
        mask = written_mask(length, index)
        bias = self.positions.bias(index[None], jnp.arange(length))
        rows = x.shape[0] * x.shape[1]
        rotate = _rotation(self.positions, jnp.broadcast_to(index, (rows, 1)))
        x = self.positions.add(x, jnp.broadcast_to(index, x.shape[:2]), length)
        written = []
        for layer, cross, cache in zip(self.layers, memory.cross, state, strict=True):
            x, cache = layer.step(x, mask, rotate, bias, cross, memory.mask, cache, index)
            written.append(cache)
        return self.norm(x), tuple(written)

    def cross_keys_values(self, encoded: Float[Array, "b s m"]) -> tuple[KeysValues, ...]:
        """Each layer's cross-attention keys and values of the encoder's output."""
        return tuple(layer.cross_attention.keys_values(encoded) for layer in self.layers)


class DecoderLayer(nn.Module):
    """Causal self-attention, cross-attention and feed-forward, each inside its residual connection."""

    config: TransformerConfig

    def setup(self):
        self.self_attention = _attention(self.config)
        self.cross_attention = _attention(self.config)
        self.feed_forward = _feed_forward(self.config)
        self.self_attention_residual = Residual(self.config)
        self.cross_attention_residual = Residual(self.config)
        self.feed_forward_residual = Residual(self.config)

    def __call__(
        self,
        x: Float[Array, "b t m"],
        mask: Bool[Array, "b t t"],
        rotate: Rotate,
        bias: Float[Array, "h t t"] | None,
        cross: KeysValues,
        cross_mask: Bool[Array, "b t s"],
        drop: Drop,
    ) -> Float[Array, "b t m"]:
        def attend(y):
            return self.self_attention(y, y, mask, rotate, bias)

        return self._sublayers(x, attend, cross, cross_mask, drop)

    def step(
        self,
        x: Float[Array, "b n m"],
        mask: Bool[Array, "1 1 k"],
        rotate: Rotate,
        bias: Float[Array, "h 1 k"] | None,
        cross: KeysValues,
        cross_mask: Bool[Array, "b 1 s"],
        cache: Cache,
        index: Int[Array, ""],
    ) -> tuple[Float[Array, "b n m"], Cache]:
        """One position of n hypotheses a sentence. Each has a past of its own, so it is a row to
        self-attention; they share a source, so to cross-attention they are the queries of one row."""

        def attend(y):
            nonlocal cache
            rows = y.reshape(-1, 1, y.shape[-1])
            fresh = self.self_attention.keys_values(rows, rotate)
            cache = Cache(*(_write(old, new, index) for old, new in zip(cache, fresh, strict=True)))
            key, value = (old.reshape(-1, *old.shape[2:]) for old in cache)
            return self.self_attention.attend(rows, key, value, mask, rotate, bias).reshape(y.shape)

        x = self._sublayers(x, attend, cross, cross_mask, lambda y, site: y)
        return x, cache

    def _sublayers(self, x, attend, cross, cross_mask, drop):
        x = self.self_attention_residual(x, attend, drop)
        x = self.cross_attention_residual(
            x, lambda y: self.cross_attention.attend(y, *cross, cross_mask), drop
        )
        return self.feed_forward_residual(x, self.feed_forward, drop)


def _write(
    cache: Float[Array, "b n k h d"], new: Float[Array, "bn 1 h d"], index: Int[Array, ""]
) -> Float[Array, "b n k h d"]:
    new = new.reshape(*cache.shape[:2], *new.shape[1:])
    return jax.lax.dynamic_update_slice_in_dim(cache, new, index, axis=2)


def _rotation(positions: Positions, where: Int[Array, "b t"]) -> Rotate:
    return lambda heads: positions.transform(heads, where)


def _positions(config: TransformerConfig) -> Positions:
    return choose(POSITIONS, config.positions, "model.positions")(config)


def _attention(config: TransformerConfig) -> MultiHeadAttention:
    return MultiHeadAttention(
        config.num_heads, config.key_width, config.value_width, config.d_model, config.dtype
    )


def _feed_forward(config: TransformerConfig) -> FeedForward:
    return FeedForward(config.d_ff, config.d_model, config.dtype)


def _final_norm(config: TransformerConfig):
    placement = choose(NORM_PLACEMENTS, config.norm_placement, "model.norm_placement")
    return layer_norm(config) if placement.final_norm else lambda x: x
