"""Batches of tokens: packed rows for training, batches by length for evaluation and search."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Integer

from transformer.batch import Batch, TokenBatch
from transformer.config import PAD
from transformer.data.splits import Side, Split

MIN_BUCKET_LENGTH = 16


class LengthBatch(NamedTuple):
    """Sentences of similar length.

    Attributes:
      members: index of each sentence in the data.
      length: tokens per row, padding included.
      num_rows: rows of the batch. The sentences fill the first rows; the others are padding.
    """

    members: Int[np.ndarray, "b"]
    length: int
    num_rows: int


def length_batches(lengths: Int[np.ndarray, "sentences"], max_tokens: int) -> Iterator[LengthBatch]:
    """Yields batches of sentences of similar length. The longest sentences come first.

    Each shape is compiled, so the batches have few shapes. Full batches with the same padded length have the
    same number of rows. The last batch may not be full; its number of rows is then a power of two or a
    multiple of eight.

    Args:
      lengths: number of tokens of each sentence.
      max_tokens: tokens per batch, padding included. A batch of one sentence may have more.
    """
    order = np.argsort(-lengths, kind="stable")
    while len(order):
        length = _padded_length(int(lengths[order[0]]))
        num_rows = max(1, max_tokens // length)
        num_rows = num_rows // 8 * 8 or num_rows
        num_left = -(-len(order) // 8) * 8 if len(order) > 8 else 1 << (len(order) - 1).bit_length()
        yield LengthBatch(order[:num_rows], length, min(num_rows, num_left))
        order = order[num_rows:]


def bucket(length: int, limit: int | None = None) -> int:
    """Rounds a length up to a power of two, at least `MIN_BUCKET_LENGTH` and at most `limit`."""
    rounded = max(MIN_BUCKET_LENGTH, 1 << (length - 1).bit_length())
    return rounded if limit is None else min(rounded, limit)


def _padded_length(length: int) -> int:
    """Rounds a length up to a power of two or to three quarters of a power of two."""
    power = bucket(length)
    return power * 3 // 4 if length <= power * 3 // 4 and power > MIN_BUCKET_LENGTH else power


def pad_rows(
    lists: Sequence[Sequence[int] | Integer[np.ndarray, "_"]],
    length: int | None = None,
    num_rows: int | None = None,
) -> Int[np.ndarray, "b s"]:
    """Writes lists of tokens into the rows of an array, padded with `PAD`.

    Args:
      lists: the tokens of each row.
      length: tokens per row; if None, the length of the longest list.
      num_rows: rows of the array; if None, one row per list.
    """
    shape = num_rows or len(lists), length or max(map(len, lists))
    array = np.full(shape, PAD, np.int32)
    for row, tokens in zip(array, lists, strict=False):
        row[: len(tokens)] = tokens
    return array


def evaluation_batches(split: Split, max_tokens: int) -> Iterator[Batch]:
    """Yields every pair of a split once, with one pair per row.

    Args:
      split: the pairs.
      max_tokens: tokens per side of a batch, padding included. A batch of one pair may have more.
    """
    for members, length, num_rows in length_batches(split.lengths, max_tokens):
        yield assemble(split, list(members[:, None]), num_rows, length, length)


def assemble(
    split: Split, rows: Sequence[np.ndarray], num_rows: int, source_length: int, target_length: int
) -> Batch:
    """Makes a batch whose rows hold pairs one after another.

    The segment id of a pair is its index plus one, so the pair has the same id in every batch.

    Args:
      split: the pairs.
      rows: indices of the pairs in each row.
      num_rows: rows of the batch. Rows beyond those in `rows` are padding.
      source_length: tokens per source row, padding included.
      target_length: tokens per target row, padding included.
    """
    characters = np.zeros(num_rows, np.int32)
    for row, pairs in enumerate(rows):
        characters[row] = split.characters[pairs].sum()
    return Batch(
        source=_fill(split.source, rows, num_rows, source_length),
        target=_fill(split.target, rows, num_rows, target_length),
        characters=characters,
    )


def _fill(side: Side, rows: Sequence[np.ndarray], num_rows: int, row_length: int) -> TokenBatch:
    batch = TokenBatch(*(np.zeros((num_rows, row_length), np.int32) for _ in TokenBatch._fields))
    for row, sentences in enumerate(rows):
        start = 0
        for sentence in sentences:
            tokens = side[sentence]
            place = (row, slice(start, start + len(tokens)))
            batch.tokens[place] = tokens
            batch.segment_ids[place] = sentence + 1
            batch.positions[place] = np.arange(len(tokens))
            start += len(tokens)
    return batch
