"""Pieces and back."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer.config import BOS, EOS, PAD, UNK, UserError
from transformer.data.tokenizer import Tokenizer

TEXTS = ["a man in a red hat", "ein Mann mit Hut", "two dogs run — fast", "zwölf Boxkämpfer jagen Viktor"] * 5


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS, "bpe", 90)


def test_round_trip(tokenizer):
    for text in TEXTS:
        pieces = tokenizer.encode(text)
        assert pieces[-1] == EOS
        assert tokenizer.decode(pieces) == text
        assert tokenizer.decode([*pieces, PAD, PAD, 7]) == text


def test_special_pieces(tokenizer):
    assert tokenizer.names([PAD, BOS, EOS, UNK]) == ["<pad>", "<s>", "</s>", "<unk>"]
    assert tokenizer.encode("") == [EOS]
    assert UNK in tokenizer.encode("\u4eba")
    assert UNK in tokenizer.encode("a lone surrogate \ud800")


def test_the_text_is_not_normalised(tokenizer):
    tokenizer = Tokenizer.train(["\ufb01n \u00bd x"] * 3, "char", 11)
    assert tokenizer.decode(tokenizer.encode("\ufb01n \u00bd")) == "\ufb01n \u00bd"


def test_same_text_same_vocabulary(tokenizer):
    again = Tokenizer.train(TEXTS, "bpe", 90)
    assert again.sha256 == tokenizer.sha256
    assert Tokenizer(tokenizer.model).encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])


def test_a_vocabulary_that_the_text_cannot_fill_is_refused():
    """The size that the message names is the largest that works, or the smallest."""
    for kind in ("bpe", "unigram"):
        with pytest.raises(
            UserError, match=r"data.vocab_size is 5000; the training text fills at most \d+: "
        ) as most:
            Tokenizer.train(TEXTS, kind, 5_000)
        (size,) = re.findall(r"at most (\d+)", str(most.value))
        assert Tokenizer.train(TEXTS, kind, int(size)).vocab_size == int(size)
        with pytest.raises(
            UserError, match=f"data.vocab_size is {int(size) + 1}; the .* fills at most {size}: "
        ):
            Tokenizer.train(TEXTS, kind, int(size) + 1)
        with pytest.raises(
            UserError, match=r"data.vocab_size is 9; .* characters need at least \d+"
        ) as least:
            Tokenizer.train(TEXTS, kind, 9)
        (size,) = re.findall(r"at least (\d+)", str(least.value))
        assert Tokenizer.train(TEXTS, kind, int(size)).vocab_size == int(size)
    for texts in ([], [""], [" "]):
        with pytest.raises(UserError, match="data.vocab_size is 50; the training text is empty"):
            Tokenizer.train(texts, "bpe", 50)


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=60)  # all of Unicode, surrogates too


def check_any_text(tokenizer, texts):
    encoded = tokenizer.encode_all(texts)
    assert encoded == [tokenizer.encode(text) for text in texts]
    for pieces in encoded:
        assert pieces.index(EOS) == len(pieces) - 1
        assert not {PAD, BOS} & set(pieces)
        tokenizer.decode(pieces).encode("utf-8")


@settings(deadline=None, max_examples=50)
@given(st.lists(ANY_TEXT, max_size=5))
def test_any_text_has_pieces(tokenizer, texts):
    check_any_text(tokenizer, texts)


@pytest.mark.slow
@settings(deadline=None, max_examples=1_000)
@given(st.lists(ANY_TEXT, max_size=5))
def test_any_text_has_pieces_many(tokenizer, texts):
    check_any_text(tokenizer, texts)


def test_a_megabyte_without_a_space_comes_back(tokenizer):
    text = "hut" * 350_000
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_where_words_start(tokenizer):
    pieces = tokenizer.encode("zwei Hut")
    text = "".join(" " * bool(tokenizer.starts_word[one]) + "." for one in pieces)
    assert text.startswith(" .")
    assert text.count(" ") == 2
    assert not tokenizer.starts_word[[PAD, BOS, EOS, UNK]].any()
