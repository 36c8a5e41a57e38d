"""The registry of metrics: sacreBLEU's scores and signatures, other metrics, and metrics that a test adds."""

import dataclasses
import logging
import math

import numpy as np
import pytest
import sacrebleu

from tests.support.outputs import SUMMARY, outputs_of
from transformer.evaluation.metrics import (
    METRICS,
    Metric,
    Outputs,
    by_length,
    compute_scores,
    mean_metric,
    metrics_for,
    perplexity_per_word,
    repeats_itself,
    score_text,
    signatures,
)
from transformer.evaluation.significance import compare

HYPOTHESES = ["The cat sat on the „mat“ .", "a dog runs in the big park", "hello"]
REFERENCES = ["The cat sat on the „mat “ .", "A dog runs in the park", "goodbye then"]


@pytest.fixture(scope="module")
def scores():
    return compute_scores(outputs_of(HYPOTHESES, REFERENCES))


def test_bleu_and_chrf_are_those_of_sacrebleu(scores):
    def bleu(**options):
        return sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES], **options).score

    assert scores["bleu"] == bleu()
    assert scores["bleu_lc"] == bleu(lowercase=True) > scores["bleu"]
    assert scores["bleu_intl"] == bleu(tokenize="intl") > scores["bleu"]
    assert scores["bleu_lc_intl"] == bleu(tokenize="intl", lowercase=True) > scores["bleu_intl"]
    assert scores["bleu_tok"] == bleu(tokenize="none", force=True)
    assert scores["chrf"] == sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]).score


def test_exact_match_looping_at_limit_and_length_ratio_equal_hand_counts():
    hypotheses, references = ["a b", "x " * 20, "c", "d"], ["a b", "a b c", "c", "d e f g"]
    scores = compute_scores(outputs_of(hypotheses, references, ended=[True, False, False, False]))
    assert scores["exact_match"] == 50
    assert scores["looping"] == 25
    assert scores["at_limit"] == 75
    assert scores["length_ratio"] == 24 / 10


def test_results_of_teacher_forcing_are_among_the_scores(scores):
    assert {name: scores[name] for name in SUMMARY} == SUMMARY


def test_perplexity_per_word_divides_by_words_and_may_be_infinite():
    references = ["one two", " three\tfour  five ", ""]
    summary = {"nll": math.log(7) / 4, "perplexity_per_character": 2.0}
    outputs = Outputs([""] * 3, [""] * 3, references, summary=summary, num_tokens=20)
    assert perplexity_per_word(outputs) == pytest.approx(7)  # the references have 5 words
    overflow = Outputs([""], [""], ["a"], summary=summary | {"nll": 1e3}, num_tokens=1)
    assert perplexity_per_word(overflow) == math.inf


def test_scores_without_a_meaning_are_none():
    """An empty reference has no words. A reference with unknown characters has no perplexity per character."""
    empty = Outputs([""], [""], [""], summary={"nll": 1.0, "perplexity_per_character": 2.0}, num_tokens=1)
    scores = compute_scores(dataclasses.replace(empty, ended=[True]))
    assert scores["perplexity_per_word"] is None
    assert scores["length_ratio"] is None
    unknown = Outputs([""], [""], ["a"], ended=[True], summary={"nll": 1.0}, num_tokens=1)
    assert compute_scores(unknown)["perplexity_per_word"] is None
    assert compute_scores(unknown)["perplexity_per_character"] is None


def test_every_metric_of_sacrebleu_has_its_signature():
    for name, case, tokenizer in [
        ("bleu", "mixed", "13a"),
        ("bleu_lc", "lc", "13a"),
        ("bleu_intl", "mixed", "intl"),
        ("bleu_lc_intl", "lc", "intl"),
        ("bleu_tok", "mixed", "none"),
        ("bleu_legacy", "mixed", "moses-de+atat"),
    ]:
        assert f"case:{case}|" in signatures("de")[name]
        assert f"tok:{tokenizer}|" in signatures("de")[name]
    assert "nc:6|nw:0|" in signatures("de")["chrf"]
    assert set(signatures("de")) == {name for name, metric in METRICS.items() if metric.scorer}


