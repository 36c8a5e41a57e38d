"""Compares an exported model with ours, using the log-probabilities of random sentences."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.formats.base import Format, table_lengths
from experiments.trained_model import Trained
from transformer.batch import TokenBatch
from transformer.config import EOS
from transformer.data.batching import pad_rows

NUM_SENTENCES = 8
MAX_TOKENS = 48  # in a random sentence


def largest_difference(trained: Trained, form: Format, folder: Path) -> float:
    """Returns the largest difference, in nats, between the two models' log-probabilities of a token."""
    rng = np.random.default_rng(0)
    vocab_size = trained.model.vocab_size
    longest = min(MAX_TOKENS, *(length - 1 for length in table_lengths(trained)))
    sources, targets = (
        [
            rng.integers(EOS + 2, vocab_size, length).tolist()
            for length in rng.integers(1, longest + 1, NUM_SENTENCES)
        ]
        for _ in range(2)
    )
    exported = form.score(folder, sources, targets)
    ours = score(trained, sources, targets)
    return max(float(np.abs(a - b).max()) for a, b in zip(ours, exported, strict=True))


def score(
    trained: Trained, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
) -> list[np.ndarray]:
    """Returns the log-probability, in nats, of each target token and of the EOS after the last token.

    Our model computes the log-probabilities in float32.
    """
    model = trained.model.clone(config=dataclasses.replace(trained.model.config, dtype="float32"))
    source, target = (pad_rows([[*tokens, EOS] for tokens in side]) for side in (sources, targets))
    batches = TokenBatch.from_tokens(source), TokenBatch.from_tokens(target)
    logits = jax.jit(model.apply)({"params": trained.params}, *batches)
    log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), target[..., None], axis=-1)[..., 0]
    return [np.array(row[: len(tokens) + 1]) for row, tokens in zip(log_probs, targets, strict=True)]
