"""Translation from text to text: order, neighbors, limits, long texts, prefixes, scores."""

import math
import time

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.translators import (
    LEARNED,
    TEXTS,
    model_and_params,
    model_log_probs,
    tokenizer,
    translator,
)
from transformer.config import EOS, DecodeConfig, UserError
from transformer.data.batching import pad_rows
from transformer.data.tokenizer import Tokenizer
from transformer.decoding.search import SearchResult
from transformer.decoding.translator import Hypothesis, Translator
from transformer.training.parallelism import Mesh


@pytest.fixture(scope="module")
def beam():
    """A translator that returns the three best translations."""
    return translator(n_best=3)


@pytest.fixture(scope="module")
def greedy():
    """A translator that uses greedy search."""
    return translator(beam_size=1)


@pytest.fixture(scope="module")
def best(beam):
    """The three best translations of each of `TEXTS`."""
    return beam.hypotheses(TEXTS)


@pytest.mark.slow
def test_several_devices_translate_as_one(beam, best):
    model, params = model_and_params()
    config = DecodeConfig(beam_size=3, max_extra_length=5, batch_tokens=32, max_source_length=16)
    mesh = Mesh(devices=jax.devices()).mesh
    outputs = Translator(model, params, tokenizer(), config, 3, mesh).hypotheses(TEXTS)
    for output, expected in zip(outputs, best, strict=True):
        assert [hypothesis.text for hypothesis in output] == [hypothesis.text for hypothesis in expected]


def rows_of(texts):
    """The tokens of texts, one text per row of 16 tokens."""
    return pad_rows(tokenizer().encode_all(texts), 16)


def num_tokens(result):
    """The number of tokens in the best output of each row."""
    return (result.tokens[:, 0] != 0).sum(axis=-1).tolist()


@pytest.mark.parametrize("kind", ["beam", pytest.param("greedy", marks=pytest.mark.slow)])
def test_order_and_neighbors_do_not_change_a_translation(request, kind):
    translate = request.getfixturevalue(kind)
    together = translate(TEXTS)
    assert together[2] == ""
    assert len(set(together)) > 3
    assert translate(TEXTS[::-1]) == together[::-1]
    assert [translate([text])[0] for text in TEXTS] == together


def test_batch_and_padding_do_not_change_a_score(beam, best):
    in_one_batch = translator(n_best=3, batch_tokens=128).hypotheses(TEXTS)
    for expected, hypotheses in zip(best, in_one_batch, strict=True):
        assert hypotheses[0].text == expected[0].text
        assert hypotheses[0].score == pytest.approx(expected[0].score, abs=1e-4)
    source = rows_of(["a", "a man"])
    result, padded = beam.search(source), beam.search(np.pad(source, ((0, 0), (0, 8))))
    np.testing.assert_array_equal(padded.tokens[..., :21], result.tokens)
    np.testing.assert_allclose(padded.score, result.score, atol=1e-4)


def test_n_best_translations_are_ranked_and_distinct(best):
    assert [len(hypotheses) for hypotheses in best] == [3, 3, 1, 3, 3, 3]
    for text, hypotheses in zip(TEXTS, best, strict=True):
        assert len({hypothesis.text for hypothesis in hypotheses}) == len(hypotheses)
        if len(tokenizer().encode(text)) <= 16:
            ranks = [(not hypothesis.ended, -hypothesis.score) for hypothesis in hypotheses]
            assert ranks == sorted(ranks)
    assert translator()(TEXTS[:2]) == [hypotheses[0].text for hypotheses in best[:2]]


def test_white_space_has_an_empty_translation(beam):
    assert beam([]) == []
    assert beam([" ", "", "\t", "\u2028\x85", "\n"]) == [""] * 5


def test_progress_counts_finished_texts(beam):
    counts = []
    beam.hypotheses(TEXTS, progress=counts.append)
    assert counts == sorted(counts)
    assert counts[-1] == len(TEXTS)


def test_a_long_text_is_split_and_its_parts_are_translated(beam):
    splits = []
    texts = ["a", TEXTS[4], "a man"]
    together = beam.hypotheses(texts, on_split=lambda *split: splits.append(split))
    parts = beam.hypotheses(["one two three", "four five six", "seven eight"])
    assert splits == [(1, 41, 3)]
    assert together[1][0].text == " ".join(part[0].text for part in parts if part[0].text)
    assert together[1][0].score == pytest.approx(sum(part[0].score for part in parts), abs=1e-4)
    assert together[1][0].ended == all(part[0].ended for part in parts)
    assert [hypotheses[0].text for hypotheses in together[::2]] == beam(["a", "a man"])


