"""What is timed: the same model sizes and sentences for us and for every peer. Imports no framework."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from transformer.config import EOS, TransformerConfig
from transformer.decoding.batches import padded

VOCAB = 10_000


class Shape(NamedTuple):
    """A model, and the text it is timed on.

    Attributes:
      model: its sizes.
      mean_length: pieces of a target sentence, on average.
      row_length: pieces in a packed row.
      batch_tokens: target pieces a step, on average, padding not counted.
    """

    model: TransformerConfig
    mean_length: int
    row_length: int
    batch_tokens: int = 4_096


# The Transformer-Tiny of Wu et al. 2021 on image captions, and the paper's base model on news.
SHAPES: dict[str, Shape] = {
    "tiny": Shape(TransformerConfig(num_layers=4, d_model=128, d_ff=256, num_heads=4), 15, 64),
    "base": Shape(TransformerConfig(), 28, 128),
}


def sentences(shape: Shape, count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Random sentence pairs, each closed by EOS.

    A target's length differs from its source's by some 15 per cent. None is longer than a row.
    """
    rng = np.random.default_rng(0)
    source = log_normal(rng, shape.mean_length, count)
    target = source * rng.lognormal(0, 0.15, count)
    return tuple(
        [np.append(rng.integers(EOS + 2, VOCAB, length - 1), EOS).astype(np.int32) for length in lengths]
        for lengths in (np.clip(one, 2, shape.row_length).astype(int) for one in (source, target))
    )


def bucketed(shape: Shape, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Padded (source, target) batches of sentences of similar length, `batch_tokens` target pieces each."""
    source, target = sentences(shape, count)
    lengths = np.array([[len(t), len(s)] for s, t in zip(source, target, strict=True)])
    order = np.lexsort((lengths[:, 1], lengths[:, 0]))
    batches = np.cumsum(lengths[order, 0]) // shape.batch_tokens
    for number in np.random.default_rng(1).permutation(batches[-1]):  # the last, partial one is left out
        members = order[batches == number]
        yield padded([source[i] for i in members]), padded([target[i] for i in members])


def log_normal(rng: np.random.Generator, mean: float, count: int) -> np.ndarray:
    """Lengths of sentences: log-normal with sigma 0.5, as those of real corpora nearly are."""
    return mean * rng.lognormal(-0.125, 0.5, count)
