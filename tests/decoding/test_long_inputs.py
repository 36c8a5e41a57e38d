"""Long sentences are split into parts that fit the model."""

import numpy as np
import pytest

from transformer.config import EOS
from transformer.decoding.long_inputs import split_tokens

START, INNER = 7, 8  # a token that begins a word, and a token that continues a word
STARTS_WORD = np.arange(10) == START


@pytest.mark.parametrize(
    ("word_lengths", "expected"),
    [
        ([3, 2], [([3, 2], "")]),  # a single part, with EOS
        ([3, 3], [([3], ""), ([3], " ")]),
        ([5, 1, 2, 2], [([5], ""), ([1, 2, 2], " ")]),
        ([2, 3, 5], [([2, 3], ""), ([5], " ")]),
    ],
)
def test_a_part_has_as_many_words_as_possible(word_lengths, expected):
    """A part has at most 6 tokens, including EOS."""
    tokens = np.array([*words(word_lengths), EOS], np.int32)
    parts = list(split_tokens(tokens, 6, STARTS_WORD))
    assert [(part.tokens.tolist(), part.separator) for part in parts] == [
        ([*words(lengths), EOS], separator) for lengths, separator in expected
    ]


def test_a_word_longer_than_a_part_is_split_and_joined_without_a_space():
    tokens = np.array([*words([12]), EOS], np.int32)
    parts = list(split_tokens(tokens, 6, STARTS_WORD))
    assert [len(part.tokens) for part in parts] == [6, 6, 3]
    assert [part.separator for part in parts] == ["", "", ""]
    assert [*parts[0].tokens[:-1], *parts[1].tokens[:-1], *parts[2].tokens] == tokens.tolist()


def words(lengths):
    return [token for length in lengths for token in [START, *[INNER] * (length - 1)]]
