"""Times training with our training step and with peers (other toolkits).

Our training step is that of `experiments.train`. The times include the data pipeline.
"""

import contextlib
import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.speed.peer import PeerProcess
from experiments.speed.trainer import Trainer
from experiments.speed.workload import Shape, Texts, documents, sentence_pairs
from transformer.config import UserError
from transformer.data.packing import PackedPlan
from transformer.data.pipeline import Batches, TrainingBatches, serve
from transformer.data.splits import Side, Split
from transformer.data.windows import WindowBatches, WindowPlan

NUM_STEPS = 10**6  # more than a benchmark makes


class Interval(NamedTuple):
    """Consecutive training steps: number of steps, duration in seconds, and number of target tokens."""

    steps: int
    seconds: float
    tokens: float

    @property
    def speed(self) -> float:
        """Target tokens per second."""
        return self.tokens / self.seconds


def matmul_rate(size: int = 2_048, repeats: int = 8, *, dtype: Any = jnp.float32) -> float:
    """Returns the FLOPs per second of the fastest of several products of matrices [size, size]."""
    a = jnp.asarray(np.random.default_rng(0).normal(size=(size, size)), dtype)
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        product(a, a).block_until_ready()
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)


class RowBatches(NamedTuple):
    """Batches of equally many rows.

    Attributes:
      batches: the batches of all steps.
      slots: number of target tokens that fit into a batch.
    """

    batches: Batches
    slots: int


def packed_pairs(shape: Shape) -> RowBatches:
    """Returns batches of packed rows of random sentence pairs, as the task translation makes them."""
    split, config = random_split(sentence_pairs(shape)), shape.config
    lengths = split.source.lengths, split.target.lengths
    plan = PackedPlan(*lengths, config.data.row_length, config.train.batch_tokens, config.train.seed)
    return RowBatches(TrainingBatches(split, plan, NUM_STEPS), plan.num_rows * plan.target_length)


def windows(shape: Shape) -> RowBatches:
    """Returns batches of windows of random documents, as the task language_modeling makes them."""
    split, config = random_split([documents(shape)]), shape.config
    byte_lengths = np.ones(config.data.vocab_size, np.int32)
    row_length, train = config.data.row_length, config.train
    plan = WindowPlan(split.target.lengths, row_length, train.batch_tokens, train.seed)
    return RowBatches(WindowBatches(split, byte_lengths, plan, NUM_STEPS), plan.num_rows * row_length)


def random_split(sides: Sequence[Texts]) -> Split:
    """Returns random texts as a split in memory."""
    arrays = [Side(np.concatenate(texts), np.cumsum([0, *map(len, texts)])) for texts in sides]
    return Split(tuple(arrays), np.array([len(text) for text in sides[-1]]))


# By task: function from a shape to the batches that our code trains on.
BATCHES: dict[str, Callable[[Shape], RowBatches]] = {
    "translation": packed_pairs,
    "language_modeling": windows,
}


class Training:
    """Trains our model on the random texts of a shape.

    Attributes:
      slots: number of target tokens that fit into a batch.
      flops_per_step: model FLOPs of a step on full rows. The backward pass counts as two forward passes.
      waited: total seconds spent waiting for the next batch.
    """

    def __init__(self, shape: Shape):
        batches, self.slots = BATCHES[shape.config.task](shape)
        self._trainer = Trainer(shape.config)
        self._batches = serve(batches, 0, workers=0)
        self.flops_per_step = self._trainer.flops(batches[0])
        self.waited = 0.0

    def turn(self, steps: int) -> Interval:
        """Trains for `steps` steps."""
        counts, started = [], time.perf_counter()
        for _ in range(steps):
            asked = time.perf_counter()
            batch = next(self._batches)
            self.waited += time.perf_counter() - asked
            counts.append(self._trainer.step(self._trainer.shard(batch))["count"])
        tokens = float(sum(jax.device_get(counts)))
        return Interval(steps, time.perf_counter() - started, tokens)


# By task: the peers that train such a model, and the module of each peer's process.
PEERS: dict[str, dict[str, str]] = {
    "translation": {"torch": "experiments.speed.torch_train"},
    "language_modeling": {"transformers": "experiments.speed.transformers_train"},
}


class PeerTraining:
    """Trains a peer's model in a separate process. Exiting the context manager ends the process.

    Raises:
      UserError: a package is not installed.
    """

    def __init__(self, peer: str, module: str, shape: str):
        for package in ("torch", peer):
            if importlib.util.find_spec(package) is None:
                raise UserError(f"--peer={peer} needs the package {package}; run pip install -e '.[peers]'")
        self._process = PeerProcess(module, {"shape": shape})

    def turn(self, steps: int) -> Interval:
        """Trains for `steps` steps."""
        return Interval(steps, **self._process.turn(steps))

    def __enter__(self) -> "PeerTraining":
        return self

    def __exit__(self, *_) -> None:
        self._process.close()


def benchmark(
    name: str, shape: Shape, peers: Sequence[str], repeats: int, turn_seconds: float
) -> dict[str, Any]:
    """Times training of a shape.

    Each round first times matrix products on this machine. Then our code takes a turn, and so does each peer.

    Args:
      name: name of the shape.
      shape: the model and the text.
      peers: keys of `PEERS` for the task of the shape.
      repeats: number of rounds.
      turn_seconds: approximate duration of a turn.
    """
    training, modules = Training(shape), PEERS[shape.config.task]
    with contextlib.ExitStack() as stack:
        turns = {"ours": training.turn}
        for peer in peers:
            turns[peer] = stack.enter_context(PeerTraining(peer, modules[peer], name)).turn
        for turn in turns.values():
            turn(2)  # compiles and warms up
        steps = {who: max(1, round(turn_seconds / (turn(2).seconds / 2))) for who, turn in turns.items()}
        training.waited = 0.0
        rates, intervals = [], {who: [] for who in turns}
        for _ in range(repeats):
            rates.append(matmul_rate())
            for who, turn in turns.items():
                intervals[who].append(turn(steps[who]))
    return _figures(training, intervals, max(rates))


def _figures(training: Training, intervals: dict[str, list[Interval]], rate: float) -> dict[str, Any]:
    """Returns the figures of the benchmark, which are medians over the rounds, as JSON data."""
    speeds = {who: _speed(turns) for who, turns in intervals.items()}
    ours, turns = speeds.pop("ours"), intervals["ours"]
    for peer, figures in speeds.items():
        rounds = zip(turns, intervals[peer], strict=True)
        figures["ratio"] = statistics.median(our.speed / its.speed for our, its in rounds)
    num_steps, seconds, num_tokens = map(sum, zip(*turns, strict=True))
    flops = training.flops_per_step
    return {
        "utilization": ours["tokens_per_second"] * flops / training.slots / rate,
        **ours,
        "padding": 1 - num_tokens / (num_steps * training.slots),
        "waiting_for_data": training.waited / seconds,
        "flops_per_step": flops,
        "matmul_flops_per_second": rate,
        "peers": speeds,
    }


def _speed(turns: Sequence[Interval]) -> dict[str, Any]:
    speeds = [turn.speed for turn in turns]
    return {
        "tokens_per_second": statistics.median(speeds),
        "spread": [min(speeds), max(speeds)],
        "step_seconds": statistics.median(turn.seconds / turn.steps for turn in turns),
    }
