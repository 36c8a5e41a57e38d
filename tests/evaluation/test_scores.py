"""Scores are sacreBLEU's; exact match, loops, buckets and perplexity a word are ours."""

import logging
import math

import numpy as np
import pytest
import sacrebleu

from transformer.evaluation.scores import (
    METRICS,
    by_length,
    corpus_scores,
    loops,
    perplexity_per_word,
    signatures,
)

HYPOTHESES = ["The cat sat on the „mat“ .", "a dog runs in the big park", "hello"]
REFERENCES = ["The cat sat on the „mat “ .", "A dog runs in the park", "goodbye then"]


def test_equal_sacrebleu():
    scores = corpus_scores(HYPOTHESES, REFERENCES)

    def score(**options):
        return sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES], **options).score

    assert scores["bleu"] == score()
    assert scores["bleu_lc"] == score(lowercase=True) > scores["bleu"]
    assert scores["bleu_intl"] == score(tokenize="intl") > scores["bleu"]
    assert scores["bleu_lc_intl"] == score(tokenize="intl", lowercase=True) > scores["bleu_intl"]
    assert scores["bleu_tok"] == score(tokenize="none", force=True)
    assert scores["chrf"] == sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]).score


def test_shares_and_ratio():
    hypotheses, references = ["a b", "x " * 20, "c", "d"], ["a b", "a b c", "c", "d e f g"]
    scores = corpus_scores(hypotheses, references)
    assert scores["exact_match"] == 50
    assert scores["looping"] == 25
    assert scores["length_ratio"] == 24 / 10


def test_every_sacrebleu_score_has_its_signature():
    scores = corpus_scores(HYPOTHESES, REFERENCES)
    assert set(scores["signatures"]) == set(METRICS)
    for name, case, tokens in [
        ("bleu", "mixed", "13a"),
        ("bleu_lc", "lc", "13a"),
        ("bleu_intl", "mixed", "intl"),
        ("bleu_lc_intl", "lc", "intl"),
        ("bleu_tok", "mixed", "none"),
        ("bleu_legacy", "mixed", "moses-de+atat"),
    ]:
        assert f"case:{case}|" in scores["signatures"][name]
        assert f"tok:{tokens}|" in scores["signatures"][name]
    assert scores["signatures"] == signatures()


@pytest.mark.parametrize(("hypotheses", "references"), [(["a"], ["a", "b"]), ([], [])])
def test_mismatch_and_nothing_are_refused(hypotheses, references):
    with pytest.raises(ValueError, match=r"\d hypotheses for \d references"):
        corpus_scores(hypotheses, references)
    with pytest.raises(ValueError, match=r"\d hypotheses for \d references"):
        by_length(np.ones(len(references), int), hypotheses, references)


def test_empty_lines_are_scored():
    scores = corpus_scores(["", "a"], ["a", ""])
    assert scores["bleu"] == scores["exact_match"] == 0
    assert corpus_scores([""], [""])["exact_match"] == 100


def test_text_that_came_tokenised_raises_no_warning(caplog):
    with caplog.at_level(logging.WARNING, "sacrebleu"):
        corpus_scores(["a dog runs ."] * 120, ["a dog ran ."] * 120)
    assert not caplog.records


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the dog the dog the dog the dog", True),
        ("and the dog the dog the dog the cat", False),
        ("zwei; sechs; sechs; sechs; sechs; sechs; drei", True),
        ("elelelelelelelelelelel", True),
        ("a" * 20, True),
        ("a" * 18, False),
        ("x" * 49 + "y", True),
        ("abcdefghij klmnopqrst uvwxyz " * 4, True),
        ("one two three four five six seven eight nine ten eleven twelve " * 4, False),  # 63 characters
        ("1000000000; 1,000,000,000 ... ----", False),
        ("siebenundsiebzigtausendsiebenhundertsiebenundsiebzig", False),
        ("", False),
    ],
)
def test_loops(text, expected):
    assert loops(text) is expected


def test_perplexity_per_word():
    references = ["one two", " three\tfour  five ", ""]
    assert perplexity_per_word(5 * math.log(7), references) == pytest.approx(7)
    assert perplexity_per_word(0.0, [""]) == 1
    assert perplexity_per_word(1e6, references) == math.inf


def test_by_length():
    lengths = np.array([33, 8, 1, 9, 16, 17, 200])
    hypotheses = ["a b c d", "b b c d", "c b c d e", "d", "e f g h i", "f g h j k", "x"]
    references = ["a b c d", "b b c e", "c b c d e", "e", "e f g h j", "f g h j k", "y"]
    buckets = by_length(lengths, hypotheses, references)
    bounds = [(bucket["least"], bucket["most"], bucket["sentences"]) for bucket in buckets]
    assert bounds == [(1, 8, 2), (9, 12, 1), (13, 16, 1), (17, 24, 1), (33, 48, 1), (193, 256, 1)]
    for bucket in buckets:
        members = np.flatnonzero((bucket["least"] <= lengths) & (lengths <= bucket["most"]))
        own = corpus_scores([hypotheses[i] for i in members], [references[i] for i in members])
        for name in ("exact_match", "bleu", "chrf"):
            assert bucket[name] == own[name]
    assert [bucket["exact_match"] for bucket in buckets] == [50, 0, 0, 100, 100, 0]
    with pytest.raises(ValueError, match="6 sources for 7 references"):
        by_length(lengths[:6], hypotheses, references)
