"""Models: pieces in, next-piece logits out. They know nothing of text, losses or devices."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from transformer.config import TransformerConfig, choose
from transformer.model.dropout import DROPOUT_SITES
from transformer.model.embedding import EMBEDDINGS
from transformer.model.encoder_decoder import EncoderDecoder
from transformer.model.layers import FEED_FORWARDS, NORM_PLACEMENTS, NORMS
from transformer.model.positions import POSITIONS
from transformer.model.recurrent import CELLS, Recurrent, RecurrentAttention
from transformer.model.transformer import Transformer

KINDS: dict[str, type[EncoderDecoder]] = {
    "transformer": Transformer,
    "recurrent": Recurrent,
    "recurrent_attention": RecurrentAttention,
}

# What each field of a config chooses from.
NAMES: dict[str, Mapping[str, Any]] = {
    "kind": KINDS,
    "positions": POSITIONS,
    "norm": NORMS,
    "norm_placement": NORM_PLACEMENTS,
    "feed_forward": FEED_FORWARDS,
    "dropout_sites": DROPOUT_SITES,
    "embeddings": EMBEDDINGS,
    "cell": CELLS,
}


def build(
    config: TransformerConfig, vocab_size: int, trained_lengths: tuple[int, int] | None = None
) -> EncoderDecoder:
    """Makes the model a config names; `trained_lengths` as in `EncoderDecoder`.

    Raises:
      UserError: a name that is not in its dict, or values that its scheme refuses.
    """
    for field, known in NAMES.items():
        choose(known, getattr(config, field), f"model.{field}")
    kind = KINDS[config.kind]
    kind.check(config)
    return kind(config, vocab_size, trained_lengths)


def init_params(model: EncoderDecoder, seed: int) -> PyTree:
    """The weights before training, a pure function of config, vocabulary size and seed."""
    tokens = jnp.ones((1, 2), jnp.int32)
    return jax.jit(model.init)(jax.random.key(seed), tokens, tokens)["params"]
