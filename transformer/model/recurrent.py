"""The Transformer's rivals: recurrent encoder-decoders, without and with attention.

Both read and write one piece after the other, with the cells of Flax. What differs is what the decoder sees
of the source: one vector, or an annotation of each piece.
"""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from transformer.config import TransformerConfig
from transformer.model.dropout import Drop, Dropout, dropper
from transformer.model.encoder_decoder import EncoderDecoder
from transformer.model.masks import Layout

CELLS: dict[str, type[nn.RNNCellBase]] = {
    "lstm": nn.OptimizedLSTMCell,  # Hochreiter and Schmidhuber 1997
    "gru": nn.GRUCell,  # Cho et al. 2014; the reset gate after the product with U, not before it
}

# A layer's memory: LSTM's cell and hidden state, or GRU's hidden state; in a search, for each hypothesis.
Carry = tuple[Float[Array, "*r m"], Float[Array, "*r m"]] | Float[Array, "*r m"]


class Encoded(NamedTuple):
    """What an encoder knows of a source.

    Attributes:
      annotations: the top layer's states at each piece, in both directions where there are two.
      summary: the top layer's state after its last step, the backward one where there are two.
    """

    annotations: Float[Array, "b s a"]
    summary: Float[Array, "b m"]


class RecurrentMemory(NamedTuple):
    """What the decoder needs of the source; in a search, shared by a sentence's hypotheses.

    Attributes:
      annotations: as in `Encoded`; without attention the summary alone, as that of a single piece.
      keys: U_a h_j, the part of the alignment model that depends on the source alone.
      mask: which annotations there are.
    """

    annotations: Float[Array, "b s a"]
    keys: Float[Array, "b s m"] | None
    mask: Bool[Array, "b s"]


class Recurrent(EncoderDecoder):
    """An encoder-decoder with a fixed context vector (Sutskever et al. 2014, Cho et al. 2014).

    The encoder reads the source backwards, as Sutskever et al. do (their section 3.3); its last state is the
    context c. Each decoder layer begins at tanh(V c), and c is an input of every step and of every
    prediction, as in Cho et al. (their section 2.2).

    Differs from the paper: recurrence in the place of attention. Dropout falls on the connections that are
    not recurrent (Zaremba et al. 2014).
    """

    packs: ClassVar[bool] = False
    attends: ClassVar[bool] = False

    def setup(self):
        super().setup()
        self.encoder = RecurrentEncoder(self.config, self.attends)
        self.decoder = RecurrentDecoder(self.config, self.attends)

    def encode(
        self, source: Int[Array, "b s"], layout: Layout | None = None, dropout: Dropout | None = None
    ) -> Encoded:
        """Annotations and summary of each row, which holds one example."""
        layout = Layout.of(source) if layout is None else layout
        return self.encoder(self.embedding.source(source), layout, dropper(dropout, layout))

    def decode_vectors(
        self,
        x: Float[Array, "b t m"],
        layout: Layout,
        encoded: Encoded,
        source_layout: Layout,
        dropout: Dropout | None,
    ) -> Float[Array, "b t m"]:
        """The decoder's output for each embedded piece of its input."""
        memory = self.decoder.memory(encoded, source_layout)
        carries = self.decoder.first_carries(encoded.summary)
        return self.decoder(x, carries, memory, dropper(dropout, layout))[0]

    def start(
        self, source: Int[Array, "b s"], hypotheses: int, length: int
    ) -> tuple[RecurrentMemory, tuple[Carry, ...]]:
        """Encodes sentences, one a row; a state is as large at any length."""
        del length
        layout = Layout.of(source)
        encoded = self.encode(source, layout)
        carries = self.decoder.first_carries(encoded.summary)
        repeated = jax.tree.map(lambda x: jnp.repeat(x[:, None], hypotheses, axis=1), carries)
        return self.decoder.memory(encoded, layout), repeated

    def step(
        self,
        memory: RecurrentMemory,
        state: tuple[Carry, ...],
        token: Int[Array, "b n"],
        parent: Int[Array, "b n"],
        index: Int[Array, ""],
    ) -> tuple[Float[Array, "b n v"], tuple[Carry, ...]]:
        """Reads each hypothesis' next piece, after its parent's, and predicts the one after it."""
        del index
        x = self.embedding.target(token).reshape(token.size, 1, -1)

        def continued(carry):
            return jnp.take_along_axis(carry, parent[..., None], axis=1).reshape(token.size, -1)

        carries = jax.tree.map(continued, state)
        x, carries = self.decoder(x, carries, memory, Drop())
        logits = self.embedding.factors(x).logits().reshape(*token.shape, -1)
        return logits, jax.tree.map(lambda one: one.reshape(*token.shape, -1), carries)


class RecurrentAttention(Recurrent):
    """An encoder-decoder with additive attention and a bidirectional encoder (Bahdanau et al. 2015).

    Differs from Bahdanau et al.: the prediction sees the new state s_i, where theirs sees s_{i-1}; a second
    layer and the ones above it are plain ones, on top of the layer that attends.
    """

    attends: ClassVar[bool] = True


