"""The tokenizer: from text to tokens and back."""

import io
import re

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer.config import BOS, EOS, PAD, UNK, UserError
from transformer.data.tokenizer import Tokenizer, normalize

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


SPACES = Tokenizer.train(["a b \t \u3000 \u00a0"] * 3, "char", 10)


@given(st.text(" a b\u2581\t\u3000\u00a0", max_size=8), st.text(" a b\u2581\t\u3000\u00a0", max_size=8))
@settings(max_examples=300, deadline=None)
def test_texts_have_equal_tokens_exactly_if_their_normalized_forms_are_equal(first, second):
    assert (normalize(first) == normalize(second)) == (SPACES.encode(first) == SPACES.encode(second))


def test_normalization_removes_spaces_as_the_tokenizer_does():
    assert len({normalize(text) for text in ("a b", " a b", "a b ", "a   b", "a\u2581b")}) == 1
    assert len({normalize(text) for text in ("a b", "A b", "a\tb", "a\u00a0b", "ab", "a b.")}) == 6
    assert normalize("a\ud800") == normalize("a?")


@pytest.mark.parametrize(
    ("line", "vocab_size"),
    [("q" + "z" * 5_000, 9), ("q z \u2585", 9), ("q\0z", 9), ("q\nz", 12), ("q\tz", 12)],
)
def test_no_line_is_left_out_when_the_vocabulary_is_learned(line, vocab_size):
    tokenizer = Tokenizer.train([line, "ab", "ba"], "char", vocab_size)
    assert not tokenizer.unknown("qzab")


def test_bytes_stand_for_characters_without_a_token():
    tokenizer = Tokenizer.train(TEXTS, "bpe", 330, byte_fallback=True)
    text = "ein \u4eba im Hut"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.unknown(text) == ""
    assert UNK not in tokenizer.encode(text)
    first_byte = tokenizer.encode("\u4eba")[1:2]
    assert tokenizer.decode(first_byte) == "\ufffd"
    with pytest.raises(UserError, match=r"need \d+ tokens; set it to \d+ or more"):
        Tokenizer.train(TEXTS, "bpe", 200, byte_fallback=True)


def test_each_character_without_a_token_is_named_once(tokenizer):
    assert tokenizer.unknown("zwei \u4eba, \u5b57\u4eba") == "\u4eba,\u5b57"
    assert tokenizer.unknown(TEXTS[0]) == ""


def test_an_error_while_the_text_is_read_is_raised_unchanged():
    def broken():
        yield "a b"
        raise UserError("the text is damaged")

    with pytest.raises(UserError, match="the text is damaged"):
        Tokenizer.train(broken(), "bpe", 90)


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
            r"data.vocab_size is 5000, but the training text yields at most (\d+) tokens; set it to \1 or less",
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


DOCUMENTS = ["def f(x):\n    return  x\n", "\tif x:\r\n\t\ty = 'zwölf'\n\n\n", "  \n", "a"] * 3


@pytest.fixture(scope="module", params=["bpe", "unigram", "char"])
def exact(request):
    return Tokenizer.train(DOCUMENTS, request.param, 285, byte_fallback=True, exact=True)


@settings(deadline=None, max_examples=100)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=60))
def test_an_exact_vocabulary_restores_any_text_and_knows_its_bytes(exact, text):
    tokens = exact.encode(text)
    assert tokens.index(EOS) == len(tokens) - 1
    assert exact.decode(tokens) == text
    assert exact.byte_lengths[tokens].sum() == len(text.encode())
    assert exact.lost(text) == ""


@pytest.mark.parametrize(
    "text", [" ", "  a  b ", "\n", "\r\n", "\t a\n\n", "\0", "</s><s><unk><0x41>", "\ufeff", "\u2585"]
)
def test_an_exact_vocabulary_keeps_spaces_and_special_characters(exact, text):
    assert exact.decode(exact.encode(text)) == text
    assert exact.byte_lengths[exact.encode(text)].sum() == len(text.encode())


def test_an_exact_vocabulary_without_bytes_loses_only_characters_without_a_token():
    tokenizer = Tokenizer.train(DOCUMENTS, "bpe", 40, exact=True)
    for text in DOCUMENTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.lost("a\u4eba\u2581 \0\u4eba") == "\u4eba\u2581\0"


def test_a_vocabulary_of_characters_has_all_characters_of_the_documents():
    text = "zyx\n\t\r ü\u3000\u4eba"
    needed = len(text) + 4
    tokenizer = Tokenizer.train([text, "a\n"], "char", needed + 1, exact=True)
    assert set(tokenizer.names(range(4, needed + 1))) == {*text.replace(" ", "\u2581"), "a"}
    assert tokenizer.decode(tokenizer.encode(text)) == text
    message = (
        f"data.vocab_size is 9, but the characters of the training text need {needed + 1} tokens; set it to"
    )
    with pytest.raises(UserError, match=message):
        Tokenizer.train([text, "a\n"], "char", 9, exact=True)


@pytest.mark.parametrize("text", ["qz\n", "qz\r\n", "qz\n\n"])
def test_line_ends_at_the_end_of_a_document_are_learned(text):
    assert Tokenizer.train([text], "char", 20, exact=True).lost(text) == ""


def test_the_spaces_of_an_indentation_become_one_token():
    tokenizer = Tokenizer.train(["a\n        b\n"] * 9, "bpe", 270, byte_fallback=True, exact=True)
    assert tokenizer.names(tokenizer.encode("        b")[:-1]) == ["\u2581" * 8, "b"]


def test_a_model_file_keeps_the_exactness_of_its_vocabulary(tmp_path, exact):
    (tmp_path / "exact").write_bytes(exact.model)
    assert Tokenizer.load(tmp_path / "exact").decode(exact.encode("  a")) == "  a"


def test_special_tokens_stand_for_no_bytes(exact, tokenizer):
    for vocabulary in (exact, tokenizer):
        assert not vocabulary.byte_lengths[[PAD, BOS, EOS, UNK]].any()
        assert (np.delete(vocabulary.byte_lengths, [PAD, BOS, EOS, UNK]) > 0).all()


def test_documents_change_no_setting_of_the_vocabularies_of_sentences(tokenizer):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=model,
        model_type="bpe",
        vocab_size=90,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=True,
        character_coverage=1.0,
        max_sentence_length=2**30,
        byte_fallback=False,
        pad_id=PAD,
        bos_id=BOS,
        eos_id=EOS,
        unk_id=UNK,
        minloglevel=2,
    )
    assert model.getvalue() == tokenizer.model
