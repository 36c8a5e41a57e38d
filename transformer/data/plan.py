"""Which examples go into which row of which batch: pure functions of lengths, seed and step.

Training packs several pairs into a row. The packing depends on the pairs' lengths alone, so it is worked
out once, on the histogram of lengths (after Krell et al. 2021, "Efficient Sequence Packing without
Cross-contamination"); an epoch then deals the examples of equal lengths to the places of those lengths
anew and shuffles the rows. Models that cannot pack get one pair a row and rows of similar length. Either
way every epoch has equally many steps, and any step's batch can be computed without the ones before it.
Evaluation sorts by length into buckets and leaves nothing out.
"""

import functools
import itertools
from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

SHORTEST_BUCKET = 16
SHAPES = 8  # of the batches of a bucketed plan, at most, since each shape is compiled
CHUNKS = 64  # that an epoch is cut into, at most, before they are joined to buckets


@runtime_checkable
class Plan(Protocol):
    """The training batch of any step, counted from 0 over all epochs.

    Attributes:
      steps_per_epoch: batches that show every pair once.
      longest: pieces of the longest source and of the longest target that are trained on.
      dropped: pairs left out because a side is longer than a row.
    """

    steps_per_epoch: int
    longest: tuple[int, int]
    dropped: int

    @property
    def summary(self) -> str:
        """The shapes of the batches, in words."""

    def shape(self, step: int) -> tuple[int, int, int]:
        """Rows, pieces in a source row and pieces in a target row, padding included."""

    def rows(self, step: int) -> list[np.ndarray]:
        """The examples of each non-empty row."""


