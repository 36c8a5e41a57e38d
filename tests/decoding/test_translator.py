"""Strings in, strings out: order, neighbours, limits."""

import time

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import as_int, logits, tiny_config
from transformer.config import EOS, DecodeConfig, UserError
from transformer.data.tokenizer import Tokenizer
from transformer.decoding.batches import batches
from transformer.decoding.search import Found, length_penalty, wu_penalty
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


def translator(tokenizer, beam_size=3, batch_tokens=64, max_source=1_024, n_best=1, decode=None, **changes):
    """`decode`: further fields of its config; `changes`: of the model's."""
    model = build(tiny_config(**changes), tokenizer.vocab_size)
    params = jax.tree.map(lambda x: 2 * x, init_params(model, seed=3))  # far from uniform
    config = DecodeConfig(
        **{"beam_size": beam_size, "max_extra": 5, "batch_tokens": batch_tokens, "max_source": max_source}
        | (decode or {})
    )
    return Translator(model, params, tokenizer, config, n_best)


@pytest.mark.parametrize("beam_size", [1, 3])
def test_order_and_neighbours_change_nothing(tokenizer, beam_size):
    translate = translator(tokenizer, beam_size)
    together = translate(TEXTS)
    assert len(together) == len(TEXTS)
    assert together[2] == ""
    assert len(set(together)) > 3
    assert translate(TEXTS[::-1]) == together[::-1]
    assert [translate([text])[0] for text in TEXTS] == together


@given(st.lists(st.integers(1, 300), max_size=200), st.sampled_from([16, 100, 1_024]))
def test_batches_leave_nothing_out_and_have_few_shapes(lengths, batch_tokens):
    shapes, seen = {}, []
    for batch in batches(np.array(lengths, int), batch_tokens):
        own = [lengths[member] for member in batch.members]
        assert max(own) <= batch.length < max(17, 1.5 * max(own) + 1)
        assert len(own) <= batch.rows
        assert batch.rows * batch.length <= max(batch_tokens, batch.length)
        shapes.setdefault(batch.length, []).append(batch.rows)
        seen += batch.members.tolist()
    assert sorted(seen) == list(range(len(lengths)))
    for rows in shapes.values():
        assert len(set(rows[:-1])) <= 1  # only the last one of all may have room for fewer


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


def test_the_n_best_are_ranked_and_the_best_is_the_best(tokenizer):
    found = translator(tokenizer, n_best=3).hypotheses(TEXTS)
    assert [len(own) for own in found] == [3, 3, 1, 3, 3, 3]
    assert [own[0].text for own in found] == translator(tokenizer)(TEXTS)
    for own in found:
        ranks = [(not one.ended, -one.score) for one in own]
        assert ranks == sorted(ranks)
        assert len({one.text for one in own}) == len(own)
    with pytest.raises(UserError, match="decode.beam_size is 3; the 4 best need at least as many"):
        translator(tokenizer, n_best=4)


@pytest.mark.parametrize(
    "decode", [{}, {"beam_size": 1}, {"sampling": True}], ids=["beam", "greedy", "drawn"]
)
def test_an_output_begins_with_its_prefix(tokenizer, decode):
    """Each with its own; an empty one forces nothing, and a text in parts begins with it once."""
    translate = translator(tokenizer, max_source=16, decode=decode)
    prefixes = ["two men in", "", "red", "a hat", "nine", "seven"]
    forced = [own[0].text for own in translate.hypotheses(TEXTS, prefixes)]
    free = [own[0].text for own in translate.hypotheses(TEXTS)]
    for number, (text, prefix) in enumerate(zip(forced, prefixes, strict=True)):
        if number in (1, 2):  # no prefix; no text
            assert text == free[number]
        else:
            assert text.startswith(prefix) != free[number].startswith(prefix)
    parts = [own.text for own in list(translate._parts(TEXTS, lambda *_: None)[0]) if own.text == 0]
    assert len(parts) == 2


@pytest.mark.parametrize(("prefix", "fits"), [("nine red", True), ("nine reda", False)])
def test_a_prefix_leaves_room_for_an_end(tokenizer, prefix, fits):
    """A text of 3 pieces has an output of at most 8; of the 9 of this prefix none may be the last."""
    translate = translator(tokenizer, max_source=8, decode={"max_extra": 7})
    assert len(tokenizer.encode("a")) == 3
    if fits:
        assert translate.hypotheses(["a"], [prefix])[0][0].text.startswith(prefix)
    else:
        with pytest.raises(UserError, match="prefix 8 has 10 pieces; its output has at most 10,"):
            translate.hypotheses(["a"], [prefix], first=7)


