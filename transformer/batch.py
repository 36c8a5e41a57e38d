"""Batches of tokens and images, which the data pipeline makes and the models read."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from transformer.config import PAD

IntArray = jax.Array | np.ndarray


class TokenBatch(NamedTuple):
    """Rows of tokens, each of which may hold several packed examples.

    Attributes:
      tokens: [b, t], the tokens, padded with `PAD`.
      segment_ids: [b, t], the id of the example that a token belongs to. An id is positive and unique within
        a row; padding has id 0. The tokens of an example are contiguous. A source and its target have the
        same id.
      positions: [b, t], the position of a token in its example, counted from 0. Padding has position 0.
    """

    tokens: IntArray
    segment_ids: IntArray
    positions: IntArray

    @classmethod
    def from_tokens(cls, tokens: IntArray) -> "TokenBatch":
        """Makes a batch of rows that hold one example each and are padded at the end with `PAD`."""
        rows = jnp.arange(1, tokens.shape[0] + 1, dtype=jnp.int32)[:, None]
        index = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        return cls(
            tokens=tokens,
            segment_ids=jnp.where(tokens != PAD, rows, 0),
            # Padding has position 0, so that no position lies past the end of a position table.
            positions=jnp.where(tokens != PAD, index, 0),
        )


class Batch(NamedTuple):
    """A batch of sentence pairs.

    Attributes:
      source: the source sentences.
      target: the target sentences.
      characters: [b], the number of characters in the raw target sentences of each row.
    """

    source: TokenBatch
    target: TokenBatch
    characters: IntArray


class TextBatch(NamedTuple):
    """A batch of windows of documents.

    Attributes:
      inputs: for each token to predict, the token before it; BOS at the start of a document.
      labels: [b, t], the tokens to predict, padded with `PAD`.
      bytes: [b], the number of bytes in the text of the labels of each row.
    """

    inputs: TokenBatch
    labels: IntArray
    bytes: IntArray


class ImageBatch(NamedTuple):
    """A batch of images with their classes.

    Attributes:
      images: [b, y, x, c], the pixels, uint8.
      labels: [b], the number of the class of each image.
      ids: [b], the index of each image in its split plus one, which is unique in a batch; 0 for padding.
    """

    images: IntArray
    labels: IntArray
    ids: IntArray


class ImageFormat(NamedTuple):
    """The images and classes of a data set, for which a model is made.

    Attributes:
      shape: height and width in pixels, and number of channels: 1 (gray) or 3 (red, green, blue).
      classes: names of the classes.
      mean: mean of each channel over the training images, where white is 1.
      std: standard deviation of each channel over the training images.
    """

    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "ImageFormat":
        """Returns the format whose fields JSON has stored as lists."""
        return cls(*(tuple(values[field]) for field in cls._fields))