def test_a_split_text_has_ended_only_if_all_its_parts_have_ended():
    """The last of the three parts has not ended."""

    class LastUnended(Translator):
        """Finds one token for every part. Only outputs for at least 15 source tokens have ended."""

        def search(self, source, *_):
            ended = (source != 0).sum(axis=1, keepdims=True) >= 15
            return SearchResult(np.full((len(source), 1, 1), 7), np.full(ended.shape, -1.5), ended)

    ((hypothesis,),) = translator(LastUnended).hypotheses([TEXTS[4]])
    assert (hypothesis.score, hypothesis.ended) == (-4.5, False)


def test_parts_of_a_long_word_are_joined_without_a_space(beam):
    tokens = tokenizer().encode("hatmanone" * 4)
    assert len(tokens) == 38
    parts = [[*tokens[begin : begin + 15], EOS] for begin in (0, 15)] + [tokens[30:]]
    results = [beam.search(pad_rows([part], 16)).tokens[0, 0] for part in parts]
    assert beam(["hatmanone" * 4]) == ["".join(map(tokenizer().decode, results))]


def test_positions_limit_sources_and_outputs():
    """The model has learned positions for 12 tokens. It computes NaN for longer inputs and outputs."""
    limits = {"max_extra_length": 50, "max_source_length": 1_024, "batch_tokens": 64}
    translate = translator(model_changes=LEARNED, **limits)
    assert translate.max_source_length == 12
    (forced,), (long,) = translate.hypotheses(["a man", "a man in a hat"], prefixes=["two", ""])
    for hypothesis in (forced, long):
        assert np.isfinite(hypothesis.score)
        assert hypothesis.text
    assert len(tokenizer().encode(forced.text)) <= 12 + (not forced.ended)  # EOS counts as a token


@pytest.mark.parametrize(
    ("decode", "limits", "length"),
    [
        ({}, [8, 21, 0], 21),  # source length plus 5
        ({"max_output_length": 10}, [8, 10, 0], 10),
        ({"max_output_length": 50}, [8, 21, 0], 21),
        ({"min_output_length": 11}, [11, 21, 0], 21),
        ({"min_output_length": 30}, [30, 30, 0], 30),
        ({"model_changes": LEARNED}, [8, 12, 0], 12),
    ],
)
def test_output_limits_follow_from_source_lengths_and_config(decode, limits, length):
    """The rows are a source of 3 tokens, a source of 16 tokens, and padding."""
    source = np.array([[5, 6, EOS] + [0] * 13, [5] * 15 + [EOS], [0] * 16], np.int32)
    row_limits, bound = translator(**decode).output_limits(source)
    assert row_limits.tolist() == limits
    assert bound == length


@pytest.mark.parametrize("beam_size", [1, 3])
def test_outputs_respect_their_limits(beam_size):
    """Without limits, the first model would end at once, and the second model would never end."""
    source, decode = rows_of(["a", "a man"]), {"min_output_length": 4, "max_output_length": 6}
    for token, length in ((EOS, 4), (7, 6)):
        translate = translator(params=constant_params(token), beam_size=beam_size, **decode)
        assert num_tokens(translate.search(source)) == [length, length]


def constant_params(token):
    """Weights with which the model always predicts `token`. If `token` is not EOS, EOS is least probable."""
    _, params = model_and_params()
    logits = np.zeros(len(params["embedding"]["table"]), np.float32)
    logits[EOS], logits[token] = -50, 9
    width = params["embedding"]["table"].shape[1]
    norm = {"scale": np.zeros(width, np.float32), "bias": np.ones(width, np.float32)}
    decoder = params["decoder"]
    layer = decoder["layers_0"] | {"feed_forward_residual": {"norm": norm}}
    table = np.broadcast_to(logits[:, None] / width, (len(logits), width))
    return params | {"decoder": decoder | {"layers_0": layer}, "embedding": {"table": table}}


@pytest.mark.parametrize("kind", [{"n_best": 3}, {"beam_size": 1}], ids=["beam", "greedy"])
@pytest.mark.parametrize(("token", "ended"), [(EOS, True), (7, False)])
def test_outputs_that_reach_their_limit_have_not_ended(kind, token, ended):
    """One of the texts is split into parts. The empty text has ended."""
    hypotheses = translator(params=constant_params(token), **kind).hypotheses(TEXTS)
    assert [ranked[0].ended for ranked in hypotheses] == [ended or not text for text in TEXTS]