IDENTICAL = {
    "zh": ["\u4eca\u5929\u5929\u6c14\u5f88\u597d", "\u6211\u559c\u6b22\u8bfb\u4e66\u3002"],
    "ja": ["\u4eca\u65e5\u306f\u3044\u3044\u5929\u6c17\u3067\u3059", "\u672c\u3092\u8aad\u3080"],
    "th": [
        "\u0e27\u0e31\u0e19\u0e19\u0e35\u0e49\u0e2d\u0e32\u0e01\u0e32\u0e28\u0e14\u0e35",
        "\u0e09\u0e31\u0e19\u0e0a\u0e2d\u0e1a\u0e2d\u0e48\u0e32\u0e19",
    ],
    "ko": ["\uc624\ub298\uc740 \ub0a0\uc528\uac00 \uc88b\ub2e4", "\ucc45\uc744 \uc77d\ub294\ub2e4"],
}


@pytest.mark.parametrize(
    ("language", "key", "tokenizer"),
    [
        ("zh", "zh", "zh"),
        ("zh_TW", "zh", "zh"),
        ("zh-Hans", "zh", "zh"),
        ("ja", "ja", "char"),
        ("TH", "th", "char"),
        ("ko", "ko", "char"),
    ],
)
def test_identical_text_in_any_script_scores_100_with_its_own_tokenization(language, key, tokenizer):
    texts = IDENTICAL[key]
    scores = compute_scores(outputs_of(texts, texts, language=language))
    assert [scores[name] for name in ("bleu", "chrf", "exact_match")] == pytest.approx([100] * 3)
    assert scores["length_ratio"] == 1
    assert f"|tok:{tokenizer}|" in signatures(language)["bleu"]
    changed = [texts[0], texts[1][:-2]]
    expected = sacrebleu.corpus_bleu(changed, [texts], tokenize=tokenizer, force=True).score
    assert compute_scores(outputs_of(changed, texts, language=language))["bleu"] == expected > 0


def test_metrics_without_a_meaning_for_a_language_are_left_out():
    words = {"bleu_lc", "bleu_intl", "bleu_lc_intl", "bleu_tok", "bleu_legacy", "perplexity_per_word"}
    for language in ("zh", "ja_JP", "th"):
        scores = compute_scores(outputs_of(["a"], ["a"], language=language))
        assert metrics_for("de").keys() - scores.keys() == words
        assert not words & signatures(language).keys()
    for language in ("de", "ko", "xx", ""):
        assert metrics_for(language).keys() == METRICS.keys() - {"bits_per_byte"}


def test_a_score_that_is_not_finite_is_missing():
    outputs = Outputs(["a"], ["a"], ["a"], "de", [True], {"nll": 1e3, "loss": 1e3, "accuracy": 0.0}, 1)
    scores = compute_scores(outputs)
    assert scores["perplexity"] is scores["perplexity_per_word"] is None
    assert scores["nll"] == 1e3


@pytest.mark.parametrize("name", metrics_for("de"))
def test_every_metric_fulfils_the_contract(name, scores):
    metric = METRICS[name]
    assert metric.name == name
    assert f"{scores[name]:{metric.format}}"
    if metric.sentence_scores is not None:
        outputs = outputs_of(HYPOTHESES, REFERENCES)
        assert len(metric.sentence_scores(outputs)) == 3
        assert np.mean(metric.sentence_scores(outputs)) == pytest.approx(scores[name])


