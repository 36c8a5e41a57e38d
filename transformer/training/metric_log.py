"""Records of a run. metrics.jsonl is the original; tensorboard/ shows the same records."""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
from tensorboardX import SummaryWriter

from transformer.files import atomic_write
from transformer.training.train_step import StepInfo
from transformer.training.trainable import Totals, Trainable

Record = dict[str, Any]


def add_totals(totals: Iterable[Totals]) -> dict[str, float]:
    """Fetches totals from the device and adds them up, in double precision."""
    fetched = jax.device_get(list(totals))
    return {name: sum(float(total[name]) for total in fetched) for name in fetched[0]}


class Meter:
    """Adds up the steps since the last record.

    Totals stay on the device until a record is requested, so the host does not wait between two records.
    """

    def __init__(self, task: Trainable, num_steps: int, tokens_seen: int):
        """Measures a run of `num_steps` updates that has been trained on `tokens_seen` target tokens."""
        self._task, self._num_steps = task, num_steps
        self.tokens_seen = tokens_seen  # up to the last record
        self.restart()

    def restart(self) -> None:
        """Starts a new interval now."""
        self._totals: list[Totals] = []
        self._started = time.perf_counter()

    def add(self, totals: Totals) -> None:
        """Counts a step."""
        self._totals.append(totals)

    def record(self, step: int, info: StepInfo) -> Record:
        """Returns the record of the interval that ends at `step`, and starts a new one."""
        num_steps = len(self._totals)
        totals = add_totals(self._totals)
        seconds = time.perf_counter() - self._started
        self.tokens_seen += int(totals["count"])
        self.restart()
        return {
            "step": step,
            "kind": "train",
            "epoch": step / self._task.steps_per_epoch,
            **self._task.summary(totals),
            "learning_rate": float(info.learning_rate),
            "gradient_norm": float(info.gradient_norm),
            "tokens_per_second": totals["count"] / seconds,
            "tokens_seen": self.tokens_seen,
            "seconds_left": (self._num_steps - step) * seconds / num_steps,
        }


class MetricsWriter:
    """Appends records to metrics.jsonl and to TensorBoard."""

    def __init__(self, folder: Path, step: int):
        """Opens the files of a run that resumes at `step`; records of later steps are removed."""
        path = folder / "metrics.jsonl"
        kept = [record for record in read_metrics(folder) if record["step"] <= step]
        atomic_write(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = path.open("a", buffering=1)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, record: Record) -> None:
        """Writes one record; `kind` is "train" or "validation"."""
        self._file.write(json.dumps(record) + "\n")
        for name, value in record.items():
            if isinstance(value, float):
                self._board.add_scalar(f"{record['kind']}/{name}", value, record["step"])

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        self._board.close()


def read_metrics(folder: Path) -> list[Record]:
    """Returns the records of a run folder, in order, up to the first incomplete line."""
    path = folder / "metrics.jsonl"
    records = []
    for line in path.read_text().split("\n") if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
