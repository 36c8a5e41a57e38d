"""Bucketing for training: rows of one pair, and batches of pairs of similar length."""

import functools
import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from transformer.data.plan import select_fitting

MAX_SHAPES = 8  # of the batches of a plan, since each shape is compiled
MAX_CHUNKS = 64  # that the batches of an epoch are grouped into before they are merged to buckets


class Bucket(NamedTuple):
    """Pairs of similar length.

    Attributes:
      pairs: numbers of the pairs.
      batches: numbers of the batches that they fill, counted from the shortest pairs on.
      shape: rows, tokens per source row and tokens per target row of each batch.
    """

    pairs: np.ndarray
    batches: range
    shape: tuple[int, int, int]


class BucketedPlan:
    """Training batches of rows with one pair each, for models that do not support packing; a `Plan`.

    The pairs are sorted by length and cut into batches of equally many target tokens. A bucket is a run of
    such batches, so that a few long pairs get no batch to themselves. Each epoch assigns the pairs of a
    bucket to its batches at random. The length of a pair is that of its longer side, each side relative to
    the mean of its language.
    """

    def __init__(
        self,
        source_lengths: Int[np.ndarray, "pairs"],
        target_lengths: Int[np.ndarray, "pairs"],
        row_length: int,
        batch_tokens: int,
        seed: int,
    ):
        """Sorts the pairs and forms the buckets; arguments and errors as for `PackedPlan`."""
        pairs, lengths = select_fitting(source_lengths, target_lengths, row_length)
        self.dropped = len(source_lengths) - len(pairs)
        self.max_lengths = tuple(lengths.max(axis=1).tolist())
        order = np.argsort((lengths / lengths.mean(axis=1, keepdims=True)).max(axis=0), kind="stable")
        pairs, lengths = pairs[order], lengths[:, order]
        tokens = np.cumsum(lengths[1])
        num_batches = max(1, round(tokens[-1] / batch_tokens))
        # There are fewer batches if a pair has more tokens than a batch is to hold: none is empty.
        _, starts = np.unique((tokens - 1) * num_batches // tokens[-1], return_index=True)
        self.steps_per_epoch = len(starts)
        bounds = [*starts.tolist(), len(pairs)]
        self._buckets = []
        for first, last in itertools.pairwise(merge_batches(lengths, bounds)):
            members = slice(bounds[first], bounds[last])
            num_rows = -(-(members.stop - members.start) // (last - first))
            shape = (num_rows, *lengths[:, members].max(axis=1).tolist())
            self._buckets.append(Bucket(pairs[members], range(first, last), shape))
        self._seed = seed

    @property
    def summary(self) -> str:
        rows, source, target = zip(*(bucket.shape for bucket in self._buckets), strict=True)
        tokens = f"{min(source + target)} to {max(source + target)} tokens"
        return f"{min(rows)} to {max(rows)} rows of {tokens} per step (shapes: {len(rows)})"

    def shape(self, step: int) -> tuple[int, int, int]:
        bucket, _, _ = self._find(step)
        return bucket.shape

    def rows(self, step: int) -> list[np.ndarray]:
        bucket, number, rng = self._find(step)
        batches = np.array_split(rng.permutation(bucket.pairs), len(bucket.batches))
        return list(batches[number][:, None])

    def _find(self, step: int) -> tuple[Bucket, int, np.random.Generator]:
        """Returns a step's bucket, the number of its batch in the bucket, and the generator for its pairs."""
        epoch, number = divmod(step, self.steps_per_epoch)
        rng = np.random.default_rng((self._seed, epoch))
        batch = int(rng.permutation(self.steps_per_epoch)[number])
        bucket = next(bucket for bucket in self._buckets if batch in bucket.batches)
        return bucket, batch - bucket.batches.start, rng


def merge_batches(lengths: Int[np.ndarray, "2 pairs"], bounds: list[int]) -> list[int]:
    """Merges neighbouring batches into at most `MAX_SHAPES` runs, those first that add the least padding.

    Args:
      lengths: source and target length of each pair, sorted.
      bounds: batch i holds the pairs bounds[i]:bounds[i + 1].

    Returns:
      The first batch of each run, and the number of batches.
    """

    @functools.cache
    def num_slots(first: int, last: int) -> int:
        run = lengths[:, bounds[first] : bounds[last]]
        return run.shape[1] * int(run.max(axis=1).sum())

    num_batches = len(bounds) - 1
    edges = [*range(0, num_batches, -(-num_batches // MAX_CHUNKS)), num_batches]
    while len(edges) > 2:
        triples = zip(edges, edges[1:], edges[2:], strict=False)
        added = [num_slots(a, c) - num_slots(a, b) - num_slots(b, c) for a, b, c in triples]
        if len(edges) <= MAX_SHAPES + 1 and min(added) > 0:
            break
        del edges[added.index(min(added)) + 1]
    return edges