def test_a_metric_added_to_the_registry_is_scored_and_compared(monkeypatch):
    """Adds a metric that reads the source and has a signature, and a metric without scores per sentence."""

    def copied(outputs):
        pairs = zip(outputs.hypotheses, outputs.sources, strict=True)
        return [100.0 * len({*hypothesis} & {*source}) / len({*hypothesis}) for hypothesis, source in pairs]

    def longest(outputs):
        return float(max(map(len, outputs.hypotheses)))

    added = [
        mean_metric(
            "copied",
            copied,
            higher_is_better=False,
            compared=True,
            by_length=True,
            signature=lambda language: "characters|v:1",
        ),
        Metric("longest", longest, ".0f", compared=True),
    ]
    for metric in added:
        monkeypatch.setitem(METRICS, metric.name, metric)
    outputs = outputs_of(["ab", "cd"], ["x", "y"], sources=["ax", "cd"])
    baseline = outputs_of(["abc", "e"], ["x", "y"], sources=["ax", "cd"])

    scores = compute_scores(outputs)
    assert (scores["copied"], scores["longest"]) == (75, 2)
    assert signatures("de")["copied"] == "characters|v:1"
    assert "longest" not in signatures("de")
    assert [part["copied"] for part in by_length(outputs, np.array([3, 9]))] == [50, 100]
    compared = {name: compare(METRICS[name], outputs, baseline) for name in METRICS if METRICS[name].compared}
    assert compared["copied"].difference == pytest.approx(75 - 50 / 3)
    assert 0 < compared["copied"].p_randomization <= 1
    assert (compared["longest"].difference, compared["longest"].p_randomization) == (-1, None)


@pytest.mark.parametrize("counts", [(1, 1, 2), (1, 2, 1), (2, 1, 1), (0, 0, 0)])
def test_unequal_or_zero_numbers_of_sentences_are_refused(counts):
    with pytest.raises(ValueError, match=r"got \d sources, \d hypotheses and \d references"):
        Outputs(*(["a"] * count for count in counts))


def test_empty_lines_are_scored():
    scores = compute_scores(outputs_of(["", "a"], ["a", ""]))
    assert scores["bleu"] == scores["exact_match"] == 0
    assert compute_scores(outputs_of([""], [""]))["exact_match"] == 100


def test_tokenized_text_causes_no_warning(caplog):
    with caplog.at_level(logging.WARNING, "sacrebleu"):
        compute_scores(outputs_of(["a dog runs ."] * 120, ["a dog ran ."] * 120))
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
def test_repeats_itself_recognizes_loops(text, expected):
    assert repeats_itself(text) is expected


def test_scores_are_grouped_by_source_length():
    lengths = np.array([33, 8, 1, 9, 16, 17, 200])
    hypotheses = ["a b c d", "b b c d", "c b c d e", "d", "e f g h i", "f g h j k", "x"]
    references = ["a b c d", "b b c e", "c b c d e", "e", "e f g h j", "f g h j k", "y"]
    outputs = outputs_of(hypotheses, references)
    ranges = by_length(outputs, lengths)
    assert [list(part) for part in ranges] == [
        ["least", "most", "sentences", "exact_match", "bleu", "chrf"]
    ] * 6
    assert [tuple(part.values())[:3] for part in ranges] == [
        (1, 8, 2),
        (9, 12, 1),
        (13, 16, 1),
        (17, 24, 1),
        (33, 48, 1),
        (193, 256, 1),
    ]
    for part in ranges:
        members = np.flatnonzero((part["least"] <= lengths) & (lengths <= part["most"]))
        for name in ("exact_match", "bleu", "chrf"):
            assert part[name] == METRICS[name].compute(outputs.select(members.tolist()))
    assert [part["exact_match"] for part in ranges] == [50, 0, 0, 100, 100, 0]
    with pytest.raises(ValueError, match="got 6 source lengths for 7 sources"):
        by_length(outputs, lengths[:6])


def test_exact_match_compares_texts_as_the_tokenizer_reads_them():
    outputs = outputs_of(["a b", " a b", "a  b ", "a\tb", "A b"], ["a b"] * 5)
    assert list(METRICS["exact_match"].sentence_scores(outputs)) == [100, 100, 100, 0, 0]


@pytest.mark.parametrize(
    ("score", "form", "text"),
    [
        (1_234.567, ".2f", "1234.57"),
        (9_999_999.0, ".2f", "9999999.00"),
        (1.234e31, ".2f", "1.2e+31"),
        (1.234e31, "+.2f", "+1.2e+31"),
        (-1.234e31, "+.2f", "-1.2e+31"),
        (math.nan, ".2f", "nan"),
    ],
)
def test_a_large_score_is_written_in_short_form(score, form, text):
    assert score_text(score, form) == text
