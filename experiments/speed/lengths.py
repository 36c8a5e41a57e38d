"""Times training at several sentence lengths, the pieces of a batch held constant."""

import statistics
import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from transformer.config import EOS, ExperimentConfig, UserError
from transformer.data.pipeline import Batch, Rows
from transformer.model import build, init_params
from transformer.training.losses import make_loss_fn
from transformer.training.optimizer import adam
from transformer.training.placement import Jit
from transformer.training.setup import make_hyper
from transformer.training.step import initial_state, make_train_step


class Trainer:
    """Training on one batch, over and over: every sentence has `length` pieces, and no slot is padding."""

    def __init__(self, config: ExperimentConfig, length: int, batch_tokens: int):
        model, placement, optimizer = (
            build(config.model, config.data.vocab_size),
            Jit(),
            adam(config.optimizer),
        )
        most = model.longest.source
        if most is not None and length > most:
            raise UserError(f"--lengths has {length}; the model places at most {most} pieces")
        self._state = placement.replicate(initial_state(init_params(model, 0), optimizer))
        self._step = make_train_step(
            make_loss_fn(model),
            optimizer,
            config.optimizer.warmup_steps,
            placement,
            config.train.accumulation,
        )
        rows = batch(batch_tokens // length, length, config.data.vocab_size)
        self._batch = placement.shard(rows, config.train.accumulation)
        self._rest = (jax.random.key(0), make_hyper(config))

    def __call__(self, steps: int) -> float:
        """Seconds of some steps."""
        started = time.perf_counter()
        for _ in range(steps):
            self._state, sums, _ = self._step(self._state, self._batch, *self._rest)
        sums.loss.block_until_ready()
        return time.perf_counter() - started


def batch(rows: int, length: int, vocab_size: int) -> Batch:
    """Random pieces, a sentence a row."""
    rng = np.random.default_rng(0)
    segments = np.broadcast_to(np.arange(1, rows + 1, dtype=np.int32)[:, None], (rows, length))
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))

    def side():
        tokens = rng.integers(EOS + 2, vocab_size, (rows, length), dtype=np.int32)
        tokens[:, -1] = EOS
        return Rows(tokens, segments, positions)

    return Batch(side(), side(), np.full(rows, length, np.int32))


def benchmark_lengths(
    configs: Mapping[str, ExperimentConfig],
    lengths: Sequence[int],
    batch_tokens: int,
    repeats: int,
    seconds: float,
) -> dict[str, dict[int, dict]]:
    """Times each config at each length; within a round they take turns.

    Args:
      configs: by name.
      lengths: pieces of a sentence, in both languages.
      batch_tokens: target pieces a step, and as many source pieces.
      repeats: rounds.
      seconds: that a turn shall take, about.

    Returns:
      tokens_per_second, the median of the rounds, and spread, the slowest and the fastest one, in target
      pieces: by name and length.
    """
    results: dict[str, dict[int, dict]] = {name: {} for name in configs}
    for length in lengths:
        trainers = {name: Trainer(config, length, batch_tokens) for name, config in configs.items()}
        for train in trainers.values():
            train(2)  # compiles, warms up
        steps = {name: max(1, round(seconds / train(1))) for name, train in trainers.items()}
        speeds: dict[str, list[float]] = {name: [] for name in configs}
        for _ in range(repeats):
            for name, train in trainers.items():
                tokens = steps[name] * (batch_tokens // length) * length
                speeds[name].append(tokens / train(steps[name]))
        for name, taken in speeds.items():
            results[name][length] = {
                "tokens_per_second": statistics.median(taken),
                "spread": [min(taken), max(taken)],
            }
    return results
