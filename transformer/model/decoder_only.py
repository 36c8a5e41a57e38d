"""A Transformer without an encoder, which continues one sequence (Liu et al. 2018; Radford et al. 2018)."""

from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from transformer.batch import TokenBatch
from transformer.config import PAD, UserError
from transformer.model.attention import RowIndices
from transformer.model.block import Stack
from transformer.model.cache import DecoderState, KVCache
from transformer.model.dropout import Dropout, bind_dropout
from transformer.model.embedding import EMBEDDINGS, Embedding, LogitFactors
from transformer.model.encoder_decoder import EncoderDecoder, MaxLengths, shift_right
from transformer.model.masks import ancestor_mask, causal_mask, segment_mask
from transformer.model.positions import POSITIONS, check_positions


class Joined(NamedTuple):
    """Sources and targets in common rows, each target behind its source.

    Attributes:
      batch: the decoder's input. BOS precedes the tokens of both sides; their EOS is not an input.
      is_source: whether a token is of a source.
      source_index: [b, s], the index of each source token in its joined row; past the end for padding.
      target_index: [b, t], the same for the target tokens.
    """

    batch: TokenBatch
    is_source: Bool[Array, "b q"]
    source_index: Int[Array, "b s"]
    target_index: Int[Array, "b t"]


class DecoderOnly(EncoderDecoder):
    """The decoder of the Transformer without cross-attention, applied to BOS, source, BOS, target.

    The target tokens see the whole source through self-attention. In language modeling there is no source;
    see `next_token_logit_factors` and `start_continuation`. Source and target share one table. With
    `prefix=bidirectional`, all tokens of a source see each other (Raffel et al. 2020, section 3.2.1).

    Differs from the paper: there is no encoder.
    """

    def setup(self):
        names, config = EMBEDDINGS[self.config.embeddings], self.config
        names = names._replace(source=names.target)
        self.embedding = Embedding(self.vocab_size, config.d_model, names, config.dtype)
        self.decoder = Stack(
            config,
            config.decoder_depth,
            causal=config.prefix == "causal",
            has_cross_attention=False,
            trained_length=self.trained_length,
        )

    @classmethod
    def check(cls, config):
        check_positions(config)
        if config.embeddings == "two_way":
            raise UserError(
                "model.embeddings is 'two_way'; with model.kind=decoder_only, it must be three_way or "
                "untied, since source and target share one table"
            )

    @property
    def trained_length(self) -> int | None:
        """The largest number of tokens on both sides together in training; None before training."""
        return sum(self.trained_lengths) if self.trained_lengths else None

    @property
    def max_length(self) -> int | None:
        """The largest number of tokens on both sides together; None if there is no limit."""
        scheme = POSITIONS[self.config.positions]
        return scheme(self.config, trained_length=self.trained_length, parent=None).max_length

    @property
    def max_lengths(self):
        """See `EncoderDecoder`. Until a model is trained, either side gets half of the positions."""
        if (limit := self.max_length) is None:
            return MaxLengths()
        return MaxLengths(*self.trained_lengths or (limit // 2, limit - limit // 2))

    def encode(self, source: TokenBatch, dropout: Dropout | None = None) -> tuple[()]:
        """Returns nothing, since there is no encoder."""
        return ()

    def decode_vectors(
        self,
        encoder_output: tuple[()],
        source: TokenBatch,
        target: TokenBatch,
        dropout: Dropout | None = None,
    ) -> Float[Array, "b t m"]:
        """Returns the decoder's output for each target token. A token sees its source and earlier targets."""
        joined = join(source, target)
        vectors = self._decode(joined.batch, dropout, joined.is_source)
        return _take(vectors, joined.target_index)

    def source_target_logit_factors(
        self, source: TokenBatch, target: TokenBatch, dropout: Dropout | None = None
    ) -> LogitFactors:
        """Returns the logits of each source token, then those of each target token, as factors."""
        joined = join(source, target)
        vectors = self._decode(joined.batch, dropout, joined.is_source)
        index = jnp.concatenate([joined.source_index, joined.target_index], axis=1)
        return self.embedding.logit_factors(_take(vectors, index))

    def next_token_logit_factors(self, inputs: TokenBatch, dropout: Dropout | None = None) -> LogitFactors:
        """Returns the logits of the token after each input, as factors; there is no source."""
        return self.embedding.logit_factors(self._decode(inputs, dropout))

    def start_decoding(
        self, source_tokens: Int[Array, "b s"], num_hypotheses: int, cache_length: int
    ) -> tuple[Bool[Array, "b s"], DecoderState]:
        """Reads the sentences of a search, one per row; the encoder cache is the mask of their tokens."""
        inputs = shift_right(TokenBatch.from_tokens(source_tokens))
        return self._start(inputs, source_tokens != PAD, num_hypotheses, cache_length)

    def start_continuation(
        self, prompts: Int[Array, "b s"], num_hypotheses: int, cache_length: int
    ) -> tuple[Bool[Array, "b s"], DecoderState]:
        """Reads prompts, one per row, whose continuations a search will extend.

        Args:
          prompts: decoder inputs, BOS included, padded at the end with PAD.
          num_hypotheses: number of continuations per prompt, n.
          cache_length: tokens per continuation that the state has space for; see `resize_cache`.

        Returns:
          The mask of the prompts' tokens, aligned at the ends of the prompts, and the state. The first
          `decode_step` gets the token after the prompt.
        """
        return self._start(prompts, prompts != PAD, num_hypotheses, cache_length)

    @nn.nowrap
    def resize_cache(self, state: DecoderState, length: int) -> DecoderState:
        """Returns the state with space for `length` tokens per hypothesis; a state cannot shrink."""
        return state.extend(length)

    def decode_step(
        self,
        encoder_cache: Bool[Array, "b s"],
        state: DecoderState,
        tokens: Int[Array, "b n"],
        parents: Int[Array, "b n"],
        index: Int[Array, ""],
    ) -> tuple[Float[Array, "b n v"], DecoderState]:
        """Reads one token of each hypothesis and predicts the next.

        The sources are aligned at their ends, so the index of a token minus that of a source token is their
        distance in every row.
        """
        source_mask, source_length = encoder_cache, encoder_cache.shape[1]
        ancestors = state.advance(parents, index)
        num_rows, num_hypotheses, length = ancestors.shape
        positions = jnp.sum(source_mask, axis=1, dtype=jnp.int32)[:, None] + index
        steps = source_length + jnp.repeat(jnp.arange(length), num_hypotheses)
        indices = RowIndices(
            positions=jnp.broadcast_to(positions, tokens.shape),
            query_index=jnp.full(num_hypotheses, source_length + index),
            key_index=jnp.concatenate([jnp.arange(source_length), steps]),
            length=source_length + length,
        )
        of_source = jnp.broadcast_to(source_mask[:, None], (num_rows, num_hypotheses, source_length))
        x, caches = self.decoder(
            self.embedding.target(tokens),
            jnp.concatenate([of_source, ancestor_mask(ancestors, index)], axis=2),
            indices,
            caches=state.layers,
            first_entry=source_length + index * num_hypotheses,
        )
        return self.embedding.logit_factors(x).logits(), DecoderState(caches, ancestors)

    def _decode(self, inputs, dropout, is_source=None):
        """Returns the output of the decoder for whole rows."""
        mask = segment_mask(inputs.segment_ids, inputs.segment_ids)
        indices = RowIndices.whole_rows(inputs.positions)
        bound = bind_dropout(dropout, inputs, self.config.dropout_sites)
        return self.decoder(
            self.embedding.target(inputs.tokens), self._visible(mask, is_source), indices, bound
        )[0]

    def _visible(self, mask, is_source=None):
        visible = causal_mask(mask.shape[1])
        if is_source is not None and self.config.prefix == "bidirectional":
            visible |= is_source[:, :, None] & is_source[:, None, :]
        return mask & visible

    def _start(self, inputs, mask, num_hypotheses, cache_length):
        """Aligns the inputs at their ends, and returns their mask and the caches of their keys and values."""
        num_rows, length = mask.shape
        num_missing = length - jnp.sum(mask, axis=1, dtype=jnp.int32)
        index = jnp.arange(length)[None] - num_missing[:, None]
        is_token, positions = index >= 0, jnp.maximum(index, 0)
        tokens = jnp.take_along_axis(inputs, positions, axis=1)
        visible = self._visible(is_token[:, None] & is_token[:, :, None], is_token)
        config = self.config
        heads = (num_rows, config.key_value_heads)
        empty = KVCache(
            jnp.zeros((*heads, config.key_width, length), config.dtype),
            jnp.zeros((*heads, config.value_width, length), config.dtype),
        )
        _, caches = self.decoder(
            self.embedding.target(tokens),
            visible,
            RowIndices.whole_rows(positions),
            caches=[empty] * config.decoder_depth,
            first_entry=0,
        )
        ancestors = jnp.zeros((num_rows, num_hypotheses, cache_length), jnp.int32)
        caches = tuple(cache.extend(cache_length * num_hypotheses) for cache in caches)
        return is_token, DecoderState(caches, ancestors)


def join(source: TokenBatch, target: TokenBatch) -> Joined:
    """Moves the sources and the targets of a batch to common rows.

    Both sides of a row must have the same segment ids in the same order.
    """
    matches = segment_mask(source.segment_ids, target.segment_ids)
    num_source, num_target = source.tokens.shape[1], target.tokens.shape[1]
    size = num_source + num_target
    # The examples of a row have the same order on both sides. So a token of a source moves by the number of
    # target tokens before its example, and a token of a target by the number of source tokens up to its own.
    first_target = jnp.argmax(matches, axis=2)
    last_source = num_source - 1 - jnp.argmax(matches[:, ::-1], axis=1)
    source_index = jnp.arange(num_source)[None] + first_target
    target_index = jnp.arange(num_target)[None] + last_source + 1
    source_index = jnp.where(source.segment_ids != 0, source_index, size)
    target_index = jnp.where(target.segment_ids != 0, target_index, size)
    source_lengths = jnp.sum(matches, axis=1, dtype=jnp.int32)

    def merge(of_source, of_target):
        rows = jnp.arange(len(of_source))[:, None]
        merged = jnp.zeros((len(of_source), size), of_source.dtype)
        merged = merged.at[rows, source_index].set(of_source, mode="drop")
        return merged.at[rows, target_index].set(of_target, mode="drop")

    batch = TokenBatch(
        tokens=merge(shift_right(source), shift_right(target)),
        segment_ids=merge(source.segment_ids, target.segment_ids),
        positions=merge(source.positions, target.positions + source_lengths),
    )
    is_source = merge(source.segment_ids != 0, jnp.zeros(target.tokens.shape, bool))
    return Joined(batch, is_source, source_index, target_index)


def _take(vectors: Float[Array, "b q m"], index: Int[Array, "b n"]) -> Float[Array, "b n m"]:
    """Returns the vectors at an index of each row; those of padding mean nothing."""
    return jnp.take_along_axis(vectors, jnp.minimum(index, vectors.shape[1] - 1)[..., None], axis=1)
