"""Models, which map tokens to next-token logits. Models know nothing of text, losses or devices."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from transformer.batch import TokenBatch
from transformer.config import ModelConfig, choose
from transformer.model.block import REMAT
from transformer.model.decoder_only import DecoderOnly
from transformer.model.dropout import DROPOUT_SITES, Dropout
from transformer.model.embedding import EMBEDDINGS, LogitFactors
from transformer.model.encoder_decoder import EncoderDecoder
from transformer.model.ensemble import Ensemble
from transformer.model.layers import FEED_FORWARDS, NORMS
from transformer.model.positions import POSITIONS
from transformer.model.recurrent import CELLS, Recurrent, RecurrentAttention
from transformer.model.residual import RESIDUALS
from transformer.model.transformer import Transformer

__all__ = [
    "CHOICES",
    "KINDS",
    "Dropout",
    "EncoderDecoder",
    "Ensemble",
    "LogitFactors",
    "build_model",
    "init_params",
    "parameter_shapes",
]

KINDS: dict[str, type[EncoderDecoder]] = {
    "transformer": Transformer,
    "decoder_only": DecoderOnly,
    "recurrent": Recurrent,
    "recurrent_attention": RecurrentAttention,
}

# For each field of `ModelConfig` that selects an entry of a dict: the dict.
CHOICES: dict[str, Mapping[str, Any]] = {
    "kind": KINDS,
    "positions": POSITIONS,
    "norm": NORMS,
    "residual": RESIDUALS,
    "feed_forward": FEED_FORWARDS,
    "dropout_sites": DROPOUT_SITES,
    "embeddings": EMBEDDINGS,
    "cell": CELLS,
}


def build_model(
    config: ModelConfig, vocab_size: int, trained_lengths: tuple[int, int] | None = None
) -> EncoderDecoder:
    """Makes the model that a config describes; see `EncoderDecoder` for `trained_lengths`.

    Raises:
      UserError: a name is unknown, or the position scheme does not accept the config.
    """
    for field, entries in (CHOICES | {"remat": REMAT}).items():
        choose(entries, getattr(config, field), f"model.{field}")
    kind = KINDS[config.kind]
    kind.check(config)
    return kind(config, vocab_size, trained_lengths)


def init_params(model: EncoderDecoder, seed: int) -> PyTree:
    """Returns the initial parameters, which depend only on the config, the vocabulary size and the seed."""
    batch = TokenBatch.from_tokens(jnp.ones((1, 2), jnp.int32))
    return jax.jit(model.init)(jax.random.key(seed), batch, batch)["params"]


def parameter_shapes(model: EncoderDecoder) -> PyTree:
    """Returns the shapes and types of the parameters without computing the parameters."""
    return jax.eval_shape(lambda: init_params(model, seed=0))
