"""Models: pieces in, next-piece logits out. They know nothing of text, losses or devices."""

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from transformer.config import TransformerConfig, choose
from transformer.model.layers import NORM_PLACEMENTS
from transformer.model.positions import POSITIONS
from transformer.model.transformer import Transformer


def build(config: TransformerConfig, vocab_size: int) -> Transformer:
    """Makes the model a config names.

    Raises:
      UserError: a name that is not in its dict, or values that its scheme refuses.
    """
    choose(POSITIONS, config.positions, "model.positions").check(config)
    choose(NORM_PLACEMENTS, config.norm_placement, "model.norm_placement")
    return Transformer(config, vocab_size)


def init_params(model: Transformer, seed: int) -> PyTree:
    """The weights before training, a pure function of config, vocabulary size and seed."""
    tokens = jnp.ones((1, 2), jnp.int32)
    return jax.jit(model.init)(jax.random.key(seed), tokens, tokens)["params"]


def longest_sequence(config: TransformerConfig) -> int | None:
    """Pieces of the longest sequence a model can place, EOS included; None: any."""
    return choose(POSITIONS, config.positions, "model.positions")(config).longest
