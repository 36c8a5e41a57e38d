"""What a run writes down: metrics.jsonl is the truth, tensorboard/ a view of it."""

import json
import math
import time
from pathlib import Path
from typing import Any

import jax
from tensorboardX import SummaryWriter

from transformer.training.losses import Sums
from transformer.training.step import StepInfo

Record = dict[str, Any]


def summary(sums: Sums) -> dict[str, float]:
    """Means a piece, in nats, and perplexities a piece and a character, from totals."""
    tokens, nll = float(sums.tokens), float(sums.nll)
    return {
        "loss": float(sums.loss) / tokens,
        "nll": nll / tokens,
        "perplexity": _exp(nll / tokens),
        "perplexity_per_character": _exp(nll / max(1.0, float(sums.characters))),
        "accuracy": float(sums.correct) / tokens,
    }


class Meter:
    """Adds up the steps since the last record.

    The sums stay on the device until a record is asked for, so that the host never waits in between.
    """

    def __init__(self, steps: int, steps_per_epoch: int, tokens_seen: int):
        """Measures a run of `steps` updates that has seen `tokens_seen` target pieces."""
        self._steps, self._steps_per_epoch = steps, steps_per_epoch
        self.tokens_seen = tokens_seen  # target pieces, up to the last record
        self.restart()

    def restart(self) -> None:
        """Starts a new interval now."""
        self._sums: list[Sums] = []
        self._slots = 0
        self._since = time.perf_counter()

    def add(self, sums: Sums, slots: int) -> None:
        """Counts a step in, whose batch had room for `slots` pieces, both sides."""
        self._sums.append(sums)
        self._slots += slots

    def record(self, step: int, info: StepInfo) -> Record:
        """What happened since the last record, and starts a new interval."""
        count = len(self._sums)
        totals = Sums(*(sum(map(float, column)) for column in zip(*jax.device_get(self._sums), strict=True)))
        seconds = time.perf_counter() - self._since
        padding = 1 - (totals.tokens + totals.source_tokens) / self._slots
        self.tokens_seen += int(totals.tokens)
        self.restart()
        return {
            "step": step,
            "kind": "train",
            "epoch": step / self._steps_per_epoch,
            **summary(totals),
            "learning_rate": float(info.learning_rate),
            "gradient_norm": float(info.gradient_norm),
            "tokens_per_second": totals.tokens / seconds,
            "padding": padding,
            "tokens_seen": self.tokens_seen,
            "seconds_left": (self._steps - step) * seconds / count,
        }


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


class MetricsWriter:
    """Appends records to metrics.jsonl and to TensorBoard."""

    def __init__(self, folder: Path, step: int):
        """Opens the files of a run that goes on from `step`; records of later steps are cut off."""
        path = folder / "metrics.jsonl"
        kept = [record for record in read_metrics(folder) if record["step"] <= step]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(record) + "\n" for record in kept))
        partial.replace(path)
        self._file = path.open("a", buffering=1)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, record: Record) -> None:
        """Writes one record; `kind` says what was measured and `step` when."""
        self._file.write(json.dumps(record) + "\n")
        for name, value in record.items():
            if isinstance(value, float):
                self._board.add_scalar(f"{record['kind']}/{name}", value, record["step"])

    def close(self) -> None:
        self._file.close()
        self._board.close()


def read_metrics(folder: Path) -> list[Record]:
    """The records of a run folder, in order; a last line that was cut short is left out."""
    path = folder / "metrics.jsonl"
    records = []
    for line in path.read_text().split("\n") if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
