"""Pieces and back."""

import pytest

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
    with pytest.raises(UserError, match=r"data.vocab_size is 5000; SentencePiece says: .*5000"):
        Tokenizer.train(TEXTS, "bpe", 5_000)
