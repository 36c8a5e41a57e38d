"""Probabilities and attention of a trained classifier of images."""

import functools

import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from transformer.batch import ImageBatch
from transformer.config import UserError
from transformer.model import ImageClassifier


@functools.partial(jax.jit, static_argnames="model")
def _probabilities(model: ImageClassifier, params: PyTree, batch: ImageBatch) -> Float[Array, "b v"]:
    return jax.nn.softmax(model.apply({"params": params}, batch.images, batch.ids))


def class_probabilities(
    model: ImageClassifier, params: PyTree, batch: ImageBatch
) -> Float[np.ndarray, "b v"]:
    """Returns the probability of each class for each image of a batch."""
    return np.asarray(_probabilities(model, params, batch))


@functools.partial(jax.jit, static_argnames="model")
def _weights(model: ImageClassifier, params: PyTree, batch: ImageBatch) -> list[Float[Array, "b h q k"]]:
    _, state = model.apply({"params": params}, batch.images, batch.ids, mutable=["intermediates"])
    layers = state["intermediates"]["encoder"]
    return [layers[f"layers_{number}"]["self_attention"]["weights"][0] for number in range(len(layers))]


def class_token_attention(
    model: ImageClassifier, params: PyTree, batch: ImageBatch
) -> Float[np.ndarray, "layers b h y x"]:
    """Returns the attention of the class token to each patch, by layer, image, head, row and column.

    The weight of the class token itself is left out, so the weights of a head sum to at most 1.

    Raises:
      UserError: the model has no class token.
    """
    grid = model.grid
    if not grid.num_class_tokens:
        raise UserError(
            f"model.pooling is {model.config.pooling!r}, so there is no class token whose attention could be "
            "drawn; use a run with model.pooling=class_token"
        )
    weights = np.stack(jax.device_get(_weights(model, params, batch)))[:, :, :, 0, 1:]
    return weights.reshape(*weights.shape[:-1], grid.rows, grid.columns)
