"""Recurrent encoder-decoders, without and with attention, for comparison with the Transformer.

The models read and write one token after another, with Flax's cells. Without attention, the decoder sees the
source as one vector. With attention, it sees one vector per source token, called an annotation.
"""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from transformer.batch import TokenBatch
from transformer.config import ModelConfig
from transformer.model.dropout import NO_DROPOUT, BoundDropout, Dropout, bind_dropout
from transformer.model.encoder_decoder import EncoderDecoder, shift_right
from transformer.model.masks import NEG_INF

CELLS: dict[str, type[nn.RNNCellBase]] = {
    "lstm": nn.OptimizedLSTMCell,  # Hochreiter and Schmidhuber 1997
    "gru": nn.GRUCell,  # Cho et al. 2014; the reset gate acts after the product with U, not before
}

# State of a layer: the cell and hidden state of an LSTM, or the hidden state of a GRU. In a search, each
# hypothesis has its own state.
Carry = tuple[Float[Array, "*r m"], Float[Array, "*r m"]] | Float[Array, "*r m"]


class RecurrentEncoderOutput(NamedTuple):
    """Output of the top encoder layer.

    Attributes:
      annotations: the hidden state at each token. A bidirectional encoder concatenates both directions.
      summary: the hidden state of the backward direction after its last step.
    """

    annotations: Float[Array, "b s a"]
    summary: Float[Array, "b m"]


class RecurrentEncoderCache(NamedTuple):
    """Encoded source, which each decoding step reads. The hypotheses of a sentence share it.

    Attributes:
      annotations: see `RecurrentEncoderOutput`. Without attention, the summary is the only annotation.
      keys: U_a h_j, the part of the alignment model that depends on the source alone; None without attention.
      mask: False in padding.
    """

    annotations: Float[Array, "b s a"]
    keys: Float[Array, "b s m"] | None
    mask: Bool[Array, "b s"]


class Recurrent(EncoderDecoder):
    """An encoder-decoder with a fixed context vector (Sutskever et al. 2014, Cho et al. 2014).

    The encoder reads the source backwards (Sutskever et al., section 3.3). The last state of the encoder is
    the context c. Each decoder layer starts at tanh(V c), and c is an input of every step and of every
    prediction (Cho et al., section 2.2).

    Differs from the paper: recurrence instead of attention. Dropout acts on the connections that are not
    recurrent (Zaremba et al. 2014).
    """

    supports_packing: ClassVar[bool] = False
    attends: ClassVar[bool] = False

    def setup(self):
        super().setup()
        self.encoder = RecurrentEncoder(self.config, self.attends)
        self.decoder = RecurrentDecoder(self.config, self.attends)

    def encode(self, source: TokenBatch, dropout: Dropout | None = None) -> RecurrentEncoderOutput:
        """Returns the annotations and the summary of each row. A row contains one example."""
        x = self.embedding.source(source.tokens)
        return self.encoder(x, source.segment_ids != 0, bind_dropout(dropout, source))

    def decode_vectors(
        self,
        encoder_output: RecurrentEncoderOutput,
        source: TokenBatch,
        target: TokenBatch,
        dropout: Dropout | None = None,
    ) -> Float[Array, "b t m"]:
        """Returns the decoder's output for each target token, given the previous target tokens."""
        x = self.embedding.target(shift_right(target))
        cache = self.decoder.encoder_cache(encoder_output, source.segment_ids != 0)
        carries = self.decoder.initial_carries(encoder_output.summary)
        return self.decoder(x, carries, cache, bind_dropout(dropout, target))[0]

    def start_decoding(
        self, source_tokens: Int[Array, "b s"], num_hypotheses: int, cache_length: int
    ) -> tuple[RecurrentEncoderCache, tuple[Carry, ...]]:
        """Encodes the sentences of a search. The size of the state does not depend on `cache_length`."""
        del cache_length
        source = TokenBatch.from_tokens(source_tokens)
        encoder_output = self.encode(source)
        carries = self.decoder.initial_carries(encoder_output.summary)
        repeated = jax.tree.map(lambda x: jnp.repeat(x[:, None], num_hypotheses, axis=1), carries)
        return self.decoder.encoder_cache(encoder_output, source.segment_ids != 0), repeated

    def decode_step(
        self,
        encoder_cache: RecurrentEncoderCache,
        state: tuple[Carry, ...],
        tokens: Int[Array, "b n"],
        parents: Int[Array, "b n"],
        index: Int[Array, ""],
    ) -> tuple[Float[Array, "b n v"], tuple[Carry, ...]]:
        """Reads one token of each hypothesis and predicts the next, starting from its parent's state."""
        del index

        def inherit(carry):
            return jnp.take_along_axis(carry, parents[..., None], axis=1).reshape(tokens.size, -1)

        x = self.embedding.target(tokens).reshape(tokens.size, 1, -1)
        x, carries = self.decoder(x, jax.tree.map(inherit, state), encoder_cache)
        logits = self.embedding.logit_factors(x).logits().reshape(*tokens.shape, -1)
        return logits, jax.tree.map(lambda carry: carry.reshape(*tokens.shape, -1), carries)


