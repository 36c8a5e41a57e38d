"""The tokenizer: from text to tokens and back."""

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


def test_decoding_inverts_encoding(tokenizer):
    for text in TEXTS:
        tokens = tokenizer.encode(text)
        assert tokens[-1] == EOS
        assert tokenizer.decode(tokens) == text
        assert tokenizer.decode([*tokens, PAD, PAD, 7]) == text


def test_special_tokens_have_fixed_names_and_unknown_characters_become_unk(tokenizer):
    assert tokenizer.names([PAD, BOS, EOS, UNK]) == ["<pad>", "<s>", "</s>", "<unk>"]
    assert tokenizer.encode("") == [EOS]
    assert UNK in tokenizer.encode("\u4eba")
    assert UNK in tokenizer.encode("a lone surrogate \ud800")


def test_text_is_not_normalized():
    tokenizer = Tokenizer.train(["\ufb01n \u00bd x"] * 3, "char", 11)
    assert tokenizer.decode(tokenizer.encode("\ufb01n \u00bd")) == "\ufb01n \u00bd"


def test_equal_texts_give_equal_vocabularies(tokenizer):
    again = Tokenizer.train(TEXTS, "bpe", 90)
    assert again.sha256 == tokenizer.sha256
    assert Tokenizer(tokenizer.model).encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize(
    ("vocab_size", "message"),
    [
        (
            5_000,
            r"data.vocab_size is 5000, but the training text fills at most (\d+) tokens; set it to \1 or less",
        ),
        (
            9,
            r"data.vocab_size is 9, but the characters of the training text need (\d+) tokens; set it to \1 or more",
        ),
    ],
)
def test_an_impossible_vocabulary_size_is_refused_and_the_nearest_is_suggested(kind, vocab_size, message):
    with pytest.raises(UserError, match=message) as raised:
        Tokenizer.train(TEXTS, kind, vocab_size)
    nearest = int(re.match(message, str(raised.value))[1])
    assert Tokenizer.train(TEXTS, kind, nearest).vocab_size == nearest
    with pytest.raises(UserError, match=f"set it to {nearest} or"):
        Tokenizer.train(TEXTS, kind, nearest + (1 if vocab_size > nearest else -1))


@pytest.mark.parametrize("texts", [[], [""], [" "]], ids=repr)
def test_a_vocabulary_of_an_empty_text_is_refused(texts):
    with pytest.raises(UserError, match="data.vocab_size is 50, but the training text is empty"):
        Tokenizer.train(texts, "bpe", 50)


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=60)  # all of Unicode, including surrogates


def check_tokens_of(texts, tokenizer):
    encoded = tokenizer.encode_all(texts)
    assert encoded == [tokenizer.encode(text) for text in texts]
    for tokens in encoded:
        assert tokens.index(EOS) == len(tokens) - 1
        assert not {PAD, BOS} & set(tokens)
        tokenizer.decode(tokens).encode("utf-8")


@settings(deadline=None, max_examples=50)
@given(st.lists(ANY_TEXT, max_size=5))
def test_any_text_can_be_encoded_and_decoded(tokenizer, texts):
    check_tokens_of(texts, tokenizer)


@pytest.mark.slow
@settings(deadline=None, max_examples=1_000)
@given(st.lists(ANY_TEXT, max_size=5))
def test_any_text_can_be_encoded_and_decoded_in_many_examples(tokenizer, texts):
    check_tokens_of(texts, tokenizer)


def test_a_megabyte_without_spaces_is_decoded_unchanged(tokenizer):
    text = "hut" * 350_000
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_starts_word_marks_the_first_token_of_each_word(tokenizer):
    starts = tokenizer.starts_word[tokenizer.encode("zwei Hut")]
    assert starts[0]
    assert starts.sum() == 2
    assert not tokenizer.starts_word[[PAD, BOS, EOS, UNK]].any()


@pytest.mark.parametrize("content", [b"", b"garbage"])
def test_a_file_that_is_not_a_model_gives_a_one_line_error(tmp_path, content):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path} is not a SentencePiece model; restore it"):
        Tokenizer.load(path)
