"""Measures an accelerator: products, training, runs in one program, sentence lengths, translation."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.speed import decode
from experiments.speed.lengths import FixedLengthTraining, benchmark_lengths, full_batch
from experiments.speed.peer import PeerProcess
from experiments.speed.train import matmul_rate
from transformer.config import ExperimentConfig
from transformer.model import build_model, init_params
from transformer.tasks.translation import Translation
from transformer.training.train_step import init_state
from transformer.training.trainable import Hyperparameters
from transformer.training.vectorized import make_vectorized_step

STEPS = 100_000  # the updates of the paper's base model (section 5.2)


@dataclasses.dataclass(frozen=True)
class Scale:
    """The sizes of the measurements.

    Attributes:
      product: rows of the square matrices that are multiplied.
      batch_tokens: target tokens per update, and as many source tokens.
      row_length: tokens of a sentence in these updates.
      runs: number of runs in one program.
      run_tokens: target tokens per update of each of these runs.
      sentences: numbers of sentences to translate.
      lengths: tokens per sentence of the comparison by length.
      repeats: number of rounds.
      seconds: approximate duration of a turn.
    """

    product: int
    batch_tokens: int
    row_length: int
    runs: int
    run_tokens: int
    sentences: tuple[int, ...]
    lengths: tuple[int, ...]
    repeats: int
    seconds: float


FULL = Scale(8_192, 25_088, 256, 8, 8_192, (128, 2_000), (16, 64, 256, 1_024), repeats=3, seconds=3.0)
SMALL = Scale(256, 256, 32, 2, 128, (8,), (8, 16), repeats=1, seconds=0.1)


@dataclasses.dataclass(frozen=True)
class Workload:
    """The configs to measure.

    Attributes:
      trained: by name, the configs whose updates are timed; their activations are bfloat16.
      replicated: the config of the runs in one program.
      compared: by name, the configs that are compared by length.
      decoded: the config whose translation is timed.
    """

    trained: Mapping[str, ExperimentConfig]
    replicated: ExperimentConfig
    compared: Mapping[str, ExperimentConfig]
    decoded: ExperimentConfig


def measure(workload: Workload, scale: Scale, peers: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the name and the results of each measurement, as JSON data.

    A measurement that fails, for example because memory is exhausted, gives its "error", and the next one
    follows.

    Args:
      workload: the configs.
      scale: the sizes.
      peers: "torch" for training, "transformers" for translation.
    """
    rate = matmul_rate(scale.product, dtype=jnp.bfloat16)
    yield "products", {"size": scale.product, "flops_per_second": rate}
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        f"training of {name}": lambda name=name, config=config: _training(name, config, scale, rate, peers)
        for name, config in workload.trained.items()
    }
    parts["runs in one program"] = lambda: _runs(workload.replicated, scale)
    parts["lengths"] = lambda: benchmark_lengths(
        workload.compared, scale.lengths, scale.run_tokens, scale.repeats, scale.seconds
    )
    for count in scale.sentences:
        parts[f"translation of {count} sentences"] = lambda count=count: _translation(
            workload.decoded, count, scale, peers
        )
    for name, part in parts.items():
        try:
            yield name, part()
        except RuntimeError as error:
            yield name, {"error": str(error).splitlines()[0]}


def _training(
    name: str, config: ExperimentConfig, scale: Scale, rate: float, peers: Sequence[str]
) -> dict[str, Any]:
    training = FixedLengthTraining(config, scale.row_length, scale.batch_tokens)
    started = time.perf_counter()
    training.turn(1)
    compilation = time.perf_counter() - started
    seconds = {"ours": _seconds_per_step(training.turn, scale)}
    if "torch" in peers:
        request = {"shape": name, "length": scale.row_length, "batch_tokens": scale.batch_tokens}
        with PeerProcess("experiments.speed.torch_train", request) as peer:
            seconds["torch"] = _seconds_per_step(lambda steps: peer.turn(steps)["seconds"], scale)
    tokens = scale.batch_tokens // scale.row_length * scale.row_length
    results = {
        "tokens_per_second": tokens / seconds["ours"],
        "step_seconds": seconds["ours"],
        "utilization": training.flops_per_step / seconds["ours"] / rate,
        f"hours_for_{STEPS}_steps": STEPS * seconds["ours"] / 3_600,
        "compile_seconds": compilation,
    }
    if "torch" in peers:
        results |= {"torch": tokens / seconds["torch"], "ratio": seconds["torch"] / seconds["ours"]}
    return results


def _seconds_per_step(turn: Callable[[int], float], scale: Scale) -> float:
    """Returns the median over rounds; `turn` returns the seconds of a number of steps."""
    turn(2)  # compiles and warms up
    steps = max(1, round(scale.seconds / turn(1)))
    return statistics.median(turn(steps) / steps for _ in range(scale.repeats))


def _runs(config: ExperimentConfig, scale: Scale) -> dict[str, Any]:
    """Compares runs in one program with one of them."""
    alone = _seconds_per_step(FixedLengthTraining(config, 64, scale.run_tokens).turn, scale)
    together = _seconds_per_step(VectorizedTraining(config, 64, scale.run_tokens, scale.runs).turn, scale)
    return {
        "runs": scale.runs,
        "step_seconds_alone": alone,
        "step_seconds_together": together,
        "speedup": scale.runs * alone / together,
    }


class VectorizedTraining:
    """Trains several runs of a config in one program, repeatedly on one batch each."""

    def __init__(self, config: ExperimentConfig, length: int, batch_tokens: int, runs: int):
        model = build_model(config.model, config.data.vocab_size)
        states = [init_state(init_params(model, seed), config) for seed in range(runs)]
        self._state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        self._step = make_vectorized_step(Translation.loss_fn(config, model), config)
        batch = full_batch(batch_tokens // length, length, config.data.vocab_size)
        arguments = batch, Hyperparameters.from_config(config), np.array(True)
        repeated = jax.tree.map(lambda x: jnp.stack([jnp.asarray(x)] * runs), arguments)
        keys = jax.random.split(jax.random.key(0), runs)
        self._arguments = repeated[0], keys, *repeated[1:]

    def turn(self, steps: int) -> float:
        """Returns the seconds that `steps` updates of all runs take."""
        started = time.perf_counter()
        for _ in range(steps):
            self._state, totals, _ = self._step(self._state, *self._arguments)
        totals["loss"].block_until_ready()
        return time.perf_counter() - started


def _translation(config: ExperimentConfig, count: int, scale: Scale, peers: Sequence[str]) -> dict[str, Any]:
    known = [peer for peer in peers if peer in decode.PEERS]
    return decode.benchmark(config.model, known, scale.repeats, scale.seconds, count)
