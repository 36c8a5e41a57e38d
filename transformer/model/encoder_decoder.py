"""What every model is: an encoder and a decoder between the embeddings and the pre-softmax transformation.

Three ways in: `__call__` for training (logits of every target piece at once), `encode` and `decode` for its
halves, and `start` with `step` for searching piece by piece.
"""

import abc
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, PyTree

from transformer.config import BOS, TransformerConfig
from transformer.model.dropout import Dropout
from transformer.model.embedding import EMBEDDINGS, Embedding, Factors
from transformer.model.masks import Layout


class Longest(NamedTuple):
    """Pieces of the longest source and the longest target, EOS included; None: any."""

    source: int | None = None
    target: int | None = None


class EncoderDecoder(nn.Module, metaclass=abc.ABCMeta):
    """Maps source and target pieces to next-piece logits; a kind defines the abstract methods.

    Attributes:
      trained_lengths: pieces of the longest source and the longest target that it was trained on; None while
        it is trained. What the position scheme does beyond is its `overflow`.
      packs: whether a row may hold several examples.
    """

    config: TransformerConfig
    vocab_size: int
    trained_lengths: tuple[int, int] | None = None
    packs: ClassVar[bool] = True

    def setup(self):
        shared = EMBEDDINGS[self.config.embeddings]
        self.embedding = Embedding(self.vocab_size, self.config.d_model, shared, self.config.dtype)

    @classmethod
    def check(cls, config: TransformerConfig) -> None:
        """Raises a `UserError` where the model cannot be made from a config."""

    @property
    def longest(self) -> Longest:
        """Pieces of the longest sequences it can place."""
        return Longest()

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
        layout = Layout.of(source) if source_layout is None else source_layout
        encoded = self.encode(source, layout, dropout)
        return self._decoded(encoded, layout, target, target_layout, dropout)

    def decode(
        self,
        encoded: PyTree,
        source_layout: Layout,
        target: Int[Array, "b t"],
        target_layout: Layout | None = None,
        dropout: Dropout | None = None,
    ) -> Float[Array, "b t v"]:
        """Logits of each target piece given an encoded source and the target pieces before it."""
        return self._decoded(encoded, source_layout, target, target_layout, dropout).logits()

    def _decoded(self, encoded, source_layout, target, target_layout, dropout) -> Factors:
        layout = Layout.of(target) if target_layout is None else target_layout
        x = self.embedding.target(shift_right(target, layout.positions))
        return self.embedding.factors(self.decode_vectors(x, layout, encoded, source_layout, dropout))

    @abc.abstractmethod
    def encode(
        self, source: Int[Array, "b s"], layout: Layout | None = None, dropout: Dropout | None = None
    ) -> PyTree:
        """What the decoder reads of the source."""

    @abc.abstractmethod
    def decode_vectors(
        self,
        x: Float[Array, "b t m"],
        layout: Layout,
        encoded: PyTree,
        source_layout: Layout,
        dropout: Dropout | None,
    ) -> Float[Array, "b t m"]:
        """The decoder's output for each embedded piece of its input."""

    @abc.abstractmethod
    def start(self, source: Int[Array, "b s"], hypotheses: int, length: int) -> tuple[PyTree, PyTree]:
        """Encodes sentences, one a row, for a search with room for `length` pieces a hypothesis at first.

        Returns:
          memory: what the hypotheses of a sentence share.
          state: what each has of its own.
        """

    @nn.nowrap
    def grow(self, state: PyTree, length: int) -> PyTree:
        """A state with room for `length` pieces for each hypothesis; here for models that need none."""
        del length
        return state

    @abc.abstractmethod
    def step(
        self,
        memory: PyTree,
        state: PyTree,
        token: Int[Array, "b n"],
        parent: Int[Array, "b n"],
        index: Int[Array, ""],
    ) -> tuple[Float[Array, "b n v"], PyTree]:
        """Reads each hypothesis' piece number `index` (BOS is number 0) and predicts the next one.

        `parent` says which hypothesis of the step before each one continues.
        """


def shift_right(tokens: Int[Array, "b t"], positions: Int[Array, "b t"]) -> Int[Array, "b t"]:
    """The decoder's input: each piece's predecessor, BOS for the first of each segment (figure 1)."""
    previous = jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)))
    return jnp.where(positions == 0, BOS, previous)
