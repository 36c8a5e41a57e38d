"""Corpus scores by sacreBLEU (Post 2018) on raw references, each with its signature."""

from collections.abc import Sequence
from typing import Any

from sacrebleu.metrics import BLEU, CHRF


def corpus_scores(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """Scores between 0 and 100.

    Returns:
      bleu: cased, sacreBLEU's own tokenisation (13a).
      bleu_lc: the same, lower-cased.
      bleu_tok: on the text as it stands, split at spaces; for text that came tokenised.
      chrf: chrF2.
      exact_match: share of hypotheses equal to their references.
      signatures: of each of the sacreBLEU scores.

    Raises:
      ValueError: different numbers of hypotheses and references, or none.
    """
    if len(hypotheses) != len(references) or not references:
        raise ValueError(f"{len(hypotheses)} hypotheses for {len(references)} references")
    metrics = {
        "bleu": BLEU(),
        "bleu_lc": BLEU(lowercase=True),
        "bleu_tok": BLEU(tokenize="none", force=True),  # force: silences the warning about tokenised text
        "chrf": CHRF(),
    }
    scores = {
        name: metric.corpus_score(list(hypotheses), [list(references)]).score
        for name, metric in metrics.items()
    }
    equal = sum(map(str.__eq__, hypotheses, references))
    return {
        **scores,
        "exact_match": 100 * equal / len(references),
        "signatures": {name: str(metric.get_signature()) for name, metric in metrics.items()},
    }
