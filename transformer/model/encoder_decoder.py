"""Interface of all models: embeddings, an encoder, a decoder and the pre-softmax transformation.

Training calls the model for the logits of all target tokens at once. A search calls `start_decoding` once and
`decode_step` for every token.
"""

import abc
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, PyTree

from transformer.batch import TokenBatch
from transformer.config import BOS, ModelConfig
from transformer.model.dropout import Dropout
from transformer.model.embedding import EMBEDDINGS, Embedding, LogitFactors


class MaxLengths(NamedTuple):
    """Largest numbers of source and target tokens, EOS included; None if there is no limit."""

    source: int | None = None
    target: int | None = None


class EncoderDecoder(nn.Module, metaclass=abc.ABCMeta):
    """Maps source and target tokens to next-token logits. Each kind of model defines the abstract methods.

    Attributes:
      trained_lengths: tokens of the longest source and the longest target in the training data; None during
        training. `model.overflow` decides what happens to longer sequences.
      supports_packing: whether a row may contain several examples.
    """

    config: ModelConfig
    vocab_size: int
    trained_lengths: tuple[int, int] | None = None
    supports_packing: ClassVar[bool] = True

    def setup(self):
        names = EMBEDDINGS[self.config.embeddings]
        self.embedding = Embedding(self.vocab_size, self.config.d_model, names, self.config.dtype)

    @classmethod
    def check(cls, config: ModelConfig) -> None:
        """Raises a `UserError` if no model can be made from a config."""

    @nn.nowrap
    def example_inputs(self) -> tuple[TokenBatch, TokenBatch]:
        """Returns inputs of `__call__` that are enough to make the parameters."""
        batch = TokenBatch.from_tokens(jnp.ones((1, 2), jnp.int32))
        return batch, batch

    @property
    def max_lengths(self) -> MaxLengths:
        """The longest sequences that the model accepts."""
        return MaxLengths()

    def __call__(
        self, source: TokenBatch, target: TokenBatch, dropout: Dropout | None = None
    ) -> Float[Array, "b t v"]:
        """Returns the logits of each target token, given the source and the target tokens before it.

        Args:
          source: source tokens; each example ends in EOS.
          target: the tokens to predict; each example ends in EOS. The model shifts them right.
          dropout: key and rate in training; if None, nothing is dropped.
        """
        return self.target_logit_factors(source, target, dropout).logits()

    def target_logit_factors(
        self, source: TokenBatch, target: TokenBatch, dropout: Dropout | None = None
    ) -> LogitFactors:
        """Returns the logits of `__call__` as the two factors of a product."""
        encoder_output = self.encode(source, dropout)
        vectors = self.decode_vectors(encoder_output, source, target, dropout)
        return self.embedding.logit_factors(vectors)

    @abc.abstractmethod
    def encode(self, source: TokenBatch, dropout: Dropout | None = None) -> PyTree:
        """Returns the encoder's output, which the decoder reads."""

    @abc.abstractmethod
    def decode_vectors(
        self,
        encoder_output: PyTree,
        source: TokenBatch,
        target: TokenBatch,
        dropout: Dropout | None = None,
    ) -> Float[Array, "b t m"]:
        """Returns the decoder's output for each target token, before the pre-softmax transformation."""

    @abc.abstractmethod
    def start_decoding(
        self, source_tokens: Int[Array, "b s"], num_hypotheses: int, cache_length: int
    ) -> tuple[PyTree, PyTree]:
        """Encodes the sentences of a search, one per row.

        Args:
          source_tokens: sentences that end in EOS, padded with PAD.
          num_hypotheses: number of hypotheses per sentence, n.
          cache_length: tokens per hypothesis that the state has space for; see `resize_cache`.

        Returns:
          encoder_cache: the encoded source, shared by the hypotheses of a sentence; every array has b rows.
          state: memory of the target tokens read so far; every array has b rows.
        """

    @nn.nowrap
    def resize_cache(self, state: PyTree, length: int) -> PyTree:
        """Returns the state with space for `length` tokens per hypothesis; a state cannot shrink."""
        del length
        return state

    @abc.abstractmethod
    def decode_step(
        self,
        encoder_cache: PyTree,
        state: PyTree,
        tokens: Int[Array, "b n"],
        parents: Int[Array, "b n"],
        index: Int[Array, ""],
    ) -> tuple[Float[Array, "b n v"], PyTree]:
        """Reads one token of each hypothesis and predicts the next.

        Args:
          encoder_cache: see `start_decoding`.
          state: the state that the previous step returned.
          tokens: decoder inputs; BOS at step 0.
          parents: for each hypothesis, the index of the previous step's hypothesis that it extends.
          index: number of the step, counted from 0.

        Returns:
          The logits of the next token, and the state after this step.
        """


def shift_right(target: TokenBatch) -> Int[Array, "b t"]:
    """Returns the decoder's input (figure 1): BOS, then all target tokens of an example except the last."""
    previous = jnp.pad(target.tokens[:, :-1], ((0, 0), (1, 0)))
    return jnp.where(target.positions == 0, BOS, previous)
