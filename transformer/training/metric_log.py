"""Records of a run's metrics. metrics.jsonl has the records; tensorboard/ is a view of them."""

import json
import math
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree
from tensorboardX import SummaryWriter

from transformer.config import UserError
from transformer.files import atomic_write
from transformer.training.divergence import BadStep
from transformer.training.train_step import StepInfo
from transformer.training.trainable import Totals, Trainable
from transformer.training.utilization import peak_flops

Record = dict[str, Any]


def add_totals(totals: Iterable[Totals]) -> dict[str, float]:
    """Fetches totals from the device and adds them up, in double precision."""
    fetched = jax.device_get(list(totals))
    return {name: sum(float(total[name]) for total in fetched) for name in fetched[0]}


class Meter:
    """Adds up the steps since the last record.

    Totals stay on the device until a record is requested, so between records the host does not wait for the
    device.
    """

    def __init__(self, task: Trainable, num_steps: int, first_step: int, units_seen: int):
        """Measures a run of `num_steps` updates.

        Args:
          task: the task.
          num_steps: the number of updates of the whole run.
          first_step: the number of updates that are done.
          units_seen: the number of units that these were trained on; see `Trainable.unit`.
        """
        self._task, self._num_steps, self._first_step = task, num_steps, first_step
        self.last_step = first_step  # of the last record
        self._has_started = False
        self.units_seen = units_seen  # up to the last record
        self._steps: list[tuple[Totals, StepInfo, int]] = []
        self.restart()

    def restart(self) -> None:
        """Measures time from now on."""
        self._waited = 0.0
        self._started = time.perf_counter()

    def timed(self, batches: Iterable[PyTree]) -> Iterator[PyTree]:
        """Yields the batches, and measures how long each one is waited for."""
        iterator = iter(batches)
        while True:
            started = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited += time.perf_counter() - started
            yield batch

    def start(self, totals: PyTree) -> None:
        """Measures time from the end of the first step, because the first step includes compilation.

        Waits for the end of that step; later calls do nothing.

        Args:
          totals: the totals of the step, on the device.
        """
        if not self._has_started:
            self._has_started = True
            jax.block_until_ready(totals)
            self.restart()

    def add(self, totals: Totals, info: StepInfo, flops: int) -> None:
        """Adds a step."""
        self.start(totals)
        self._steps.append((totals, info, flops))

    def record(self, step: int) -> Record:
        """Returns the record of the interval that ends at `step`, after which one more step may be at work.

        The record covers only updates that were applied. If all were skipped, it has no losses. The speed and
        the time left leave the first step out; the record of this step alone has neither.

        Raises:
          BadStep: the loss or the gradient of a step is not finite, and the update was applied.
        """
        num_steps = step - self.last_step
        fetched = jax.device_get(self._steps[:num_steps])
        for number, (totals, info, _) in enumerate(fetched, start=self.last_step + 1):
            loss = float(totals["loss"]) / max(float(totals["count"]), 1.0)
            if not (info.skipped or (math.isfinite(loss) and math.isfinite(info.gradient_norm))):
                raise BadStep(number, loss, float(info.gradient_norm))
        totals = add_totals(totals for totals, _, _ in fetched)
        timed = fetched[1:] if self.last_step == self._first_step else fetched
        speed = self._speed(timed, self._num_steps - step) if timed else {}
        self.units_seen += int(totals["count"])
        self._steps, self.last_step = self._steps[num_steps:], step
        self.restart()
        info, num_skipped = fetched[-1][1], sum(bool(info.skipped) for _, info, _ in fetched)
        return {
            "step": step,
            "kind": "train",
            "epoch": step / self._task.steps_per_epoch,
            **(self._task.summary(totals) if num_skipped < num_steps else {}),
            **({"skipped": num_skipped} if num_skipped else {}),
            "learning_rate": float(info.learning_rate),
            **({} if info.skipped else _gradient_norms(info)),
            **speed,
            **_peak_memory(),
            f"{self._task.unit}_seen": self.units_seen,
        }

    def _speed(self, steps: Sequence[tuple[Totals, StepInfo, int]], num_left: int) -> dict[str, float]:
        """Returns the speed of the steps since the clock started, and the time that `num_left` steps take."""
        seconds, peak = time.perf_counter() - self._started, peak_flops()
        count = add_totals(totals for totals, _, _ in steps)["count"]
        return {
            f"{self._task.unit}_per_second": count / seconds,
            "waiting_for_data": self._waited / seconds,  # share of the time
            **({} if peak is None else {"utilization": sum(f for _, _, f in steps) / seconds / peak}),
            "seconds_left": num_left * seconds / len(steps),
        }


def _peak_memory() -> dict[str, int]:
    """Returns the largest amount of memory in use on a device so far; nothing if the device does not say."""
    statistics = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [entry["peak_bytes_in_use"] for entry in statistics if "peak_bytes_in_use" in entry]
    return {"peak_memory_bytes": max(peaks)} if peaks else {}


def _gradient_norms(info: StepInfo) -> dict[str, float]:
    layers = {f"gradient_norm.{name}": float(norm) for name, norm in info.layer_norms.items()}
    return {"gradient_norm": float(info.gradient_norm), **layers}


class MetricsWriter:
    """Appends records to metrics.jsonl and to TensorBoard."""

    def __init__(self, folder: Path, step: int):
        """Opens the files of a run that resumes at `step`; records of later steps are removed."""
        path = folder / "metrics.jsonl"
        kept = [record for record in read_metrics(folder) if record["step"] <= step]
        atomic_write(path, "".join(map(_to_line, kept)))
        self._file = path.open("a", buffering=1, encoding="utf-8")
        self._board = SummaryWriter(str((folder / "tensorboard").absolute()), purge_step=step + 1)

    def write(self, record: Record) -> None:
        """Writes one record; `kind` is "train" or "validation"."""
        self._file.write(_to_line(record))
        for name, value in record.items():
            if isinstance(value, float) or name == "skipped":
                self._board.add_scalar(f"{record['kind']}/{name}", value, record["step"])

    def flush(self) -> None:
        """Writes all buffered records to disk, so that none is lost if the process is killed."""
        self._board.flush()

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        self._board.close()


class NoMetricsWriter:
    """Writes nothing: the first of several processes writes the records."""

    def write(self, record: Record) -> None:
        """Ignores the record."""

    def flush(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def read_metrics(folder: Path) -> list[Record]:
    """Returns the records of a run folder, in order, without an incomplete last line.

    Raises:
      UserError: a line was damaged or edited.
    """
    path = folder / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    records = []
    for number, line in enumerate(lines[:-1], start=1):  # the last line is empty or incomplete
        try:
            record = json.loads(line)
            intact = record.pop("crc32") == _checksum(record)
            intact = intact and type(record["step"]) is int and type(record["kind"]) is str
        except (ValueError, AttributeError, KeyError):
            intact = False
        if not intact:
            raise UserError(f"{path}:{number}: the record was damaged or edited; delete the line")
        records.append(record)
    return records


def _to_line(record: Record) -> str:
    return json.dumps({**record, "crc32": _checksum(record)}, allow_nan=False) + "\n"


def _checksum(record: Record) -> str:
    return f"{zlib.crc32(json.dumps(record, allow_nan=False).encode()):08x}"
