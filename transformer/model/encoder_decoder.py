"""The interface of every model: an encoder and a decoder between embeddings and pre-softmax transformation.

Training calls the model for the logits of all target tokens at once. `encode` and `decode` are its halves. A
search calls `start_decoding` once and `decode_step` for every token.
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
    """Tokens of the longest source and the longest target, EOS included; None: any."""

    source: int | None = None
    target: int | None = None


class EncoderDecoder(nn.Module, metaclass=abc.ABCMeta):
    """Maps source and target tokens to next-token logits; each kind defines the abstract methods.

    Attributes:
      trained_lengths: tokens of the longest source and the longest target in the training data; None during
        training. The position scheme's `overflow` decides what happens beyond them.
      supports_packing: whether a row may hold several examples.
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

    @property
    def max_lengths(self) -> MaxLengths:
        """The longest sequences that the model accepts."""
        return MaxLengths()

    def __call__(
        self, source: TokenBatch, target: TokenBatch, dropout: Dropout | None = None
    ) -> Float[Array, "b t v"]:
        """Logits of each target token, given the source and the target tokens before it.

        Args:
          source: source tokens; each example ends in EOS.
          target: the tokens to predict; each example ends in EOS. The model shifts them right.
          dropout: key and rate in training; None: no dropout.
        """
        return self.factored_logits(source, target, dropout).logits()

    def factored_logits(
        self, source: TokenBatch, target: TokenBatch, dropout: Dropout | None = None
    ) -> LogitFactors:
        """As `__call__`, but returns the logits as the two factors of a product."""
        encoder_output = self.encode(source, dropout)
        vectors = self.decode_vectors(encoder_output, source, target, dropout)
        return self.embedding.logit_factors(vectors)

    def decode(
        self,
        encoder_output: PyTree,
        source: TokenBatch,
        target: TokenBatch,
        dropout: Dropout | None = None,
    ) -> Float[Array, "b t v"]:
        """As `__call__`, given the encoder's output."""
        vectors = self.decode_vectors(encoder_output, source, target, dropout)
        return self.embedding.logit_factors(vectors).logits()

    @abc.abstractmethod
    def encode(self, source: TokenBatch, dropout: Dropout | None = None) -> PyTree:
        """The encoder's output, which the decoder reads."""

    @abc.abstractmethod
    def decode_vectors(
        self,
        encoder_output: PyTree,
        source: TokenBatch,
        target: TokenBatch,
        dropout: Dropout | None = None,
    ) -> Float[Array, "b t m"]:
        """The decoder's output for each target token, before the pre-softmax transformation."""

    @abc.abstractmethod
    def start_decoding(
        self, source_tokens: Int[Array, "b s"], num_hypotheses: int, cache_length: int
    ) -> tuple[PyTree, PyTree]:
        """Encodes one sentence per row for a search.

        Args:
          source_tokens: sentences that end in EOS, padded with PAD.
          num_hypotheses: n, hypotheses per sentence.
          cache_length: tokens per hypothesis that the state has space for; see `resize_cache`.

        Returns:
          encoder_cache: the source, shared by the hypotheses of a sentence; every array has b rows.
          state: the tokens read so far; every array has b rows.
        """

    @nn.nowrap
    def resize_cache(self, state: PyTree, length: int) -> PyTree:
        """Returns the state with space for `length` tokens per hypothesis, at least as many as before."""
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
          state: of the step before.
          tokens: decoder inputs; BOS at step 0.
          parents: the hypothesis of the step before that each hypothesis continues.
          index: the step, from 0.

        Returns:
          The next token's logits, and the state of this step.
        """


def shift_right(target: TokenBatch) -> Int[Array, "b t"]:
    """The decoder's input (figure 1): the token before each target token, or BOS where a segment starts."""
    previous = jnp.pad(target.tokens[:, :-1], ((0, 0), (1, 0)))
    return jnp.where(target.positions == 0, BOS, previous)