class RecurrentAttention(Recurrent):
    """An encoder-decoder with additive attention and a bidirectional encoder (Bahdanau et al. 2015).

    Differs from Bahdanau et al.: the prediction sees the new state s_i instead of s_{i-1}; layers above
    the first do not attend.
    """

    attends: ClassVar[bool] = True


class RecurrentEncoder(nn.Module):
    """Layers that read the source backwards or, if `bidirectional`, in both directions."""

    config: ModelConfig
    bidirectional: bool

    def setup(self):
        self.backward = self._layers(reverse=True)
        self.forward = self._layers(reverse=False) if self.bidirectional else []

    def __call__(
        self, x: Float[Array, "b s m"], mask: Bool[Array, "b s"], dropout: BoundDropout
    ) -> RecurrentEncoderOutput:
        """Encodes rows. `mask` is False in the padding at the end of a row."""
        lengths = mask.sum(axis=1)
        x = dropout(x, self.path)
        for number, backward in enumerate(self.backward):
            carry, states = backward(x, seq_lengths=lengths)
            if self.bidirectional:
                _, forward_states = self.forward[number](x, seq_lengths=lengths)
                states = jnp.concatenate([forward_states, states], axis=-1)
            x = dropout(states.astype(self.config.dtype), (*self.path, str(number)))
        return RecurrentEncoderOutput(x, _hidden(carry))

    @nn.nowrap
    def _layers(self, reverse: bool) -> list[nn.RNN]:
        return [
            nn.RNN(_cell(self.config), return_carry=True, reverse=reverse, keep_order=True)
            for _ in range(self.config.encoder_depth)
        ]