@pytest.mark.parametrize(
    "decode",
    [
        pytest.param({"n_best": 3}, id="beam"),
        pytest.param({"sampling": True}, id="sampling", marks=pytest.mark.slow),
    ],
)
def test_output_begins_with_its_prefix(decode):
    """An empty prefix changes nothing. The prefix of a split text is used only for the first part."""
    translate = translator(**decode)
    prefixes = ["two men in", "", "red", "a hat", "nine", "seven"]
    forced, free = ([x[0].text for x in translate.hypotheses(TEXTS, p)] for p in (prefixes, None))
    for number, (text, prefix) in enumerate(zip(forced, prefixes, strict=True)):
        if number in (1, 2):  # no prefix; no text
            assert text == free[number]
        else:
            assert text.startswith(prefix) != free[number].startswith(prefix)
    assert forced[4].count("nine") == 1


def test_prefix_must_be_shorter_than_its_output(beam):
    """The output for a source of 3 tokens has at most 8 tokens, including EOS."""
    assert [len(tokenizer().encode(text)) - 1 for text in ("a", "one tw", "one two")] == [2, 7, 8]
    assert beam.hypotheses(["a"], ["one tw"])[0][0].text.startswith("one tw")
    with pytest.raises(UserError, match="prefix 8 has 8 tokens, but its output may have only 8, EOS"):
        beam.hypotheses(["a"], ["one two"], first=7)


@pytest.mark.parametrize(
    ("decode", "divisor"),
    [
        ({}, lambda length: ((5 + length) / 6) ** 0.6),
        ({"penalty": "length", "length_penalty": 0.8}, lambda length: length**0.8),
    ],
    ids=["wu", "length"],
)
def test_score_is_the_log_probability_divided_by_the_length_penalty(decode, divisor):
    texts = ["a man", "a"]
    result = translator(n_best=3, **decode).search(rows_of(texts))
    for place in range(3):
        outputs = [row[row != 0].tolist() for row in result.tokens[:, place]]
        totals = model_log_probs(texts, outputs).sum(axis=1)
        expected = [total / divisor(len(output)) for total, output in zip(totals, outputs, strict=True)]
        np.testing.assert_allclose(result.score[:, place], expected, atol=1e-4)


def test_model_that_produces_nan_gives_an_empty_translation():
    _, params = model_and_params()
    translate = translator(n_best=3, params=jax.tree.map(lambda x: x * np.nan, params))
    empty, none = Hypothesis("", 0.0, True), Hypothesis("", -math.inf, False)
    assert translate.hypotheses(["a", "", "a man"]) == [[none], [empty], [none]]


def test_translation_is_a_single_line():
    """The vocabulary of this test contains a line end, which becomes a space in the translation."""
    vocabulary = Tokenizer.train(["a\rb c", "d\x0be"] * 3, "char", 12)
    tokens = [vocabulary.names(range(12)).index(name) for name in ("a", "\r", "b")]
    assert vocabulary.decode(tokens) == "a\rb"

    class Fixed(Translator):
        """Finds the same output for every source."""

        def search(self, source, *_):
            return SearchResult(np.array([[[*tokens, EOS]]]), np.zeros((1, 1)), np.ones((1, 1), bool))

    assert Fixed(*model_and_params(), vocabulary)(["a"]) == ["a b"]


def test_error_in_a_batch_stops_the_search():
    num_searches = []

    class Failing(Translator):
        """Fails in every batch."""

        def search(self, source, *_):
            num_searches.append(len(source))
            time.sleep(0.01)
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        translator(Failing)(["a"] * 400)
    assert len(num_searches) < 100


UNUSUAL = [
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
ANY_TEXTS = st.lists(st.one_of(ANY_TEXT, LETTERS, st.sampled_from([*UNUSUAL, *TEXTS])), max_size=6)


class OneShape(Translator):
    """Pads every batch to two rows, so that a single text is rounded like a text with a neighbor."""

    def search(self, source, prefixes=None, sentence_ids=None):
        return super().search(np.pad(source, ((0, 2 - len(source)), (0, 0))))


def check_any_texts(texts):
    """Checks that each translation is a single line and does not depend on neighboring texts."""
    translate = translator(OneShape, n_best=3)
    together = translate(texts)
    assert together == [translate([text])[0] for text in texts]
    assert not set("\r\n") & set("".join(together))


@settings(deadline=None, max_examples=25)
@given(ANY_TEXTS)
def test_any_text_has_a_translation_that_neighbors_do_not_change(texts):
    check_any_texts(texts)


@pytest.mark.slow
@settings(deadline=None, max_examples=1_000)
@given(ANY_TEXTS)
def test_any_text_has_a_translation_in_many_examples(texts):
    check_any_texts(texts)
