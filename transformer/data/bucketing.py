"""Bucketing for training: a row holds one pair, and a batch holds pairs of similar length."""

import functools
import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from transformer.data.plan import select_fitting

MAX_SHAPES = 8  # batch shapes per plan; each shape is compiled
MAX_CHUNKS = 64  # largest number of groups of batches to start from when merging batches into buckets


class Bucket(NamedTuple):
    """Pairs of similar length.

    Attributes:
      pairs: indices of the pairs.
      batches: indices of the batches that the pairs fill. Batch 0 has the shortest pairs.
      shape: rows, tokens per source row and tokens per target row of each batch.
    """

    pairs: np.ndarray
    batches: range
    shape: tuple[int, int, int]


class BucketedPlan:
    """A `Plan` whose rows hold one pair each, for models that do not support packing.

    The pairs are sorted by length and cut into batches with about the same number of target tokens. The
    length of a side is measured relative to the mean length in its language; the length of a pair is that of
    its longer side. A bucket consists of consecutive whole batches, so even the batch of the longest pairs is
    full. Each epoch assigns the pairs of a bucket to its batches at random.
    """

    def __init__(
        self,
        source_lengths: Int[np.ndarray, "pairs"],
        target_lengths: Int[np.ndarray, "pairs"],
        row_length: int,
        batch_tokens: int,
        seed: int,
    ):
        """Sorts the pairs and forms the buckets; see `PackedPlan` for arguments and errors."""
        pairs, lengths = select_fitting(source_lengths, target_lengths, row_length)
        self.dropped = len(source_lengths) - len(pairs)
        self.max_lengths = tuple(lengths.max(axis=1).tolist())
        order = np.argsort((lengths / lengths.mean(axis=1, keepdims=True)).max(axis=0), kind="stable")
        pairs, lengths = pairs[order], lengths[:, order]
        tokens = np.cumsum(lengths[1])
        num_batches = max(1, round(tokens[-1] / batch_tokens))
        # A pair with more than `batch_tokens` tokens can leave batches empty; `np.unique` drops these.
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
        """Returns the bucket of a step, the batch's index in it, and the generator to shuffle its pairs."""
        epoch, number = divmod(step, self.steps_per_epoch)
        rng = np.random.default_rng((self._seed, epoch))
        batch = int(rng.permutation(self.steps_per_epoch)[number])
        bucket = next(bucket for bucket in self._buckets if batch in bucket.batches)
        return bucket, batch - bucket.batches.start, rng


def merge_batches(lengths: Int[np.ndarray, "2 pairs"], bounds: list[int]) -> list[int]:
    """Merges neighboring batches into at most `MAX_SHAPES` runs, starting with those that pad least.

    Args:
      lengths: source and target length of each pair, sorted.
      bounds: batch i holds the pairs bounds[i]:bounds[i + 1].

    Returns:
      The index of the first batch of each run, followed by the total number of batches.
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
