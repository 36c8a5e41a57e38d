"""Times training at several sentence lengths, with the same number of tokens per batch."""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.speed.trainer import Trainer
from experiments.speed.workload import random_sentence
from transformer.batch import Batch, TokenBatch
from transformer.config import ExperimentConfig, UserError
from transformer.model import build_model


class FixedLengthTraining:
    """Trains repeatedly on one batch without padding, in which every sentence has `length` tokens.

    Attributes:
      flops_per_step: FLOPs of the matrix products of an update.
    """

    def __init__(self, config: ExperimentConfig, length: int, batch_tokens: int):
        if config.task != "translation":
            raise UserError(
                f"--sweep has task={config.task}; give a sweep of translation, whose lengths vary"
            )
        limit = build_model(config.model, config.data.vocab_size).max_lengths.source
        if limit is not None and length > limit:
            raise UserError(
                f"--lengths has {length}, but the model accepts at most {limit} tokens; leave {length} out"
            )
        self._trainer = Trainer(config)
        batch = full_batch(batch_tokens // length, length, config.data.vocab_size)
        self._batch = self._trainer.shard(batch)
        self.flops_per_step = self._trainer.flops(batch)

    def turn(self, steps: int) -> float:
        """Returns the seconds that `steps` training steps take."""
        started = time.perf_counter()
        for _ in range(steps):
            totals = self._trainer.step(self._batch)
        totals["loss"].block_until_ready()
        return time.perf_counter() - started


def full_batch(num_rows: int, length: int, vocab_size: int) -> Batch:
    """Returns a batch of random sentences, one per row."""
    rng, shape = np.random.default_rng(0), (num_rows, length)
    segment_ids = np.broadcast_to(np.arange(1, num_rows + 1, dtype=np.int32)[:, None], shape)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32)[None], shape)
    sides = [
        TokenBatch(
            np.stack([random_sentence(rng, length, vocab_size) for _ in range(num_rows)]),
            segment_ids,
            positions,
        )
        for _ in range(2)
    ]
    return Batch(*sides, np.full(num_rows, length, np.int32))


def benchmark_lengths(
    configs: Mapping[str, ExperimentConfig],
    lengths: Sequence[int],
    batch_tokens: int,
    repeats: int,
    turn_seconds: float,
) -> dict[str, dict[int, dict[str, Any]]]:
    """Times training of each config at each length. In each round, every config takes one turn.

    Args:
      configs: the configs by name.
      lengths: tokens per sentence, in both languages.
      batch_tokens: source tokens per step; the number of target tokens is the same.
      repeats: number of rounds.
      turn_seconds: approximate duration of a turn.

    Returns:
      By name and length: tokens_per_second (target tokens per second, the median over rounds) and spread
      (the slowest and the fastest round).
    """
    results: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in configs}
    for length in lengths:
        trainings = {
            name: FixedLengthTraining(config, length, batch_tokens) for name, config in configs.items()
        }
        for training in trainings.values():
            training.turn(2)  # compiles and warms up
        steps = {name: max(1, round(turn_seconds / training.turn(1))) for name, training in trainings.items()}
        speeds: dict[str, list[float]] = {name: [] for name in configs}
        for _ in range(repeats):
            for name, training in trainings.items():
                tokens = steps[name] * (batch_tokens // length) * length
                speeds[name].append(tokens / training.turn(steps[name]))
        for name, values in speeds.items():
            results[name][length] = {
                "tokens_per_second": statistics.median(values),
                "spread": [min(values), max(values)],
            }
    return results
