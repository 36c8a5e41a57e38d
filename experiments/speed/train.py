"""Times training with our training step and with peers (other toolkits).

Our training step is that of `experiments.train`. The times include the data pipeline.
"""

import contextlib
import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.speed.peer import PeerProcess
from experiments.speed.trainer import Trainer
from experiments.speed.workload import Sentences, Shape, sentence_pairs
from transformer.batch import TokenBatch
from transformer.config import UserError
from transformer.data.packing import PackedPlan
from transformer.data.pipeline import TrainingBatches, serve
from transformer.data.splits import Side, Split
from transformer.model.flops import matmul_flops

NUM_PAIRS = 20_000


class Interval(NamedTuple):
    """Consecutive training steps: number of steps, duration in seconds, and number of target tokens."""

    steps: int
    seconds: float
    tokens: float


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


class PackedTraining:
    """Trains our model on packed rows of random sentences.

    Attributes:
      waited: total seconds spent waiting for the next batch.
    """

    def __init__(self, shape: Shape):
        split = random_split(shape)
        lengths = split.source.lengths, split.target.lengths
        self._plan = PackedPlan(*lengths, shape.row_length, shape.batch_tokens, seed=0)
        self._trainer = Trainer(shape.config)
        self._batches = serve(TrainingBatches(split, self._plan, 10**6), 0, workers=0)
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

    def flops_per_step(self) -> int:
        """Returns the model FLOPs of a step on full rows. The backward pass counts as two forward passes."""
        plan, trainer = self._plan, self._trainer
        sides = [
            TokenBatch(*[jax.ShapeDtypeStruct((plan.num_rows, length), jnp.int32)] * len(TokenBatch._fields))
            for length in (plan.source_length, plan.target_length)
        ]
        return 3 * matmul_flops(trainer.model.apply, {"params": trainer.state.params}, *sides)

    @property
    def slots(self) -> int:
        """Number of target tokens that fit into a batch."""
        return self._plan.num_rows * self._plan.target_length


def random_split(shape: Shape) -> Split:
    """Returns random sentences for the training that is timed, as a split in memory."""
    source, target = sentence_pairs(shape, NUM_PAIRS)
    return Split((_side(source), _side(target)), np.array([len(tokens) for tokens in target]))


def _side(sentences: Sentences) -> Side:
    return Side(np.concatenate(sentences), np.cumsum([0, *map(len, sentences)]))


class TorchTraining:
    """Trains torch.nn.Transformer in a separate process. Exiting the context manager ends the process.

    Raises:
      UserError: PyTorch is not installed.
    """

    def __init__(self, shape: str):
        if importlib.util.find_spec("torch") is None:
            raise UserError("--peer=torch needs the package torch; run pip install -e '.[peers]'")
        self._process = PeerProcess("experiments.speed.torch_train", {"shape": shape})

    def turn(self, steps: int) -> Interval:
        """Trains for `steps` steps."""
        return Interval(steps, **self._process.turn(steps))

    def __enter__(self) -> "TorchTraining":
        return self

    def __exit__(self, *_) -> None:
        self._process.__exit__()


# Each function takes the name of a shape and returns a context manager like `TorchTraining`.
PEERS: dict[str, Callable[[str], AbstractContextManager]] = {"torch": TorchTraining}


def benchmark(
    name: str, shape: Shape, peers: Sequence[str], repeats: int, turn_seconds: float
) -> dict[str, Any]:
    """Times training of a shape.

    Each round first times matrix products on this machine. Then our code takes a turn, and so does each peer.

    Args:
      name: name of the shape.
      shape: the model, and the sizes of sentences and batches.
      peers: keys of `PEERS`.
      repeats: number of rounds.
      turn_seconds: approximate duration of a turn.
    """
    training = PackedTraining(shape)
    with contextlib.ExitStack() as stack:
        turns = {"ours": training.turn}
        turns |= {peer: stack.enter_context(PEERS[peer](name)).turn for peer in peers}
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


def _figures(training: PackedTraining, intervals: dict[str, list[Interval]], rate: float) -> dict[str, Any]:
    """Returns the figures of the benchmark, which are medians over the rounds, as JSON data."""
    ours, flops = intervals["ours"], training.flops_per_step()
    speeds = {
        who: [interval.tokens / interval.seconds for interval in turns] for who, turns in intervals.items()
    }
    speed = statistics.median(speeds["ours"])
    num_tokens, num_steps = (
        sum(interval.tokens for interval in ours),
        sum(interval.steps for interval in ours),
    )
    return {
        "utilization": speed * flops / training.slots / rate,
        "tokens_per_second": speed,
        "spread": [min(speeds["ours"]), max(speeds["ours"])],
        "step_seconds": statistics.median(interval.seconds / interval.steps for interval in ours),
        "padding": 1 - num_tokens / (num_steps * training.slots),
        "waiting_for_data": training.waited / sum(interval.seconds for interval in ours),
        "flops_per_step": flops,
        "matmul_flops_per_second": rate,
        "peers": {
            who: {
                "tokens_per_second": statistics.median(speeds[who]),
                "spread": [min(speeds[who]), max(speeds[who])],
                "ratio": statistics.median(a / b for a, b in zip(speeds["ours"], speeds[who], strict=True)),
            }
            for who in intervals
            if who != "ours"
        },
    }
