"""The encoder-decoder Transformer (paper, section 3.1 and figure 1); its stacks are in stacks.py."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from transformer.model.dropout import Dropout, dropper
from transformer.model.encoder_decoder import EncoderDecoder, Longest
from transformer.model.masks import Layout
from transformer.model.positions import POSITIONS
from transformer.model.stacks import Cache, Decoder, Encoder, Memory, Past


class Transformer(EncoderDecoder):
    """Attention alone, in both stacks and between them."""

    def setup(self):
        super().setup()
        source, target = self.trained_lengths or (None, None)
        self.encoder = Encoder(self.config, source)
        self.decoder = Decoder(self.config, target)

    @classmethod
    def check(cls, config):
        POSITIONS[config.positions].check(config)

    @property
    def longest(self):
        scheme = POSITIONS[self.config.positions]
        trained = self.trained_lengths or (None, None)
        return Longest(*(scheme(self.config, trained_length=one, parent=None).longest for one in trained))

    def encode(
        self, source: Int[Array, "b s"], layout: Layout | None = None, dropout: Dropout | None = None
    ) -> Float[Array, "b s m"]:
        """The encoder's output for each source piece."""
        layout = Layout.of(source) if layout is None else layout
        return self.encoder(self.embedding.source(source), layout, self._drop(dropout, layout))

    def decode_vectors(
        self,
        x: Float[Array, "b t m"],
        layout: Layout,
        encoded: Float[Array, "b s m"],
        source_layout: Layout,
        dropout: Dropout | None,
    ) -> Float[Array, "b t m"]:
        """The decoder's output for each embedded piece of its input."""
        memory = Memory(self.decoder.cross_keys_values(encoded), source_layout)
        return self.decoder(x, layout, memory, self._drop(dropout, layout))

    def start(self, source: Int[Array, "b s"], hypotheses: int, length: int) -> tuple[Memory, Past]:
        """Encodes sentences, one a row, and makes room for `length` pieces a hypothesis at first."""
        layout = Layout.of(source)
        projected = self.decoder.cross_keys_values(self.encode(source, layout))
        memory = Memory(tuple(map(Cache.of, projected)), layout)
        caches = tuple(one.empty(length * hypotheses) for one in memory.cross)
        return memory, Past(caches, jnp.zeros((source.shape[0], hypotheses, length), jnp.int32))

    @nn.nowrap
    def grow(self, state: Past, length: int) -> Past:
        """A state with room for `length` pieces for each hypothesis."""
        more = length - state.ancestors.shape[2]
        caches = tuple(one.grow(more * state.ancestors.shape[1]) for one in state.caches)
        return Past(caches, jnp.pad(state.ancestors, ((0, 0), (0, 0), (0, more))))

    def step(
        self,
        memory: Memory,
        state: Past,
        token: Int[Array, "b n"],
        parent: Int[Array, "b n"],
        index: Int[Array, ""],
    ) -> tuple[Float[Array, "b n v"], Past]:
        """Reads each hypothesis' piece number `index` (BOS is number 0) and predicts the next one."""
        x, state = self.decoder.step(self.embedding.target(token), memory, state, parent, index)
        return self.embedding.factors(x).logits(), state

    def _drop(self, dropout, layout):
        return dropper(dropout, layout, self.config.dropout_sites)
