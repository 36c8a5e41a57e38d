"""Packing: several pairs share a row, so that batches have little padding."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from transformer.data.plan import select_fitting


class PackedPlan:
    """A `Plan` whose rows hold several pairs each.

    The packing depends only on the lengths of the pairs. It is computed once, from the histogram of lengths
    (after Krell et al. 2021, "Efficient Sequence Packing without Cross-contamination"). The packing assigns a
    source length and a target length to every place in a row. Each epoch fills the places with pairs of these
    lengths at random, and shuffles the rows.

    Attributes:
      source_length: tokens per source row.
      target_length: tokens per target row. The language that needs fewer tokens has shorter rows.
      num_rows: rows per batch. The rows of an epoch are spread evenly over its batches, so the last rows of a
        batch may be empty.
    """

    def __init__(
        self,
        source_lengths: Int[np.ndarray, "pairs"],
        target_lengths: Int[np.ndarray, "pairs"],
        row_length: int,
        batch_tokens: int,
        seed: int,
    ):
        """Computes the packing.

        Args:
          source_lengths: tokens of the source of each pair, EOS included.
          target_lengths: tokens of the target of each pair, EOS included.
          row_length: tokens per row of the language that needs more tokens.
          batch_tokens: target tokens per batch, on average.
          seed: seed of the order of each epoch.

        Raises:
          ValueError: no pair fits into a row.
        """
        self._pairs, lengths = select_fitting(source_lengths, target_lengths, row_length)
        self.dropped = len(source_lengths) - len(self._pairs)
        # Pairs with equal source lengths and equal target lengths are of one kind. One code per kind sorts
        # faster than two lengths.
        codes = lengths[0] * (row_length + 1) + lengths[1]
        codes, kind_of_pair, counts = np.unique(codes, return_inverse=True, return_counts=True)
        self._kind_of_pair = kind_of_pair.astype(np.int32)
        kinds = np.stack(np.divmod(codes, row_length + 1))
        totals, longest = lengths.sum(axis=1), lengths.max(axis=1)
        self.max_lengths = tuple(longest.tolist())
        scaled_lengths = np.ceil(row_length * totals / totals.max()).astype(int)
        self.source_length, self.target_length = map(int, np.maximum(scaled_lengths, longest))
        rows = pack_histogram(kinds[0], kinds[1], counts, (self.source_length, self.target_length))
        # Place i of an epoch takes a pair of kind places[i]. Row r has the places starts[r]:starts[r + 1].
        places = np.concatenate([np.tile(row.kinds, row.count) for row in rows])
        sizes = np.concatenate([np.full(row.count, len(row.kinds)) for row in rows])
        self._places_by_kind = np.argsort(places, kind="stable")
        self._starts = np.cumsum([0, *sizes])
        tokens_per_row = totals[1] / len(sizes)
        self.num_rows = max(1, min(len(sizes), round(batch_tokens / tokens_per_row)))
        self.steps_per_epoch = -(-len(sizes) // self.num_rows)
        self._seed = seed
        self._last_epoch: tuple[int, np.ndarray, np.ndarray] | None = None

    @property
    def summary(self) -> str:
        lengths = f"{self.source_length} source and {self.target_length} target tokens"
        return f"{self.num_rows} rows of {lengths} per step"

    def shape(self, step: int) -> tuple[int, int, int]:
        return self.num_rows, self.source_length, self.target_length

    def rows(self, step: int) -> list[np.ndarray]:
        epoch, batch = divmod(step, self.steps_per_epoch)
        pairs, order = self._shuffle(epoch)
        first, last = (len(order) * number // self.steps_per_epoch for number in (batch, batch + 1))
        return [pairs[self._starts[row] : self._starts[row + 1]] for row in order[first:last]]

    def _shuffle(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the pair in each place of an epoch, and the order of the rows. Caches one epoch."""
        if self._last_epoch is None or self._last_epoch[0] != epoch:
            rng = np.random.default_rng((self._seed, epoch))
            by_kind = np.lexsort((rng.random(len(self._kind_of_pair)), self._kind_of_pair))
            pairs = np.empty_like(self._pairs)
            pairs[self._places_by_kind] = self._pairs[by_kind]
            self._last_epoch = epoch, pairs, rng.permutation(len(self._starts) - 1)
        return self._last_epoch[1:]


