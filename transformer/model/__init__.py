"""Models, which map tokens to next-token logits, or images to classes.

Models know nothing of text, files, losses or devices.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import linen as nn
from jaxtyping import PyTree

from transformer.batch import ImageFormat
from transformer.config import ModelConfig, choose
from transformer.model.block import REMAT
from transformer.model.decoder_only import DecoderOnly
from transformer.model.dropout import DROPOUT_SITES, Dropout
from transformer.model.embedding import EMBEDDINGS, LogitFactors
from transformer.model.encoder_decoder import EncoderDecoder
from transformer.model.ensemble import Ensemble
from transformer.model.image_classifier import POOLINGS, ImageClassifier
from transformer.model.layers import FEED_FORWARDS, NORMS
from transformer.model.positions import POSITIONS
from transformer.model.recurrent import CELLS, Recurrent, RecurrentAttention
from transformer.model.residual import RESIDUALS
from transformer.model.transformer import Transformer

__all__ = [
    "CHOICES",
    "KINDS",
    "TEXT_KINDS",
    "Dropout",
    "EncoderDecoder",
    "Ensemble",
    "ImageClassifier",
    "LogitFactors",
    "build_image_classifier",
    "build_model",
    "check_names",
    "init_params",
    "parameter_shapes",
]

KINDS: dict[str, type[nn.Module]] = {
    "transformer": Transformer,
    "decoder_only": DecoderOnly,
    "recurrent": Recurrent,
    "recurrent_attention": RecurrentAttention,
    "image_classifier": ImageClassifier,
}
# The kinds that `build_model` makes.
TEXT_KINDS = {name: kind for name, kind in KINDS.items() if issubclass(kind, EncoderDecoder)}

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
    "pooling": POOLINGS,
}


def check_names(config: ModelConfig) -> None:
    """Checks the names in a config.

    Raises:
      UserError: a name is unknown.
    """
    for field, entries in (CHOICES | {"remat": REMAT}).items():
        choose(entries, getattr(config, field), f"model.{field}")


def build_model(
    config: ModelConfig, vocab_size: int, trained_lengths: tuple[int, int] | None = None
) -> EncoderDecoder:
    """Makes the model of text that a config describes; see `EncoderDecoder` for `trained_lengths`.

    Raises:
      UserError: a name is unknown, or the position scheme does not accept the config.
    """
    check_names(config)
    kind = choose(TEXT_KINDS, config.kind, "model.kind")
    kind.check(config)
    return kind(config, vocab_size, trained_lengths)


def build_image_classifier(config: ModelConfig, image_format: ImageFormat) -> ImageClassifier:
    """Makes the model of images that a config describes.

    Raises:
      UserError: a name is unknown, or the model does not accept the config or the size of the images.
    """
    check_names(config)
    ImageClassifier.check(config, image_format.shape)
    return ImageClassifier(config, image_format)


def init_params(model: nn.Module, seed: int) -> PyTree:
    """Returns the initial parameters, which depend only on the model and the seed."""
    return _init(model, jax.random.key(seed), model.example_inputs())


@functools.partial(jax.jit, static_argnames="model")  # an equal model is traced once
def _init(model: nn.Module, key: jax.Array, inputs: Sequence[PyTree]) -> PyTree:
    return model.init(key, *inputs)["params"]


def parameter_shapes(model: nn.Module) -> PyTree:
    """Returns the shapes and types of the parameters without computing the parameters."""
    return jax.eval_shape(lambda: init_params(model, seed=0))
