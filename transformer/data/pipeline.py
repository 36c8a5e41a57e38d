"""Batches of pieces: packed ones for training, served by Grain, and bucketed ones for evaluation."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np

from transformer.data.corpus import Side, Split
from transformer.data.plan import Plan, buckets


class Rows(NamedTuple):
    """One side of a batch: pieces, the segments they belong to, and their positions in them."""

    tokens: np.ndarray
    segments: np.ndarray
    positions: np.ndarray


class Batch(NamedTuple):
    """Source and target rows, and the raw target characters in each row."""

    source: Rows
    target: Rows
    characters: np.ndarray


class TrainingBatches:
    """The batch of each step, computed from the plan on demand: the data's state is the step."""

    def __init__(self, split: Split, plan: Plan, steps: int, process: int = 0, processes: int = 1):
        """Serves the rows process, process + processes, ... of the batches of steps 0 ... steps - 1."""
        self._split, self._plan, self._steps = split, plan, steps
        self._process, self._processes = process, processes

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> Batch:
        rows = self._plan.rows(step)[self._process :: self._processes]
        num_rows, source_length, target_length = self._plan.shape(step)
        return assemble(self._split, rows, -(-num_rows // self._processes), source_length, target_length)


def serve(batches: TrainingBatches, first_step: int, workers: int) -> Iterator[Batch]:
    """Batches from `first_step` on, assembled ahead by a thread (no `workers`) or by processes."""
    dataset = grain.MapDataset.source(batches)[first_step:]
    served = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=8))
    if workers:
        served = served.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return iter(served)


def evaluation_batches(split: Split, batch_tokens: int) -> Iterator[Batch]:
    """Every pair of a split once, in padded batches by length."""
    for examples, length, num_rows in buckets(split.lengths, batch_tokens):
        yield assemble(split, list(examples[:, None]), num_rows, length, length)


def assemble(
    split: Split, rows: Sequence[np.ndarray], num_rows: int, source_length: int, target_length: int
) -> Batch:
    """Writes the examples of each row one after the other; missing rows stay padding.

    A segment's id is its example's number plus one, so that it names the example in any batch.
    """
    characters = np.zeros(num_rows, np.int32)
    for row, examples in enumerate(rows):
        characters[row] = split.characters[examples].sum()
    return Batch(
        source=_fill(split.source, rows, num_rows, source_length),
        target=_fill(split.target, rows, num_rows, target_length),
        characters=characters,
    )


def _fill(side: Side, rows: Sequence[np.ndarray], num_rows: int, row_length: int) -> Rows:
    filled = Rows(*(np.zeros((num_rows, row_length), np.int32) for _ in Rows._fields))
    for row, examples in enumerate(rows):
        start = 0
        for example in examples:
            pieces = side[example]
            place = (row, slice(start, start + len(pieces)))
            filled.tokens[place] = pieces
            filled.segments[place] = example + 1
            filled.positions[place] = np.arange(len(pieces))
            start += len(pieces)
    return filled
