"""Model sizes and texts that are the same for our code and for every peer. Imports no framework."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from configs import gpt
from transformer.config import (
    BOS,
    EOS,
    PAD,
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    from_dict,
)

VOCAB_SIZE = 10_000


@dataclasses.dataclass(frozen=True)
class Shape:
    """A model and the text on which it is timed.

    Attributes:
      config: the config of the training.
      mean_length: mean number of tokens of a target sentence or of a document.
      num_texts: number of sentence pairs or documents.
    """

    config: ExperimentConfig
    mean_length: int
    num_texts: int


def translation(model: ModelConfig, mean_length: int, row_length: int, batch_tokens: int = 4_096) -> Shape:
    """Returns the shape of a translation model, with the paper's optimizer and a small learning rate."""
    config = ExperimentConfig(
        model=model,
        data=DataConfig(vocab_size=VOCAB_SIZE, row_length=row_length),
        optimizer=OptimizerConfig(learning_rate=1e-4),
        train=TrainConfig(batch_tokens=batch_tokens),
    )
    return Shape(config, mean_length, num_texts=20_000)


SHAPES: dict[str, Shape] = {
    # The Transformer-Tiny of Wu et al. 2021 on image captions, and the paper's base and big models on news.
    "tiny": translation(ModelConfig(num_layers=4, d_model=128, d_ff=256, num_heads=4), 15, 64),
    "base": translation(ModelConfig(), 28, 128),
    "big": translation(ModelConfig(d_model=1_024, d_ff=4_096, num_heads=16, dropout_rate=0.3), 28, 128),
    # The language model of characters that nanoGPT trains on a CPU.
    "gpt": Shape(from_dict(gpt.get_config("shakespeare,char,cpu").to_dict()), 1_000, num_texts=1_000),
}

Texts = list[Int[np.ndarray, "_"]]  # the tokens of each sentence or document


def sentence_pairs(shape: Shape) -> tuple[Texts, Texts]:
    """Returns random sentence pairs. Each sentence ends with EOS.

    The lengths of the two sentences of a pair differ by about 15 percent. No sentence is longer than a row.
    """
    rng, data = np.random.default_rng(0), shape.config.data
    source = log_normal_lengths(rng, shape.mean_length, shape.num_texts)
    target = source * rng.lognormal(0, 0.15, shape.num_texts)
    return tuple(
        [random_sentence(rng, length, data.vocab_size) for length in lengths]
        for lengths in (np.clip(side, 2, data.row_length).astype(int) for side in (source, target))
    )


def documents(shape: Shape) -> Texts:
    """Returns random documents. Each document ends with EOS."""
    rng = np.random.default_rng(0)
    lengths = np.maximum(2, log_normal_lengths(rng, shape.mean_length, shape.num_texts)).astype(int)
    return [random_sentence(rng, length, shape.config.data.vocab_size) for length in lengths]


def window_batches(shape: Shape) -> Iterator[tuple[Int[np.ndarray, "b s"], Int[np.ndarray, "b s"]]]:
    """Yields (inputs, labels) batches of full rows, cut from the documents one after another."""
    length, batch_tokens = shape.config.data.row_length, shape.config.train.batch_tokens
    labels = np.concatenate(documents(shape))
    inputs = np.append(BOS, labels[:-1])
    size = batch_tokens // length * length
    for start in range(0, len(labels) - size + 1, size):  # leaves out the last, partial batch
        yield tuple(side[start : start + size].reshape(-1, length) for side in (inputs, labels))


def length_sorted_batches(shape: Shape) -> Iterator[tuple[Int[np.ndarray, "b s"], Int[np.ndarray, "b s"]]]:
    """Yields padded (source, target) batches of sentences of similar length.

    Each batch has about `batch_tokens` target tokens.
    """
    source, target = sentence_pairs(shape)
    lengths = np.array([[len(t), len(s)] for s, t in zip(source, target, strict=True)])
    order = np.lexsort((lengths[:, 1], lengths[:, 0]))
    batches = np.cumsum(lengths[order, 0]) // shape.config.train.batch_tokens
    for number in np.random.default_rng(1).permutation(batches[-1]):  # leaves out the last, partial batch
        members = order[batches == number]
        yield _padded([source[i] for i in members]), _padded([target[i] for i in members])


def _padded(sentences: Texts) -> Int[np.ndarray, "b s"]:
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
