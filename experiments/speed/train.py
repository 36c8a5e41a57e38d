"""Times training: our step as `experiments.train` runs it, data included, and a peer's, in turns."""

import contextlib
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.speed.workload import VOCAB, Shape, sentences
from transformer.config import OptimizerConfig, UserError
from transformer.data.corpus import Side, Split
from transformer.data.pipeline import TrainingBatches, serve
from transformer.data.plan import PackedPlan
from transformer.model import build, init_params
from transformer.model.flops import matmul_flops
from transformer.training.losses import Hyper, make_loss_fn
from transformer.training.optimizer import adam
from transformer.training.placement import Jit
from transformer.training.step import initial_state, make_train_step

PAIRS = 20_000


class Interval(NamedTuple):
    """Some steps: how many, how long they took, and the target pieces trained on."""

    steps: int
    seconds: float
    tokens: float


def matmul_rate(size: int = 2_048, repeats: int = 8) -> float:
    """FLOPs a second of the fastest of some products of two float32 matrices [size, size]."""
    a = jnp.asarray(np.random.default_rng(0).normal(size=(size, size)), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        product(a, a).block_until_ready()
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)


class Trainer:
    """Our training, as the loop does it."""

    def __init__(self, shape: Shape):
        split = synthetic(shape)
        self._placement = Jit()
        self._plan = PackedPlan(
            split.source.lengths, split.target.lengths, shape.row_length, shape.batch_tokens, seed=0
        )
        self._model = build(shape.model, VOCAB)
        optimizer = adam(OptimizerConfig())
        self._state = self._placement.replicate(initial_state(init_params(self._model, 0), optimizer))
        self._step = make_train_step(make_loss_fn(self._model), optimizer, 4_000, self._placement)
        self._batches = serve(TrainingBatches(split, self._plan, 10**6), 0, workers=0)
        self._hyper = Hyper(1e-4, shape.model.dropout_rate, 0.1)
        self._key = jax.random.key(0)
        self.waited = 0.0  # seconds in which the host had no batch ready

    def __call__(self, steps: int) -> Interval:
        """Trains `steps` steps."""
        tokens, started = [], time.perf_counter()
        for _ in range(steps):
            asked = time.perf_counter()
            batch = next(self._batches)
            self.waited += time.perf_counter() - asked
            self._state, sums, _ = self._step(
                self._state, self._placement.shard(batch), self._key, self._hyper
            )
            tokens.append(sums.tokens)
        total = float(sum(jax.device_get(tokens)))
        return Interval(steps, time.perf_counter() - started, total)

    def flops_per_step(self) -> int:
        """Model FLOPs of a step on full rows: a backward pass costs twice its forward pass."""
        shapes = ((self._plan.num_rows, n) for n in (self._plan.source_length, self._plan.target_length))
        sides = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in shapes]
        return 3 * matmul_flops(self._model.apply, {"params": self._state.params}, *sides)

    @property
    def slots(self) -> int:
        """Target pieces for which a batch has room."""
        return self._plan.num_rows * self._plan.target_length


def synthetic(shape: Shape) -> Split:
    """The sentences that are timed, as a split in memory."""
    source, target = sentences(shape, PAIRS)
    return Split(_side(source), _side(target), np.array([len(one) for one in target]))


def _side(rows) -> Side:
    return Side(np.concatenate(rows), np.cumsum([0, *map(len, rows)]))


@contextlib.contextmanager
def torch_peer(name: str) -> Iterator[Callable[[int], Interval]]:
    """torch.nn.Transformer in a process of its own, which waits while we are timed.

    Raises:
      UserError: PyTorch is not installed.
    """
    if importlib.util.find_spec("torch") is None:
        raise UserError("--peer=torch needs PyTorch: pip install -e '.[peers]'")
    command = [sys.executable, "-m", "experiments.speed.torch_train"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def train(steps):
        print(steps, file=process.stdin, flush=True)
        return Interval(steps=steps, **json.loads(process.stdout.readline()))

    try:
        print(name, file=process.stdin, flush=True)
        yield train
    finally:
        process.kill()


PEERS: dict[str, Callable] = {"torch": torch_peer}


def benchmark(name: str, shape: Shape, peers: list[str], repeats: int, seconds: float) -> dict:
    """Times a shape: in each repeat first the machine, then us, then each peer.

    Args:
      name: the shape's.
      shape: what is trained.
      peers: keys of `PEERS`.
      repeats: rounds.
      seconds: that a turn shall take, about.
    """
    with contextlib.ExitStack() as stack:
        trainer = Trainer(shape)
        turns = {"ours": trainer} | {peer: stack.enter_context(PEERS[peer](name)) for peer in peers}
        for train in turns.values():
            train(2)  # compiles, warms up
        steps = {who: max(1, round(seconds / (train(2).seconds / 2))) for who, train in turns.items()}
        trainer.waited = 0.0
        rates, intervals = [], {who: [] for who in turns}
        for _ in range(repeats):
            rates.append(matmul_rate())
            for who, train in turns.items():
                intervals[who].append(train(steps[who]))
    flops, ours = trainer.flops_per_step(), intervals["ours"]
    speeds = {who: [one.tokens / one.seconds for one in taken] for who, taken in intervals.items()}
    per_token = flops / trainer.slots
    total = sum(one.seconds for one in ours)
    return {
        "utilisation": statistics.median(speeds["ours"]) * per_token / max(rates),
        "tokens_per_second": statistics.median(speeds["ours"]),
        "spread": [min(speeds["ours"]), max(speeds["ours"])],
        "step_seconds": statistics.median(one.seconds / one.steps for one in ours),
        "padding": 1 - sum(one.tokens for one in ours) / (sum(one.steps for one in ours) * trainer.slots),
        "waiting_for_data": trainer.waited / total,
        "flops_per_step": flops,
        "matmul_flops_per_second": max(rates),
        "peers": {
            who: {
                "tokens_per_second": statistics.median(speeds[who]),
                "spread": [min(speeds[who]), max(speeds[who])],
                "ratio": statistics.median(a / b for a, b in zip(speeds["ours"], speeds[who], strict=True)),
            }
            for who in peers
        },
    }
