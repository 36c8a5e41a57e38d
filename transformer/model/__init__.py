"""Models: pieces in, next-piece logits out. They know nothing of text, losses or devices."""

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from transformer.config import TransformerConfig, choose
from transformer.model.embedding import EMBEDDINGS
from transformer.model.encoder_decoder import EncoderDecoder
from transformer.model.recurrent import Recurrent, RecurrentAttention
from transformer.model.transformer import Transformer

KINDS: dict[str, type[EncoderDecoder]] = {
    "transformer": Transformer,
    "recurrent": Recurrent,
    "recurrent_attention": RecurrentAttention,
}


def build(config: TransformerConfig, vocab_size: int) -> EncoderDecoder:
    """Makes the model a config names.

    Raises:
      UserError: a name that is not in its dict, or values that its scheme refuses.
    """
    kind = choose(KINDS, config.kind, "model.kind")
    choose(EMBEDDINGS, config.embeddings, "model.embeddings")
    kind.check(config)
    return kind(config, vocab_size)


def init_params(model: EncoderDecoder, seed: int) -> PyTree:
    """The weights before training, a pure function of config, vocabulary size and seed."""
    tokens = jnp.ones((1, 2), jnp.int32)
    return jax.jit(model.init)(jax.random.key(seed), tokens, tokens)["params"]
