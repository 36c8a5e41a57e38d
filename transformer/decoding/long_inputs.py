"""Splitting of sentences that are too long for a model."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from transformer.config import EOS


class Part(NamedTuple):
    """A part of a text, translated as if it were a sentence.

    Attributes:
      tokens: tokens of the part; the last token is EOS.
      separator: text between the translation of the previous part and the translation of this part.
    """

    tokens: Int[np.ndarray, "s"]
    separator: str


def split_tokens(
    tokens: Int[np.ndarray, "s"], max_length: int, starts_word: Bool[np.ndarray, "v"]
) -> Iterator[Part]:
    """Yields parts of at most `max_length` tokens. Each part is as long as possible and ends in EOS.

    A text is split before a word, and the translations of the parts are joined by a space. If no word begins
    within `max_length` tokens (as in Chinese), the text is split between any two tokens, and the translations
    are joined without a space.

    Args:
      tokens: tokens of a text; the last token is EOS.
      max_length: largest number of tokens per part, EOS included, at least 2.
      starts_word: for each token of the vocabulary, whether it begins a word.
    """
    starts = starts_word[tokens]
    begin, separator = 0, ""
    while len(tokens) - begin > max_length:
        limit = begin + max_length - 1
        word_starts = np.flatnonzero(starts[begin + 1 : limit + 1])
        end = begin + 1 + int(word_starts[-1]) if len(word_starts) else limit
        yield Part(np.append(tokens[begin:end], np.int32(EOS)), separator)
        begin, separator = end, " " if starts[end] else ""
    yield Part(tokens[begin:], separator)