class PackedRow(NamedTuple):
    """A group of equal rows: each has pairs of the same kinds; see `pack_histogram`.

    Attributes:
      kinds: the kind of each pair in a row.
      count: number of rows in the group.
    """

    kinds: list[int]
    count: int


class OpenRows:
    """Rows during packing, grouped by space: the number of tokens that are free on each side of a row."""

    def __init__(self, capacity: tuple[int, int]):
        """Starts without rows; `capacity` is the number of tokens per source row and per target row."""
        self._capacity = capacity
        self._groups: dict[tuple[int, int], list[PackedRow]] = {}
        self._numbers: dict[tuple[int, int], int] = {}  # the index of each group in the arrays
        self._spaces = np.zeros((2, 64), np.int64)
        self._counts = np.zeros(64, np.int64)  # rows in each group
        # Space of each group as a fraction of the capacity, summed over both sides.
        self._leftover = np.zeros(64)

    def add(self, rows: PackedRow, source_space: int, target_space: int) -> None:
        """Adds rows with pairs of the same kinds and the given space on each side."""
        space = (source_space, target_space)
        if space not in self._numbers:
            self._add_group(space)
        self._groups[space].append(rows)
        self._counts[self._numbers[space]] += rows.count

    def _add_group(self, space: tuple[int, int]) -> None:
        number = self._numbers[space] = len(self._numbers)
        self._groups[space] = []
        if number == len(self._counts):
            self._spaces = np.concatenate([self._spaces, np.zeros_like(self._spaces)], axis=1)
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            self._leftover = np.concatenate([self._leftover, np.zeros_like(self._leftover)])
        self._spaces[:, number] = space
        self._leftover[number] = space[0] / self._capacity[0] + space[1] / self._capacity[1]

    def pop_best(self, source: int, target: int) -> tuple[PackedRow, int, int] | None:
        """Removes rows in which a pair would leave the least space.

        Among rows with equally little space, those with the least space on the source side are removed.

        Args:
          source: source length of the pair.
          target: target length of the pair.

        Returns:
          The removed rows and the space that the pair will leave on each side; None if the pair fits nowhere.
        """
        fits = (self._counts > 0) & (self._spaces[0] >= source) & (self._spaces[1] >= target)
        candidates = np.flatnonzero(fits)
        if not len(candidates):
            return None
        leftover = self._leftover[candidates]
        ties = candidates[leftover == leftover.min()]
        number = int(ties[self._spaces[0, ties].argmin()])
        source_space, target_space = map(int, self._spaces[:, number])
        rows = self._groups[source_space, target_space].pop()
        self._counts[number] -= rows.count
        return rows, source_space - source, target_space - target

    def rows(self) -> list[PackedRow]:
        """Returns all rows."""
        return [rows for group in self._groups.values() for rows in group]


def pack_histogram(
    source: Int[np.ndarray, "kinds"],
    target: Int[np.ndarray, "kinds"],
    counts: Int[np.ndarray, "kinds"],
    capacity: tuple[int, int],
) -> list[PackedRow]:
    """Packs pairs with the best-fit-decreasing heuristic in two dimensions, many equal rows at a time.

    Args:
      source: source length of each kind of pair. Pairs of one kind have equal source lengths and equal target
        lengths.
      target: target length of each kind of pair. Every pair must fit into an empty row.
      counts: number of pairs of each kind.
      capacity: tokens per source row and per target row.
    """
    open_rows = OpenRows(capacity)
    shares = np.stack([source, target]) / np.array(capacity)[:, None]
    for kind in map(int, np.lexsort((-shares.sum(axis=0), -shares.max(axis=0)))):
        s, t, remaining = int(source[kind]), int(target[kind]), int(counts[kind])
        while remaining and (best := open_rows.pop_best(s, t)):
            rows, source_space, target_space = best
            filled = min(remaining, rows.count)
            if filled < rows.count:
                unfilled = PackedRow(rows.kinds, rows.count - filled)
                open_rows.add(unfilled, source_space + s, target_space + t)
            open_rows.add(PackedRow([*rows.kinds, kind], filled), source_space, target_space)
            remaining -= filled
        per_row = min(capacity[0] // s, capacity[1] // t)  # pairs of this kind that fit into a new row
        for size, count in ((per_row, remaining // per_row), (remaining % per_row, 1)):
            if size and count:
                open_rows.add(PackedRow([kind] * size, count), capacity[0] - size * s, capacity[1] - size * t)
    return open_rows.rows()
