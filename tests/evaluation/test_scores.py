"""Scores are sacreBLEU's; exact match is ours."""

import pytest
import sacrebleu

from transformer.evaluation.scores import corpus_scores

HYPOTHESES = ["The cat sat on the mat .", "a dog runs in the big park", "hello"]
REFERENCES = ["The cat sat on the mat .", "A dog runs in the park", "goodbye then"]


def test_equal_sacrebleu():
    scores = corpus_scores(HYPOTHESES, REFERENCES)
    assert scores["bleu"] == sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score
    lower = sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES], lowercase=True).score
    assert scores["bleu_lc"] == lower > scores["bleu"]
    plain = sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES], tokenize="none", force=True).score
    assert scores["bleu_tok"] == plain
    assert scores["chrf"] == sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]).score
    assert scores["exact_match"] == pytest.approx(100 / 3)


def test_every_sacrebleu_score_has_its_signature():
    signatures = corpus_scores(HYPOTHESES, REFERENCES)["signatures"]
    assert set(signatures) == {"bleu", "bleu_lc", "bleu_tok", "chrf"}
    assert "case:mixed" in signatures["bleu"]
    assert "tok:13a" in signatures["bleu"]
    assert "case:lc" in signatures["bleu_lc"]
    assert "tok:none" in signatures["bleu_tok"]


@pytest.mark.parametrize(("hypotheses", "references"), [(["a"], ["a", "b"]), ([], [])])
def test_mismatch_and_nothing_are_refused(hypotheses, references):
    with pytest.raises(ValueError, match=r"\d hypotheses for \d references"):
        corpus_scores(hypotheses, references)
