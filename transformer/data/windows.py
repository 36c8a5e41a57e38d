"""Training rows of a language model: documents one after another, cut where a row is full."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from transformer.batch import TextBatch, TokenBatch
from transformer.config import BOS
from transformer.data.splits import Split


class Window(NamedTuple):
    """Consecutive tokens of a document.

    Attributes:
      document: index of the document in its split.
      start: index of the first token in the document.
      stop: index after the last token.
    """

    document: int
    start: int
    stop: int


class WindowPlan:
    """Assigns the tokens of documents to the rows of batches, and computes the rows of any step.

    In each epoch, the documents are joined in a random order to one circular sequence. It is cut into rows of
    equal length from a random token on, and the rows are shuffled. So every token is in one row, all rows but
    one are full, and the windows of a document differ from epoch to epoch. All epochs have the same number of
    steps. A token sees only its own window. The first input of a window is the token before it, or BOS at the
    start of a document.

    Attributes:
      row_length: tokens per row.
      num_rows: rows per batch. The rows of an epoch are spread evenly over its batches, so the last row of a
        batch may be empty.
      steps_per_epoch: number of batches that together hold every token once.
    """

    def __init__(self, lengths: Int[np.ndarray, "documents"], row_length: int, batch_tokens: int, seed: int):
        """Plans batches of `batch_tokens` tokens. `lengths` are the tokens of each document, EOS included."""
        self.row_length, self._lengths, self._seed = row_length, np.asarray(lengths, np.int64), seed
        self._num_tokens = int(self._lengths.sum())
        num_rows = -(-self._num_tokens // row_length)
        self.num_rows = min(num_rows, max(1, round(batch_tokens / row_length)))
        self.steps_per_epoch = -(-num_rows // self.num_rows)
        self.num_rows = -(-num_rows // self.steps_per_epoch)
        self._num_all_rows = num_rows
        self._last_epoch: tuple[int, tuple[np.ndarray, np.ndarray, int, np.ndarray]] | None = None

    def rows(self, step: int) -> list[list[Window]]:
        """Returns the windows in each non-empty row of the batch of a step. The first step is 0."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        order, ends, start, shuffled = self._shuffle(epoch)
        first, last = (self._num_all_rows * number // self.steps_per_epoch for number in (batch, batch + 1))
        rows = []
        for row in shuffled[first:last].tolist():
            begin = row * self.row_length
            end = min(begin + self.row_length, self._num_tokens)
            rows.append(self._windows(order, ends, start + begin, start + end))
        return rows

    def _windows(self, order, ends, begin: int, end: int) -> list[Window]:
        """Returns the windows that a part of the circular sequence consists of."""
        windows = []
        while begin < end:
            place = begin % self._num_tokens
            number = int(np.searchsorted(ends, place, side="right"))
            document = int(order[number])
            start = place - int(ends[number]) + int(self._lengths[document])
            size = min(end - begin, int(self._lengths[document]) - start)
            windows.append(Window(document, start, start + size))
            begin += size
        return windows

    def _shuffle(self, epoch: int) -> tuple[np.ndarray, np.ndarray, int, np.ndarray]:
        """Returns the order of the documents and their ends, the first token, and the order of the rows."""
        if self._last_epoch is None or self._last_epoch[0] != epoch:
            rng = np.random.default_rng((self._seed, epoch))
            order = rng.permutation(len(self._lengths))
            ends = np.cumsum(self._lengths[order])
            start = int(rng.integers(self._num_tokens)) if self._num_tokens > self.row_length else 0
            self._last_epoch = epoch, (order, ends, start, rng.permutation(self._num_all_rows))
        return self._last_epoch[1]


class WindowBatches:
    """Sequence of the batches of all steps. A batch is assembled when it is requested."""

    def __init__(
        self,
        split: Split,
        byte_lengths: Int[np.ndarray, "v"],
        plan: WindowPlan,
        num_steps: int,
        process_index: int = 0,
        process_count: int = 1,
    ):
        """Gives this process every `process_count`-th row of each batch; see `pipeline.TrainingBatches`."""
        self._split, self._byte_lengths, self._plan, self._num_steps = split, byte_lengths, plan, num_steps
        self._process_index, self._process_count = process_index, process_count

    def __len__(self) -> int:
        return self._num_steps

    def __getitem__(self, step: int) -> TextBatch:
        rows = self._plan.rows(step)[self._process_index :: self._process_count]
        num_rows = -(-self._plan.num_rows // self._process_count)
        return assemble_windows(self._split, self._byte_lengths, rows, num_rows, self._plan.row_length)


def evaluation_windows(lengths: Int[np.ndarray, "documents"], row_length: int) -> list[list[Window]]:
    """Returns rows with all tokens of the documents, in order; see `WindowPlan`."""
    rows: list[list[Window]] = []
    space = 0
    for document, length in enumerate(lengths.tolist()):
        start = 0
        while start < length:
            if not space:
                rows.append([])
                space = row_length
            size = min(space, length - start)
            rows[-1].append(Window(document, start, start + size))
            start, space = start + size, space - size
    return rows


def assemble_windows(
    split: Split,
    byte_lengths: Int[np.ndarray, "v"],
    rows: Sequence[Sequence[Window]],
    num_rows: int,
    row_length: int,
) -> TextBatch:
    """Makes a batch whose rows hold windows one after another.

    The segment id of a window is 1 plus the index of its first token in the split modulo 2^31 - 2. So windows
    have different ids and thus different dropout masks.

    Args:
      split: the documents.
      byte_lengths: bytes that each token stands for; see `Tokenizer.byte_lengths`.
      rows: the windows of each row.
      num_rows: rows of the batch. Rows beyond those in `rows` are padding.
      row_length: tokens per row, padding included.
    """
    arrays = [np.zeros((num_rows, row_length), np.int32) for _ in range(4)]
    inputs, labels, segment_ids, positions = arrays
    side = split.target
    for row, windows in enumerate(rows):
        place = 0
        for document, start, stop in windows:
            tokens, size = side[document], stop - start
            span = (row, slice(place, place + size))
            labels[span] = tokens[start:stop]
            inputs[row, place] = tokens[start - 1] if start else BOS
            inputs[row, place + 1 : place + size] = tokens[start : stop - 1]
            segment_ids[span] = 1 + (int(side.offsets[document]) + start) % (2**31 - 2)
            positions[span] = np.arange(size)
            place += size
    num_bytes = byte_lengths[labels].sum(axis=1).astype(np.int32)
    return TextBatch(TokenBatch(inputs, segment_ids, positions), labels, num_bytes)
