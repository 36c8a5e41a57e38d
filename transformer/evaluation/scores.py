"""Corpus scores from one set of translations; sacreBLEU's (Post 2018) each with its signature.

References are raw sentences: pieces that were joined again would score other text than the data's.
"""

import functools
import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.metrics.base import Metric

from transformer.evaluation.legacy import LegacyBLEU

# Force is silent about text that looks tokenised, for which there is bleu_tok, and changes no score.
_bleu = functools.partial(BLEU, force=True)

METRICS: dict[str, Callable[..., Metric]] = {
    "bleu": _bleu,
    "bleu_lc": functools.partial(_bleu, lowercase=True),
    "bleu_intl": functools.partial(_bleu, tokenize="intl"),
    "bleu_lc_intl": functools.partial(_bleu, lowercase=True, tokenize="intl"),
    "bleu_tok": functools.partial(_bleu, tokenize="none"),
    "bleu_legacy": LegacyBLEU,
    "chrf": CHRF,
}
_LOOP = re.compile(r"(.)\1{19}|(..)\2{9}|(...)\3{6}|(....)\4{4}|(.{5,50}?)\5{3}", re.DOTALL)
SHORTEST = 8  # bound of the first bucket of `by_length`, in pieces


def metric(name: str, references: Sequence[str]) -> Metric:
    """A metric of sacreBLEU that has read the references; see `METRICS`."""
    return METRICS[name](references=[list(references)])


def signatures() -> dict[str, str]:
    """What each of sacreBLEU's scores depends on; scores compare only if their signatures are equal."""
    return {name: str(metric(name, [""]).get_signature()) for name in METRICS}


def corpus_scores(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """Scores between 0 and 100.

    Returns:
      bleu: cased, sacreBLEU's own tokenisation (13a).
      bleu_lc: the same, lower-cased.
      bleu_intl, bleu_lc_intl: both with the tokenisation `intl`, which knows all of Unicode's signs.
      bleu_tok: on the text as it stands, split at spaces; for text that came tokenised.
      bleu_legacy: the paper's, for comparison with its table 2 alone; see `LegacyBLEU`.
      chrf: chrF2.
      exact_match: share of hypotheses equal to their references.
      length_ratio: tokens of the hypotheses over those of the references, not in hundredths; as in `bleu`.
      looping: share of hypotheses that repeat themselves; see `loops`.
      signatures: of each of the sacreBLEU scores.

    Raises:
      ValueError: different numbers of hypotheses and references, or none.
    """
    _check_numbers(hypotheses, references)
    scores = {name: metric(name, references).corpus_score(list(hypotheses), None) for name in METRICS}
    return {
        **{name: score.score for name, score in scores.items()},
        "exact_match": exact_match(hypotheses, references),
        "length_ratio": float(scores["bleu"].ratio),
        "looping": 100 * sum(map(loops, hypotheses)) / len(hypotheses),
        "signatures": signatures(),
    }


def exact_match(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Share, 0 to 100, of hypotheses equal to their references."""
    return 100 * sum(map(str.__eq__, hypotheses, references)) / len(references)


def loops(text: str) -> bool:
    """Whether somewhere at most 50 characters stand at least 4 times in a row, filling 20 or more together.

    So "the dog the dog the dog the dog" loops, and so do syllables within a word; "10000" and "..." do not.
    """
    return _LOOP.search(text + " ") is not None  # the last word has its space, too


def perplexity_per_word(nll: float, references: Sequence[str]) -> float:
    """exp(nats a word), which can be compared between vocabularies, as perplexity a character can.

    Args:
      nll: nats of all the pieces of the references, EOS included.
      references: raw; their words are what white space separates.
    """
    nats = nll / max(1, sum(len(reference.split()) for reference in references))
    return math.exp(nats) if nats < 700 else math.inf


def by_length(
    source_lengths: Int[np.ndarray, "n"], hypotheses: Sequence[str], references: Sequence[str]
) -> list[dict[str, Any]]:
    """Scores of the sentences with sources of up to 8 pieces, of 9 to 12, 13 to 16, 17 to 24, 25 to 32, ...

    Ranges without a sentence are left out.

    Args:
      source_lengths: pieces of each source, EOS included.
      hypotheses: of these sources.
      references: of these sources.

    Returns:
      A dict a bucket, from short to long: least and most (pieces, both inclusive), sentences, exact_match,
      bleu and chrf (see `corpus_scores`).

    Raises:
      ValueError: different numbers of sources, hypotheses and references, or none.
    """
    _check_numbers(hypotheses, references)
    if len(source_lengths) != len(references):
        raise ValueError(f"{len(source_lengths)} sources for {len(references)} references")
    bounds = [0, SHORTEST]  # each half as long again as the last power of two, and twice as long
    while bounds[-1] < max(source_lengths):
        bounds += [bounds[-1] * 3 // 2, bounds[-1] * 2]
    scored = []
    for before, most in itertools.pairwise(bounds):
        members = [number for number, length in enumerate(source_lengths) if before < length <= most]
        if not members:
            continue
        own = [hypotheses[number] for number in members]
        their = [references[number] for number in members]
        scored.append(
            {
                "least": before + 1,
                "most": most,
                "sentences": len(members),
                "exact_match": exact_match(own, their),
                **{name: metric(name, their).corpus_score(own, None).score for name in ("bleu", "chrf")},
            }
        )
    return scored


def _check_numbers(hypotheses, references):
    if len(hypotheses) != len(references) or not references:
        raise ValueError(f"{len(hypotheses)} hypotheses for {len(references)} references")
