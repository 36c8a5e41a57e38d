"""Model sizes and sentences that are the same for our code and for every peer. Imports no framework."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from transformer.config import (
    EOS,
    PAD,
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)

VOCAB_SIZE = 10_000


@dataclasses.dataclass(frozen=True)
class Shape:
    """A model and the text on which it is timed.

    Attributes:
      model: the sizes of the model.
      mean_length: mean number of tokens of a target sentence.
      row_length: tokens in a packed row.
      batch_tokens: mean number of target tokens per step, without padding.
    """

    model: ModelConfig
    mean_length: int
    row_length: int
    batch_tokens: int = 4_096

    @property
    def config(self) -> ExperimentConfig:
        """The config for training the model, with the paper's optimizer and a small learning rate."""
        return ExperimentConfig(
            model=self.model,
            data=DataConfig(vocab_size=VOCAB_SIZE, row_length=self.row_length),
            optimizer=OptimizerConfig(learning_rate=1e-4),
            train=TrainConfig(batch_tokens=self.batch_tokens),
        )


# The Transformer-Tiny of Wu et al. 2021 on image captions, and the paper's base and big models on news.
SHAPES: dict[str, Shape] = {
    "tiny": Shape(ModelConfig(num_layers=4, d_model=128, d_ff=256, num_heads=4), 15, 64),
    "base": Shape(ModelConfig(), 28, 128),
    "big": Shape(ModelConfig(d_model=1_024, d_ff=4_096, num_heads=16, dropout_rate=0.3), 28, 128),
}

Sentences = list[Int[np.ndarray, "_"]]


def sentence_pairs(shape: Shape, count: int) -> tuple[Sentences, Sentences]:
    """Returns random sentence pairs. Each sentence ends with EOS.

    The lengths of the two sentences of a pair differ by about 15 percent. No sentence is longer than a row.
    """
    rng = np.random.default_rng(0)
    source = log_normal_lengths(rng, shape.mean_length, count)
    target = source * rng.lognormal(0, 0.15, count)
    return tuple(
        [random_sentence(rng, length, VOCAB_SIZE) for length in lengths]
        for lengths in (np.clip(side, 2, shape.row_length).astype(int) for side in (source, target))
    )


def length_sorted_batches(shape: Shape, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields padded (source, target) batches of sentences of similar length.

    Each batch has about `batch_tokens` target tokens.
    """
    source, target = sentence_pairs(shape, count)
    lengths = np.array([[len(t), len(s)] for s, t in zip(source, target, strict=True)])
    order = np.lexsort((lengths[:, 1], lengths[:, 0]))
    batches = np.cumsum(lengths[order, 0]) // shape.batch_tokens
    for number in np.random.default_rng(1).permutation(batches[-1]):  # leaves out the last, partial batch
        members = order[batches == number]
        yield _padded([source[i] for i in members]), _padded([target[i] for i in members])


def _padded(sentences: Sentences) -> Int[np.ndarray, "b s"]:
    """Returns sentences as padded rows. `pad_rows` in transformer.data does the same, but imports JAX."""
    lengths = [len(tokens) for tokens in sentences]
    rows = [np.pad(tokens, (0, max(lengths) - len(tokens)), constant_values=PAD) for tokens in sentences]
    return np.stack(rows)


def log_normal_lengths(rng: np.random.Generator, mean: float, count: int) -> Float[np.ndarray, "n"]:
    """Returns sentence lengths from a log-normal distribution with sigma 0.5, close to real corpora."""
    return mean * rng.lognormal(-0.125, 0.5, count)


def random_sentence(rng: np.random.Generator, length: int, vocab_size: int) -> Int[np.ndarray, "_"]:
    """Returns a sentence of `length` tokens: random tokens and a final EOS."""
    return np.append(rng.integers(EOS + 2, vocab_size, length - 1), EOS).astype(np.int32)