class PackedPlan:
    """Training batches of packed rows.

    Attributes, besides those of `Plan`:
      source_length: pieces in a source row.
      target_length: pieces in a target row. The language that needs fewer pieces gets shorter rows.
      num_rows: rows of a batch. The last few may be empty, since an epoch's rows are spread evenly.
    """

    def __init__(
        self,
        source_lengths: np.ndarray,
        target_lengths: np.ndarray,
        row_length: int,
        batch_tokens: int,
        seed: int,
    ):
        """Packs.

        Args:
          source_lengths: pieces of each pair's source, EOS included.
          target_lengths: likewise.
          row_length: capacity of a row of the language that needs more pieces.
          batch_tokens: target pieces a batch shall hold, on average.
          seed: decides each epoch's order.

        Raises:
          ValueError: no pair fits into a row.
        """
        self._examples, lengths = _fitting(source_lengths, target_lengths, row_length)
        self.dropped = len(source_lengths) - len(self._examples)
        # A kind of pair is its two lengths, here as one number: pairs of numbers sort ten times slower.
        codes = lengths[0] * (row_length + 1) + lengths[1]
        codes, kind, counts = np.unique(codes, return_inverse=True, return_counts=True)
        self._kind = kind.astype(np.int32)
        kinds = np.stack(np.divmod(codes, row_length + 1))
        totals, longest = lengths.sum(axis=1), lengths.max(axis=1)
        self.longest = tuple(longest.tolist())
        shares = np.ceil(row_length * totals / totals.max()).astype(int)
        self.source_length, self.target_length = map(int, np.maximum(shares, longest))
        rows = pack_histogram(kinds[0], kinds[1], counts, (self.source_length, self.target_length))
        # Place i of the plan is for a pair of kind places[i]; row r has places starts[r]:starts[r + 1].
        places = np.concatenate([np.tile(row.kinds, row.count) for row in rows])
        sizes = np.concatenate([np.full(row.count, len(row.kinds)) for row in rows])
        self._places_by_kind = np.argsort(places, kind="stable")
        self._starts = np.cumsum([0, *sizes])
        tokens_per_row = totals[1] / len(sizes)
        self.num_rows = max(1, min(len(sizes), round(batch_tokens / tokens_per_row)))
        self.steps_per_epoch = -(-len(sizes) // self.num_rows)
        self._seed = seed
        self._dealt: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def summary(self) -> str:
        return f"{self.num_rows} rows of {self.source_length} and {self.target_length} pieces a step"

    def shape(self, step: int) -> tuple[int, int, int]:
        return self.num_rows, self.source_length, self.target_length

    def rows(self, step: int) -> list[np.ndarray]:
        epoch, number = divmod(step, self.steps_per_epoch)
        examples, order = self._epoch(epoch)
        first, last = (len(order) * one // self.steps_per_epoch for one in (number, number + 1))
        return [examples[self._starts[row] : self._starts[row + 1]] for row in order[first:last]]

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The example in each place, and the order of the rows. Keeps the last epoch asked for."""
        if epoch not in self._dealt:
            self._dealt = {epoch: self._deal(epoch)}
        return self._dealt[epoch]

    def _deal(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng((self._seed, epoch))
        shuffled = np.lexsort((rng.random(len(self._kind)), self._kind))
        examples = np.empty_like(self._examples)
        examples[self._places_by_kind] = self._examples[shuffled]
        return examples, rng.permutation(len(self._starts) - 1)


class Bucket(NamedTuple):
    """Examples of similar length, the batches they fill, counted from the shortest one, and their shape."""

    examples: np.ndarray
    batches: range
    shape: tuple[int, int, int]


class BucketedPlan:
    """Training batches of one pair a row and rows of similar length, for models that cannot pack.

    The pairs, sorted by length, are cut into batches of equally many target pieces, and a bucket is a run of
    these batches: so a few long pairs get no batch of their own. Each epoch deals a bucket's pairs anew. The
    length of a pair is that of its longer side, each side relative to its language's mean.

    Measured: 13% of all slots are padding for number_words (en-de) and for Multi30k, 19% for the log-normal
    lengths of `experiments.speed.workload`; target pieces stay within 4% of `batch_tokens`. Buckets by powers
    of two would pad 33% to 37%, eight of equally many target pieces 19% to 23%.
    """

    def __init__(
        self,
        source_lengths: np.ndarray,
        target_lengths: np.ndarray,
        row_length: int,
        batch_tokens: int,
        seed: int,
    ):
        """Sorts and cuts; takes and raises what `PackedPlan` does."""
        examples, lengths = _fitting(source_lengths, target_lengths, row_length)
        self.dropped = len(source_lengths) - len(examples)
        self.longest = tuple(lengths.max(axis=1).tolist())
        order = np.argsort((lengths / lengths.mean(axis=1, keepdims=True)).max(axis=0), kind="stable")
        examples, lengths = examples[order], lengths[:, order]
        pieces = np.cumsum(lengths[1])
        batches = max(1, round(pieces[-1] / batch_tokens))
        # Where a pair has more pieces than a batch is to hold there are fewer batches: none is empty.
        _, starts = np.unique((pieces - 1) * batches // pieces[-1], return_index=True)
        self.steps_per_epoch = len(starts)
        bounds = [*starts.tolist(), len(examples)]
        self._buckets = []
        for first, last in itertools.pairwise(join(lengths, bounds)):
            members = slice(bounds[first], bounds[last])
            num_rows = -(-(members.stop - members.start) // (last - first))
            shape = (num_rows, *lengths[:, members].max(axis=1).tolist())
            self._buckets.append(Bucket(examples[members], range(first, last), shape))
        self._seed = seed

    @property
    def summary(self) -> str:
        rows, source, target = zip(*(one.shape for one in self._buckets), strict=True)
        pieces = f"{min(source + target)} to {max(source + target)} pieces"
        return f"{min(rows)} to {max(rows)} rows of {pieces} a step (shapes: {len(rows)})"

    def shape(self, step: int) -> tuple[int, int, int]:
        return self._find(step)[0].shape

    def rows(self, step: int) -> list[np.ndarray]:
        bucket, number, rng = self._find(step)
        dealt = np.array_split(rng.permutation(bucket.examples), len(bucket.batches))
        return list(dealt[number][:, None])

    def _find(self, step: int) -> tuple[Bucket, int, np.random.Generator]:
        """A step's bucket, which of its batches it is, and the generator that deals the bucket's examples."""
        epoch, number = divmod(step, self.steps_per_epoch)
        rng = np.random.default_rng((self._seed, epoch))
        batch = int(rng.permutation(self.steps_per_epoch)[number])
        bucket = next(one for one in self._buckets if batch in one.batches)
        return bucket, batch - bucket.batches.start, rng


def join(lengths: np.ndarray, bounds: list[int]) -> list[int]:
    """Joins neighbouring batches into at most `SHAPES` runs, those first that add the least padding.

    Args:
      lengths: source and target length of each pair, sorted.
      bounds: batch i holds the pairs bounds[i]:bounds[i + 1].

    Returns:
      the first batch of each run, and the number of batches.
    """

    @functools.cache
    def slots(first, last):
        run = lengths[:, bounds[first] : bounds[last]]
        return run.shape[1] * int(run.max(axis=1).sum())

    batches = len(bounds) - 1
    edges = [*range(0, batches, -(-batches // CHUNKS)), batches]
    while len(edges) > 2:
        triples = zip(edges, edges[1:], edges[2:], strict=False)
        added = [slots(a, c) - slots(a, b) - slots(b, c) for a, b, c in triples]
        if len(edges) <= SHAPES + 1 and min(added) > 0:
            break
        del edges[added.index(min(added)) + 1]
    return edges


def _fitting(source: np.ndarray, target: np.ndarray, row_length: int) -> tuple[np.ndarray, np.ndarray]:
    """The pairs that fit into a row, and their source and target lengths."""
    fits = np.maximum(source, target) <= row_length
    if not fits.any():
        raise ValueError(f"no pair fits into rows of {row_length} pieces")
    return np.flatnonzero(fits), np.stack([source[fits], target[fits]])


class PackedRow(NamedTuple):
    """`count` rows that hold pairs of the same `kinds`."""

    kinds: list[int]
    count: int


def pack_histogram(
    source: np.ndarray, target: np.ndarray, counts: np.ndarray, capacity: tuple[int, int]
) -> list[PackedRow]:
    """Best-fit decreasing in two dimensions, on whole groups of equal rows at once.

    Args:
      source: source length of each kind of pair.
      target: its target length; neither is above its capacity.
      counts: how many pairs of the kind there are.
      capacity: pieces in a source row and in a target row.
    """
    full = np.array(capacity)
    leftover = np.add.outer(*(np.arange(one + 1) / one for one in capacity))
    nowhere = leftover.max() + 1
    open_rows = np.zeros(full + 1, np.int64)  # by room left on each side
    groups: dict[tuple[int, int], list[PackedRow]] = {}

    def put(kinds, count, source_room, target_room):
        groups.setdefault((source_room, target_room), []).append(PackedRow(kinds, count))
        open_rows[source_room, target_room] += count

    shares = np.stack([source, target]) / full[:, None]
    for kind in np.lexsort((-shares.sum(axis=0), -shares.max(axis=0))):
        s, t, left = int(source[kind]), int(target[kind]), int(counts[kind])
        while left:
            fitting = np.where(open_rows[s:, t:] > 0, leftover[s:, t:], nowhere)
            best = int(fitting.argmin())
            if fitting.flat[best] == nowhere:
                break
            ds, dt = divmod(best, fitting.shape[1])
            row = groups[s + ds, t + dt].pop()
            used = min(left, row.count)
            open_rows[s + ds, t + dt] -= row.count
            if used < row.count:
                put(row.kinds, row.count - used, s + ds, t + dt)
            put([*row.kinds, int(kind)], used, ds, dt)
            left -= used
        each = min(capacity[0] // s, capacity[1] // t)  # of this kind fit into a new row
        for size, count in ((each, left // each), (left % each, 1)):
            if size and count:
                put([int(kind)] * size, count, capacity[0] - size * s, capacity[1] - size * t)
    return [row for group in groups.values() for row in group]


def buckets(lengths: np.ndarray, batch_tokens: int) -> Iterator[tuple[np.ndarray, int, int]]:
    """Batches of examples of similar length, shortest first, none left out.

    Args:
      lengths: pieces of each example.
      batch_tokens: pieces a batch may hold, padding included; one example is always allowed.

    Yields:
      The examples' indices, the padded length, and the padded number of rows, which depends on the
      padded length alone, so that there is one shape a bucket.
    """
    order = np.argsort(lengths, kind="stable")
    known, kind = np.unique(lengths, return_inverse=True)
    padded = np.array([bucket(int(length)) for length in known], int)[kind][order]
    for length in np.unique(padded):
        members = order[padded == length]
        rows = max(1, batch_tokens // int(length))
        for first in range(0, len(members), rows):
            yield members[first : first + rows], int(length), rows


def bucket(length: int) -> int:
    """The padded length for a length: the next power of two, since each padded length is compiled once."""
    return max(SHORTEST_BUCKET, 1 << (length - 1).bit_length())
