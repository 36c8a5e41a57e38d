"""Whether an exported model says what ours says."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.exporting.format import Format, rows
from experiments.runs import Trained
from transformer.config import EOS
from transformer.decoding.batches import padded

SENTENCES = 8  # that both are asked about
LONGEST = 48  # pieces of such a sentence


def difference(trained: Trained, form: Format, folder: Path) -> float:
    """The largest difference in log-probability between ours and the exported model, in nats a piece."""
    rng = np.random.default_rng(0)
    vocabulary, longest = trained.model.vocab_size, min(LONGEST, *(one - 1 for one in rows(trained)))
    sources, targets = (
        [
            rng.integers(EOS + 2, vocabulary, length).tolist()
            for length in rng.integers(1, longest + 1, SENTENCES)
        ]
        for _ in range(2)
    )
    theirs = form.score(folder, sources, targets)
    ours = scores(trained, sources, targets)
    return max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))


def scores(
    trained: Trained, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
) -> list[np.ndarray]:
    """Our log-probabilities of each target's pieces and then of EOS, in float32."""
    model = trained.model.clone(config=dataclasses.replace(trained.model.config, dtype="float32"))
    source, target = (padded([[*line, EOS] for line in lines]) for lines in (sources, targets))
    logits = jax.jit(model.apply)({"params": trained.params}, source, target)
    log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), target[..., None], axis=-1)[..., 0]
    return [np.array(row[: len(line) + 1]) for row, line in zip(log_probs, targets, strict=True)]