def test_given_translations_have_the_model_s_log_probabilities(tokenizer):
    """Of each pair by itself, without padding; then those of what a search found, and its scores."""
    targets = ["red hat in a man", "a", "one", "", "two two two two two two two", "dogs"]
    translate = translator(tokenizer)
    model, params = build(tiny_config(), tokenizer.vocab_size), translate._params
    found = translate.log_probs(TEXTS, targets)
    for text, target, own in zip(TEXTS, targets, found, strict=True):
        source, pieces = (as_int([tokenizer.encode(side)]) for side in (text, target))
        full = jax.nn.log_softmax(logits(model, params, source, pieces))[0]
        np.testing.assert_allclose(own, full[np.arange(pieces.size), pieces[0]], atol=1e-4)
    assert translate.log_probs([], []) == []


@pytest.mark.parametrize("penalty", ["wu", "length"])
def test_a_score_is_the_sum_of_log_probabilities_over_the_penalty(tokenizer, penalty, monkeypatch):
    """Whether its pieces are what the vocabulary would cut its text into or not."""
    decode = {"penalty": penalty, "length_penalty": 0.8}
    translate = translator(tokenizer, n_best=3, decode=decode)
    source = np.zeros((4, 24), np.int32)
    texts = [text for text in TEXTS if 0 < len(text) < 20]
    for row, text in enumerate(texts):
        source[row, : len(tokenizer.encode(text))] = tokenizer.encode(text)
    found, penalties = translate.search(source), {"wu": wu_penalty, "length": length_penalty}
    encode, names = tokenizer.encode_arrays, [str(row) for row in range(len(texts))]
    for place in range(3):
        pieces = [own[own != 0] for own in found.tokens[:, place]]
        monkeypatch.setattr(
            tokenizer,
            "encode_arrays",
            lambda sides, pieces=pieces: pieces if sides is names else encode(sides),
        )
        for row, own in enumerate(translate.log_probs(texts, names)):
            score = own.sum() / penalties[penalty](len(own), 0.8)
            assert float(found.score[row, place]) == pytest.approx(float(score), abs=1e-4)


def test_scores_are_the_same_in_any_batch(tokenizer):
    alone = translator(tokenizer, batch_tokens=16).hypotheses(TEXTS)
    for batch_tokens in (64, 512):
        together = translator(tokenizer, batch_tokens=batch_tokens).hypotheses(TEXTS)
        for one, other in zip(alone, together, strict=True):
            assert one[0].text == other[0].text
            assert one[0].score == pytest.approx(other[0].score, abs=1e-4)


@pytest.mark.parametrize("beam_size", [1, 3])
def test_least_and_most_pieces(tokenizer, beam_size):
    source = np.array([[5, 6, 2, 0], [5, 6, 7, 2]], np.int32)

    def lengths(**decode):
        return (translator(tokenizer, beam_size, decode=decode).search(source).tokens != 0).sum(axis=-1)[:, 0]

    free = lengths()
    assert (lengths(min_length=1, max_length=2) <= 2).all()
    assert (lengths(min_length=11) >= 11).all()  # above the limits of 8 and 9, which it raises
    assert (lengths(min_length=4, max_length=4) == 4).all()
    np.testing.assert_array_equal(lengths(max_length=50), free)


def test_what_positions_cannot_place_has_no_score(tokenizer):
    translate = translator(tokenizer, positions="learned", max_positions=12, decode={"max_extra": 50})
    with pytest.raises(UserError, match="target 9 has 20 pieces; at most 12 are scored: see decode.max_s"):
        translate.log_probs(["a", "a man"], ["a", "a man in a red hat"], first=7)
    assert all(np.isfinite(one).all() for one in translate.log_probs(["a man", "a"], ["a", "a hat"]))
    with pytest.raises(UserError, match="text 1 has 20 pieces; at most 19 are scored"):
        translator(tokenizer, max_source=19).log_probs(["a man in a red hat"], ["a"])
    for own in translate.hypotheses(["a man"], ["two"]):
        assert len(tokenizer.encode(own[0].text)) == 12 + (not own[0].ended)  # an end is a piece, too


def test_a_model_whose_numbers_are_none_gives_an_empty_line(tokenizer):
    translate, seen = translator(tokenizer), []
    translate._params = jax.tree.map(lambda x: x * np.nan, translate._params)
    assert translate(["a", "", "a man"], at_limit=seen.append) == ["", "", ""]
    assert seen == [0, 2]


def test_a_least_length_that_the_positions_do_not_hold_is_refused(tokenizer):
    model = build(tiny_config(positions="learned", max_positions=12), tokenizer.vocab_size)
    with pytest.raises(UserError, match="decode.min_length is 13; the model places at most 12 pieces"):
        Translator(model, {}, tokenizer, DecodeConfig(min_length=13))


def test_an_exception_in_a_batch_ends_the_others(tokenizer, monkeypatch):
    translate, searched = translator(tokenizer, batch_tokens=16), []

    def fails(source, *_):
        searched.append(len(source))
        time.sleep(0.01)
        raise ValueError("broken")

    monkeypatch.setattr(translate, "search", fails)
    with pytest.raises(ValueError, match="broken"):
        translate(["a"] * 400)
    assert len(searched) < 100
