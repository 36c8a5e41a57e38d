"""The encoder-decoder Transformer (paper, section 3.1 and figure 1)."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from transformer.batch import TokenBatch
from transformer.model.attention import RowIndices
from transformer.model.block import CrossInputs, Stack
from transformer.model.cache import DecoderState, EncoderCache, KVCache
from transformer.model.dropout import BoundDropout, Dropout, bind_dropout
from transformer.model.encoder_decoder import EncoderDecoder, MaxLengths, shift_right
from transformer.model.masks import ancestor_mask, causal_mask, segment_mask
from transformer.model.positions import POSITIONS, check_positions


class Transformer(EncoderDecoder):
    """Attention within the encoder, within the decoder and between the two, without recurrence."""

    def setup(self):
        super().setup()
        source_length, target_length = self.trained_lengths or (None, None)
        config = self.config
        self.encoder = Stack(
            config,
            config.encoder_depth,
            causal=False,
            has_cross_attention=False,
            trained_length=source_length,
        )
        self.decoder = Stack(
            config,
            config.decoder_depth,
            causal=True,
            has_cross_attention=True,
            trained_length=target_length,
        )

    @classmethod
    def check(cls, config):
        check_positions(config)

    @property
    def max_lengths(self):
        scheme = POSITIONS[self.config.positions]
        lengths = self.trained_lengths or (None, None)
        # With parent=None, the scheme is not a submodule; only its `max_length` is read.
        return MaxLengths(
            *(scheme(self.config, trained_length=length, parent=None).max_length for length in lengths)
        )

    def encode(self, source: TokenBatch, dropout: Dropout | None = None) -> Float[Array, "b s m"]:
        """Returns the encoder's output for each source token."""
        x = self.embedding.source(source.tokens)
        mask = segment_mask(source.segment_ids, source.segment_ids)
        indices = RowIndices.whole_rows(source.positions)
        return self.encoder(x, mask, indices, self._bind(dropout, source))[0]

    def decode_vectors(
        self,
        encoder_output: Float[Array, "b s m"],
        source: TokenBatch,
        target: TokenBatch,
        dropout: Dropout | None = None,
    ) -> Float[Array, "b t m"]:
        """Returns the decoder's output for each target token. A token sees only earlier target tokens."""
        x = self.embedding.target(shift_right(target))
        mask = segment_mask(target.segment_ids, target.segment_ids) & causal_mask(x.shape[1])
        indices = RowIndices.whole_rows(target.positions)
        cross_mask = segment_mask(target.segment_ids, source.segment_ids)
        cross = [
            CrossInputs(keys_values, cross_mask, source.positions)
            for keys_values in self.decoder.cross_keys_values(encoder_output)
        ]
        return self.decoder(x, mask, indices, self._bind(dropout, target), cross)[0]

    def start_decoding(
        self, source_tokens: Int[Array, "b s"], num_hypotheses: int, cache_length: int
    ) -> tuple[EncoderCache, DecoderState]:
        """Encodes the sentences of a search, one per row."""
        source = TokenBatch.from_tokens(source_tokens)
        projected = self.decoder.cross_keys_values(self.encode(source))
        cross = tuple(KVCache.store(keys_values) for keys_values in projected)
        caches = tuple(cache.empty(cache_length * num_hypotheses) for cache in cross)
        ancestors = jnp.zeros((len(source_tokens), num_hypotheses, cache_length), jnp.int32)
        return EncoderCache(cross, source.segment_ids != 0), DecoderState(caches, ancestors)

    @nn.nowrap
    def resize_cache(self, state: DecoderState, length: int) -> DecoderState:
        """Returns the state with space for `length` tokens per hypothesis; a state cannot shrink."""
        return state.extend(length)

    def decode_step(
        self,
        encoder_cache: EncoderCache,
        state: DecoderState,
        tokens: Int[Array, "b n"],
        parents: Int[Array, "b n"],
        index: Int[Array, ""],
    ) -> tuple[Float[Array, "b n v"], DecoderState]:
        """Reads one token of each hypothesis and predicts the next.

        Attention computes all hypotheses of a sentence at once: they are the queries of one row.
        """
        ancestors = state.advance(parents, index)
        _, num_hypotheses, length = ancestors.shape
        positions = jnp.broadcast_to(index, tokens.shape)
        steps = jnp.repeat(jnp.arange(length), num_hypotheses)  # step at which each cache entry was written
        indices = RowIndices(positions, positions[0], steps, length)
        cross = [CrossInputs(cache.load(), encoder_cache.mask[:, None]) for cache in encoder_cache.layers]
        x, caches = self.decoder(
            self.embedding.target(tokens),
            ancestor_mask(ancestors, index),
            indices,
            cross=cross,
            caches=state.layers,
            first_entry=index * num_hypotheses,
        )
        return self.embedding.logit_factors(x).logits(), DecoderState(caches, ancestors)

    def _bind(self, dropout: Dropout | None, batch: TokenBatch) -> BoundDropout:
        return bind_dropout(dropout, batch, self.config.dropout_sites)