class RecurrentEncoder(nn.Module):
    """Layers that read the source backwards or, where `both_ways`, in both directions."""

    config: TransformerConfig
    both_ways: bool

    def setup(self):
        def layers(backward):
            return [
                nn.RNN(_cell(self.config), return_carry=True, reverse=backward, keep_order=True)
                for _ in range(self.config.encoder_depth)
            ]

        self.backward = layers(backward=True)
        self.forward = layers(backward=False) if self.both_ways else []

    def __call__(self, x: Float[Array, "b s m"], layout: Layout, drop: Drop) -> Encoded:
        lengths = (layout.segments != 0).sum(axis=1)
        x = drop(x, self.path)
        for number, backward in enumerate(self.backward):
            carry, states = backward(x, seq_lengths=lengths)
            if self.both_ways:
                _, forward = self.forward[number](x, seq_lengths=lengths)
                states = jnp.concatenate([forward, states], axis=-1)
            x = drop(states.astype(self.config.dtype), (*self.path, str(number)))
        return Encoded(x, _hidden(carry))


class RecurrentDecoder(nn.Module):
    """Layers that write the target, the first of which sees the source."""

    config: TransformerConfig
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
        leaves = 2 if config.cell == "lstm" else 1
        self.initial = [nn.Dense(config.d_model, dtype=config.dtype) for _ in range(depth * leaves)]
        self.readout = nn.Dense(2 * config.d_model, dtype=config.dtype)

    def memory(self, encoded: Encoded, layout: Layout) -> RecurrentMemory:
        """What the steps read."""
        if self.attends:
            return RecurrentMemory(encoded.annotations, self.keys(encoded.annotations), layout.segments != 0)
        summary = encoded.summary[:, None]
        return RecurrentMemory(summary, None, jnp.ones(summary.shape[:2], bool))

    def first_carries(self, summary: Float[Array, "b m"]) -> tuple[Carry, ...]:
        """Where each layer begins: tanh(V c)."""
        starts = [jnp.tanh(dense(summary)).astype(jnp.float32) for dense in self.initial]
        if self.config.cell == "lstm":
            return tuple(zip(starts[::2], starts[1::2], strict=True))
        return tuple(starts)

    def __call__(
        self, x: Float[Array, "r t m"], carries: tuple[Carry, ...], memory: RecurrentMemory, drop: Drop
    ) -> tuple[Float[Array, "r t m"], tuple[Carry, ...]]:
        """Writes on from `carries`: as many rows a source as r has more than `memory`."""
        dtype = self.config.dtype
        x = drop(x, self.path)
        if self.attends:
            first, (states, contexts, weights) = self.layers[0](carries[0], x, memory)
            self.sow("intermediates", "weights", weights[:, None])
        else:
            contexts = jnp.repeat(memory.annotations, x.shape[0] // memory.annotations.shape[0], axis=0)
            contexts = jnp.broadcast_to(contexts, (*x.shape[:2], contexts.shape[-1]))
            first, states = self.layers[0](jnp.concatenate([x, contexts], -1), initial_carry=carries[0])
        after, states = [first], states.astype(dtype)
        for number, layer in enumerate(self.layers[1:], start=1):
            dropped = drop(states, (*self.path, str(number)))
            carry, states = layer(dropped, initial_carry=carries[number])
            after.append(carry)
            states = states.astype(dtype)
        # Deep output with a maxout of two (Bahdanau et al. 2015, appendix A.2.2).
        seen = jnp.concatenate([drop(states, (*self.path, "states")), x, contexts.astype(dtype)], axis=-1)
        pieces = self.readout(seen)
        return pieces.reshape(*pieces.shape[:-1], -1, 2).max(axis=-1), tuple(after)


class AttendingCell(nn.Module):
    """A cell that looks at the source before each step: c_i = sum_j alpha_ij h_j."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self, carry: Carry, x: Float[Array, "r m"], memory: RecurrentMemory
    ) -> tuple[Carry, tuple[Float[Array, "r m"], Float[Array, "r a"], Float[Array, "r s"]]]:
        """One step. Returns the carry, and the state, the context and the weights alpha."""
        query = nn.Dense(self.config.d_model, use_bias=False, dtype=self.config.dtype, name="query")(
            _hidden(carry)
        )
        align = self.param("align", nn.initializers.normal(self.config.d_model**-0.5), query.shape[-1:])
        rows = memory.mask.shape[0]  # the hypotheses of a sentence are the queries of its row
        context, weights = additive_attention(
            query.reshape(rows, -1, query.shape[-1]), memory.keys, memory.annotations, memory.mask, align
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
    """sum_j softmax_j(v_a^T tanh(W_a s + U_a h_j)) h_j (Bahdanau et al. 2015, section 3.1, appendix A.1.2).

    Args:
      query: W_a s, projected already.
      key: U_a h_j, projected already.
      value: h_j.
      mask: which of them there are.
      align: v_a.

    Returns:
      The contexts and the weights, which are float32.
    """
    hidden = jnp.tanh(query[:, :, None] + key[:, None])
    scores = jnp.einsum("bqsm,m->bqs", hidden, align.astype(hidden.dtype), preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -1e9), axis=-1)
    return jnp.einsum("bqs,bsa->bqa", weights.astype(value.dtype), value), weights


def _cell(config: TransformerConfig, name: str | None = None) -> nn.RNNCellBase:
    return CELLS[config.cell](config.d_model, dtype=config.dtype, name=name)


def _hidden(carry: Carry) -> Float[Array, "r m"]:
    return jax.tree.leaves(carry)[-1]
