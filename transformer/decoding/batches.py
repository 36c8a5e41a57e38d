"""Which sentences are searched together, and as what."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from transformer.config import PAD
from transformer.data.plan import bucket


class Batch(NamedTuple):
    """Sentences that are searched together.

    Attributes:
      members: their numbers.
      length: to which they are padded.
      rows: how many there are room for.
    """

    members: Int[np.ndarray, "b"]
    length: int
    rows: int


def batches(lengths: Int[np.ndarray, "n"], batch_tokens: int) -> Iterator[Batch]:
    """Batches of sentences of similar length, the longest first, all full but the last one.

    The rows of a full batch follow from its padded length, and those of the last one are a power of two or a
    multiple of eight, so that few programs are compiled.

    Args:
      lengths: pieces of each sentence.
      batch_tokens: pieces a batch may hold, padding included; one sentence is always allowed.
    """
    order = np.argsort(-lengths, kind="stable")
    while len(order):
        length = _rounded(int(lengths[order[0]]))
        rows = max(1, batch_tokens // length)
        rows = rows // 8 * 8 or rows
        left = -(-len(order) // 8) * 8 if len(order) > 8 else 1 << (len(order) - 1).bit_length()
        yield Batch(order[:rows], length, min(rows, left))
        order = order[rows:]


def padded(
    lists: Sequence[Sequence[int] | Int[np.ndarray, "_"]], length: int | None = None, rows: int | None = None
) -> Int[np.ndarray, "b s"]:
    """Lists of pieces as rows of `length` (None: of the longest), and rows of padding up to `rows`."""
    shape = rows or len(lists), length or max(map(len, lists))
    array = np.full(shape, PAD, np.int32)
    for row, pieces in zip(array, lists, strict=False):
        row[: len(pieces)] = pieces
    return array


def _rounded(length: int) -> int:
    """A power of two, or three quarters of one: each padded length is compiled once."""
    power = bucket(length)
    return power * 3 // 4 if length <= power * 3 // 4 and power > bucket(1) else power