class RecurrentDecoder(nn.Module):
    """Layers that predict the target. Only the first layer sees the source."""

    config: ModelConfig
    attends: bool

    def setup(self):
        config = self.config
        depth = config.decoder_depth
        if self.attends:
            self.keys = nn.Dense(config.d_model, use_bias=False, dtype=config.dtype)
            first = nn.scan(
                AttendingCell,
                variable_broadcast="params",
                split_rngs={"params": False},
                in_axes=(1, nn.broadcast),
                out_axes=1,
            )(config)
        else:
            first = nn.RNN(_cell(config), return_carry=True)
        self.layers = [first, *(nn.RNN(_cell(config), return_carry=True) for _ in range(1, depth))]
        vectors = 2 if config.cell == "lstm" else 1  # in the carry of a layer
        self.initial = [nn.Dense(config.d_model, dtype=config.dtype) for _ in range(depth * vectors)]
        self.readout = nn.Dense(2 * config.d_model, dtype=config.dtype)

    def encoder_cache(
        self, encoder_output: RecurrentEncoderOutput, mask: Bool[Array, "b s"]
    ) -> RecurrentEncoderCache:
        """Returns the part of the decoder's input that is the same in all steps."""
        annotations, summary = encoder_output
        if self.attends:
            return RecurrentEncoderCache(annotations, self.keys(annotations), mask)
        return RecurrentEncoderCache(summary[:, None], None, jnp.ones((len(summary), 1), bool))

    def initial_carries(self, summary: Float[Array, "b m"]) -> tuple[Carry, ...]:
        """Returns the state of each layer before the first step: tanh(V c)."""
        starts = [jnp.tanh(dense(summary)).astype(jnp.float32) for dense in self.initial]
        if self.config.cell == "lstm":
            return tuple(zip(starts[::2], starts[1::2], strict=True))
        return tuple(starts)

    def __call__(
        self,
        x: Float[Array, "r t m"],
        carries: tuple[Carry, ...],
        cache: RecurrentEncoderCache,
        dropout: BoundDropout = NO_DROPOUT,
    ) -> tuple[Float[Array, "r t m"], tuple[Carry, ...]]:
        """Reads `x`, starting from the states `carries`. Returns the outputs and the new states.

        Each row of `cache` belongs to r / b adjacent rows of `x`, one per hypothesis.
        """
        dtype = self.config.dtype
        x = dropout(x, self.path)
        if self.attends:
            carry, (states, contexts, weights) = self.layers[0](carries[0], x, cache)
            self.sow("intermediates", "weights", weights[:, None])
        else:
            contexts = jnp.repeat(cache.annotations, x.shape[0] // cache.annotations.shape[0], axis=0)
            contexts = jnp.broadcast_to(contexts, (*x.shape[:2], contexts.shape[-1]))
            carry, states = self.layers[0](jnp.concatenate([x, contexts], -1), initial_carry=carries[0])
        new_carries, states = [carry], states.astype(dtype)
        for number, layer in enumerate(self.layers[1:], start=1):
            states = dropout(states, (*self.path, str(number)))
            carry, states = layer(states, initial_carry=carries[number])
            new_carries.append(carry)
            states = states.astype(dtype)
        # Deep output with a maxout of two (Bahdanau et al. 2015, appendix A.2.2).
        states = dropout(states, (*self.path, "states"))
        pairs = self.readout(jnp.concatenate([states, x, contexts.astype(dtype)], axis=-1))
        return pairs.reshape(*pairs.shape[:-1], -1, 2).max(axis=-1), tuple(new_carries)


class AttendingCell(nn.Module):
    """A recurrent cell whose input includes a context of the source, c_i = sum_j alpha_ij h_j."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, carry: Carry, x: Float[Array, "r m"], cache: RecurrentEncoderCache
    ) -> tuple[Carry, tuple[Float[Array, "r m"], Float[Array, "r a"], Float[Array, "r s"]]]:
        """Computes one step. Returns the new carry, and a tuple of the state, the context and alpha."""
        d_model, dtype = self.config.d_model, self.config.dtype
        query = nn.Dense(d_model, use_bias=False, dtype=dtype, name="query")(_hidden(carry))
        align = self.param("align", nn.initializers.normal(d_model**-0.5), (d_model,))
        rows = len(cache.mask)  # the hypotheses of a sentence are the queries of one row
        context, weights = additive_attention(
            query.reshape(rows, -1, d_model), cache.keys, cache.annotations, cache.mask, align
        )
        context = context.reshape(len(query), -1)
        carry, state = _cell(self.config, "cell")(carry, jnp.concatenate([x, context], axis=-1))
        return carry, (state, context, weights.reshape(len(query), -1))


def additive_attention(
    query: Float[Array, "b q m"],
    key: Float[Array, "b s m"],
    value: Float[Array, "b s a"],
    mask: Bool[Array, "b s"],
    align: Float[Array, "m"],
) -> tuple[Float[Array, "b q a"], Float[Array, "b q s"]]:
    """Returns sum_j softmax_j(v_a^T tanh(W_a s + U_a h_j)) h_j (Bahdanau et al. 2015, appendix A.1.2).

    Args:
      query: W_a s, projected.
      key: U_a h_j, projected.
      value: h_j.
      mask: False in padding.
      align: v_a.

    Returns:
      The contexts and the weights, which are float32.
    """
    hidden = jnp.tanh(query[:, :, None] + key[:, None])
    logits = jnp.einsum("bqsm,m->bqs", hidden, align.astype(hidden.dtype), preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(jnp.where(mask[:, None], logits, NEG_INF), axis=-1)
    return jnp.einsum("bqs,bsa->bqa", weights.astype(value.dtype), value), weights


def _cell(config: ModelConfig, name: str | None = None) -> nn.RNNCellBase:
    return CELLS[config.cell](config.d_model, dtype=config.dtype, name=name)


def _hidden(carry: Carry) -> Float[Array, "r m"]:
    return jax.tree.leaves(carry)[-1]
