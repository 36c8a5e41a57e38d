"""Training batches, assembled ahead of the training step by Grain."""

import functools
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import grain

from transformer.batch import Batch
from transformer.data.batching import assemble
from transformer.data.plan import Plan
from transformer.data.splits import Split

PARENT_SECONDS = 1.0  # between two checks that the parent of a worker is alive


class TrainingBatches:
    """Sequence of the batches of all steps. A batch is assembled when it is requested."""

    def __init__(
        self, split: Split, plan: Plan, num_steps: int, process_index: int = 0, process_count: int = 1
    ):
        """Gives this process every `process_count`-th row of each batch, from row `process_index` on.

        Args:
          split: the pairs.
          plan: assigns the pairs to batches.
          num_steps: number of batches.
          process_index: index of this process.
          process_count: number of processes that train together.
        """
        self._split, self._plan, self._num_steps = split, plan, num_steps
        self._process_index, self._process_count = process_index, process_count

    def __len__(self) -> int:
        return self._num_steps

    def __getitem__(self, step: int) -> Batch:
        rows = self._plan.rows(step)[self._process_index :: self._process_count]
        num_rows, source_length, target_length = self._plan.shape(step)
        return assemble(self._split, rows, -(-num_rows // self._process_count), source_length, target_length)


@runtime_checkable
class Batches(Protocol):
    """The batches of all steps, such as `TrainingBatches`."""

    def __len__(self) -> int: ...

    def __getitem__(self, step: int) -> Any: ...


def serve(batches: Batches, first_step: int, workers: int) -> Iterator[Any]:
    """Yields the batches from `first_step` on. Later batches are assembled in the background.

    Args:
      batches: the batches of all steps.
      first_step: step of the first batch.
      workers: processes that assemble batches; if 0, a thread of this process assembles them.
    """
    dataset = grain.MapDataset.source(batches)[first_step:]
    served = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=8))
    if workers:
        served = served.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers), functools.partial(_start_worker, os.getpid())
        )
    return iter(served)


def _start_worker(parent: int, index: int, count: int) -> None:
    """Makes a worker process exit once its parent has ended, for whatever reason, and not earlier.

    The worker ignores signals to the whole process group: the parent handles them and may still need batches.
    """
    del index, count
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)

    threading.Thread(target=end_with_parent, args=(parent,), daemon=True).start()


def end_with_parent(parent: int) -> None:
    """Ends this process once its parent has ended. Runs in a separate thread."""
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
    os._exit(1)
