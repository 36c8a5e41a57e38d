"""Strings in, strings out: order, neighbours, limits."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import tiny_config
from transformer.config import EOS, DecodeConfig
from transformer.data.tokenizer import Tokenizer
from transformer.decoding.search import Found
from transformer.decoding.translator import Translator
from transformer.model import build, init_params

TEXTS = [
    "a man in a red hat",
    "two dogs run",
    "",
    "a",
    "one two three four five six seven eight nine",
    "a man",
]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS * 3, "char", 24)


def translator(tokenizer, beam_size=3, batch_tokens=64, max_source=1_024, **changes):
    model = build(tiny_config(**changes), tokenizer.vocab_size)
    params = jax.tree.map(lambda x: 2 * x, init_params(model, seed=3))  # far from uniform
    config = DecodeConfig(beam_size=beam_size, max_extra=5, batch_tokens=batch_tokens, max_source=max_source)
    return Translator(model, params, tokenizer, config)


@pytest.mark.parametrize("beam_size", [1, 3])
def test_order_and_neighbours_change_nothing(tokenizer, beam_size):
    translate = translator(tokenizer, beam_size)
    together = translate(TEXTS)
    assert len(together) == len(TEXTS)
    assert together[2] == ""
    assert len(set(together)) > 3
    assert translate(TEXTS[::-1]) == together[::-1]
    assert [translate([text])[0] for text in TEXTS] == together


def test_one_program_a_bucket(tokenizer):
    translate = translator(tokenizer, batch_tokens=32)
    translate([f"{'a man ' * words}{letter}" for words in (0, 1, 2, 3) for letter in "ahdrs"])
    assert translate._search._cache_size() == 2  # 16 and 32 pieces


def test_no_text_no_translation(tokenizer):
    assert translator(tokenizer)([]) == []
    assert translator(tokenizer)(["", ""]) == ["", ""]
    assert translator(tokenizer)([" ", "\t", "\u2028\x85", "\n"]) == [""] * 4


def test_progress_reaches_the_number_of_texts(tokenizer):
    seen = []
    translator(tokenizer)(TEXTS[:2], seen.append)
    assert seen[-1] == 2


def test_output_is_at_most_input_plus_extra(tokenizer):
    translate = translator(tokenizer)
    source = np.array([[5, 6, 2, 0], [5, 6, 7, 2], [0, 0, 0, 0]], np.int32)
    lengths = (translate.search(source).tokens[:, 0] != 0).sum(axis=1)
    assert lengths[0] <= 3 + 5
    assert lengths[1] <= 4 + 5
    assert lengths[2] == 0


def test_progress_counts_texts_without_pieces_and_texts_in_parts(tokenizer):
    seen = []
    translator(tokenizer, max_source=8)(TEXTS, seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == len(TEXTS)


def test_a_long_text_is_translated_in_parts(tokenizer):
    """Each part holds the most words that fit: 7 pieces and EOS."""
    translate, seen = translator(tokenizer, max_source=8), []
    text = "a man in a red hat"
    together = translate(["a", text, "a man"], in_parts=lambda *one: seen.append(one))
    parts = ["a man", "in a", "red hat"]
    assert [len(tokenizer.encode(part)) for part in parts] == [7, 6, 9]
    assert seen == [(1, 20, 4)]
    assert together[1] == " ".join(filter(None, translate(["a man", "in a", "red", "hat"])))
    assert together[::2] == translate(["a", "a man"])


def test_a_word_without_end_is_cut_anywhere_and_joined_by_nothing(tokenizer):
    translate = translator(tokenizer, max_source=8)
    pieces = tokenizer.encode("hatmanred" * 2)
    assert len(pieces) == 20
    source = np.zeros((4, 8), np.int32)
    for row, begin in enumerate((0, 7, 14)):
        part = [*pieces[begin : begin + 7], EOS][: 8 if row < 2 else 6]
        source[row, : len(part)] = part
    alone = [tokenizer.decode(found) for found in translate.search(source).tokens[:3, 0]]
    assert translate(["hatmanred" * 2]) == ["".join(alone)]


def test_parts_and_their_padding_end_where_the_positions_do(tokenizer, monkeypatch):
    translate, first = translator(tokenizer, positions="learned", max_positions=12), []
    assert translate.max_source == 12
    search = translate.search

    def watched(source, *rest):
        found = search(source, *rest)
        first.extend(found.tokens[source.any(axis=1), 0, 0])
        return found

    monkeypatch.setattr(translate, "search", watched)
    assert len(translate(["a", "a man in a red hat"])) == 2
    assert len(first) == 3
    assert all(first)  # from numbers that are none, nothing is found


def test_a_translation_is_one_line(monkeypatch):
    """A vocabulary can hold line ends; what is searched for is made up."""
    tokenizer = Tokenizer.train(["a\rb c", "d\x0be"] * 3, "char", 12)
    pieces = [tokenizer.names(range(12)).index(name) for name in ("a", "\r", "b")]
    translate = translator(tokenizer)
    found = Found(np.array([[[*pieces, EOS]]]), np.zeros((1, 1)), np.ones((1, 1), bool))
    monkeypatch.setattr(translate, "search", lambda *_: found)
    assert tokenizer.decode(pieces) == "a\rb"
    assert translate(["a"]) == ["a b"]


ODD = [
    "",
    " ",
    "\t",
    "\n",
    "a\r\nman",
    "a\0man",
    "\u2028",
    "two\x85dogs",
    "\x0b\x0c",
    "\ud800",
    "\ufeffa",
    "</s>",
    "\u2581",
    "a" * 70,
]
LETTERS = st.text("a mn\u2581redx", max_size=60)
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=30)
ANY_TEXTS = st.lists(st.one_of(ANY_TEXT, LETTERS, st.sampled_from([*ODD, *TEXTS])), max_size=6)


@pytest.fixture(scope="module")
def one_shape(tokenizer):
    """A translator that pads each batch to all the rows of its bucket, so that there is one shape a bucket."""
    translate = translator(tokenizer, batch_tokens=64, max_source=24)
    search = translate.search

    def padded(source, *_):
        rows = 64 // source.shape[1]
        return search(np.pad(source, ((0, rows - len(source)), (0, 0))))

    translate.search = padded
    return translate


def check_any_texts(translate, texts):
    together = translate(texts)
    assert together == [translate([text])[0] for text in texts]
    assert not set("\r\n") & set("".join(together))


@settings(deadline=None, max_examples=40)
@given(ANY_TEXTS)
def test_any_text_is_translated_and_leaves_its_neighbours_alone(one_shape, texts):
    check_any_texts(one_shape, texts)


@pytest.mark.slow
@settings(deadline=None, max_examples=1_000)
@given(ANY_TEXTS)
def test_any_text_is_translated_many(one_shape, texts):
    check_any_texts(one_shape, texts)


@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.parametrize(("piece", "expected"), [(EOS, []), (7, [0, 1, 3, 4, 5])])
def test_what_reaches_its_limit_is_told(tokenizer, beam_size, piece, expected):
    """A model that always says the same piece; some texts go in parts."""
    translate = translator(tokenizer, beam_size, max_source=16, embeddings="untied")
    output = np.zeros((tokenizer.vocab_size, 22), np.float32)
    output[EOS] = -1e9  # or a beam would find it, however improbable
    output[piece] = 9
    translate._params["embedding"]["output_table"] = output
    norm = translate._params["decoder"]["layers_1"]["feed_forward_residual"]["norm"]
    norm |= {"scale": np.zeros(22, np.float32), "bias": np.ones(22, np.float32)}
    seen = []
    translate(TEXTS, at_limit=seen.append)
    assert seen == expected
