"""Sentences that are too long for a model go through it in parts."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from transformer.config import EOS


class Part(NamedTuple):
    """What is translated as one sentence.

    Attributes:
      text: number of the text it belongs to.
      pieces: closed by EOS.
      before: what joins its translation to the one of the part before it.
    """

    text: int
    pieces: Int[np.ndarray, "s"]
    before: str


def cut(
    text: int, pieces: Int[np.ndarray, "s"], most: int, starts_word: Bool[np.ndarray, "v"]
) -> Iterator[Part]:
    """Parts of at most `most` pieces: each ends before the last word that begins within reach.

    The translations of two such parts are joined by a space. Where no word begins (Chinese, or one endless
    word), the cut is between two pieces, and they are joined by nothing.

    Args:
      text: its number.
      pieces: of the text, closed by EOS, which closes each part, too.
      most: at least 2.
      starts_word: whether each piece of the vocabulary begins a word.
    """
    starts = starts_word[pieces]
    begin, before = 0, ""
    while len(pieces) - begin > most:
        reach = begin + most - 1
        words = np.flatnonzero(starts[begin + 1 : reach + 1])
        end = begin + 1 + int(words[-1]) if len(words) else reach
        yield Part(text, np.append(pieces[begin:end], np.int32(EOS)), before)
        begin, before = end, " " if starts[end] else ""
    yield Part(text, pieces[begin:], before)
