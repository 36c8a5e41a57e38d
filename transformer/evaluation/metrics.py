"""Metrics of trained models: the entries of `METRICS`, which tables, JSON, comparisons and reports read.

References are raw sentences, not decoded tokens, so that scores can be compared with published scores.
"""

import dataclasses
import functools
import itertools
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import sacrebleu.metrics.base
from jaxtyping import Int
from sacrebleu.metrics import BLEU, CHRF

from transformer.data.tokenizer import normalize
from transformer.evaluation.languages import bleu_tokenizer, has_spaces
from transformer.evaluation.legacy import LegacyBLEU
from transformer.json_files import finite


@dataclasses.dataclass(frozen=True)
class Outputs:
    """The translations of a test set, with the sources and references.

    Attributes:
      sources: raw source sentences.
      hypotheses: a translation of each source.
      references: a raw reference translation of each source.
      language: code of the target language, such as "de" or "zh_TW". It decides how BLEU splits a text into
        tokens, and which metrics apply. An unknown code counts as a language with spaces between words.
      ended: whether the model ended each translation before its limit; None if unknown.
      summary: results of teacher forcing on the references, such as "nll" (nats per token) and "perplexity".
      num_tokens: number of tokens in the references of `summary`, EOS included.

    Raises:
      ValueError: there are different numbers of sources, hypotheses and references, or no sentences.
    """

    sources: Sequence[str]
    hypotheses: Sequence[str]
    references: Sequence[str]
    language: str = ""
    ended: Sequence[bool] | None = None
    summary: Mapping[str, float] = dataclasses.field(default_factory=dict)
    num_tokens: int = 0

    def __post_init__(self):
        counts = len(self.sources), len(self.hypotheses), len(self.references)
        if len(set(counts)) > 1 or not self.references:
            raise ValueError(
                "got {} sources, {} hypotheses and {} references; give one of each per sentence, "
                "for at least one sentence".format(*counts)
            )

    def select(self, indices: Sequence[int]) -> "Outputs":
        """Returns the outputs of some sentences, without the results of teacher forcing."""
        sides = ([side[i] for i in indices] for side in (self.sources, self.hypotheses, self.references))
        ended = None if self.ended is None else [self.ended[i] for i in indices]
        return Outputs(*sides, self.language, ended)


@dataclasses.dataclass(frozen=True)
class Metric:
    """A score of a model on a test set.

    Attributes:
      name: key of the score in JSON, tables and `METRICS`.
      compute: returns the score.
      format: format specification of the score in tables.
      higher_is_better: None if neither direction is better.
      shown: whether the table of scores includes the metric.
      compared: whether the comparison of two models includes the metric. Such a metric must not read `ended`
        or `summary`, because only the texts of an earlier evaluation are stored.
      by_length: whether the metric is also computed for ranges of source lengths.
      sentence_scores: returns a score per sentence, of which `compute` returns the mean. A comparison has no
        p-value if both `sentence_scores` and `scorer` are None.
      scorer: for a metric of sacreBLEU, maps a target language to a function that makes sacreBLEU's metric
        object from the keyword argument `references`. Comparisons use the object in sacreBLEU's paired tests.
      signature: maps a target language to a text that names the settings of the score. Scores with different
        signatures are not comparable.
      needs_spaces: whether the metric is meaningful only for languages with spaces between words.
      of_translations: whether the metric applies to translations; otherwise only to other tasks.
    """

    name: str
    compute: Callable[[Outputs], float]
    format: str = ".2f"
    higher_is_better: bool | None = True
    shown: bool = True
    compared: bool = False
    by_length: bool = False
    sentence_scores: Callable[[Outputs], Sequence[float]] | None = None
    scorer: Callable[[str], Callable[..., sacrebleu.metrics.base.Metric]] | None = None
    signature: Callable[[str], str] = lambda language: ""
    needs_spaces: bool = False
    of_translations: bool = True


def mean_metric(name: str, sentence_scores: Callable[[Outputs], Sequence[float]], **options: Any) -> Metric:
    """Returns a metric that is the mean of a score per sentence."""

    def compute(outputs: Outputs) -> float:
        return statistics.fmean(sentence_scores(outputs))

    return Metric(name, compute, sentence_scores=sentence_scores, **options)


def sacrebleu_metric(
    name: str, scorer: Callable[[str], Callable[..., sacrebleu.metrics.base.Metric]], **options: Any
) -> Metric:
    """Returns a metric of sacreBLEU (Post 2018), between 0 and 100."""

    def compute(outputs: Outputs) -> float:
        reference_scorer = scorer(outputs.language)(references=[list(outputs.references)])
        return reference_scorer.corpus_score(list(outputs.hypotheses), None).score

    def signature(language: str) -> str:
        return str(scorer(language)(references=[[""]]).get_signature())

    return Metric(name, compute, scorer=scorer, signature=signature, **options)


def summary_metric(name: str, **options: Any) -> Metric:
    """Returns a metric whose score is the entry `name` of `Outputs.summary`, or infinite without an entry."""
    return Metric(name, lambda outputs: outputs.summary.get(name, math.inf), **options)


def exact_matches(outputs: Outputs) -> list[float]:
    """Returns, per sentence, 100 if hypothesis and reference are equal once normalized, otherwise 0."""
    pairs = zip(outputs.hypotheses, outputs.references, strict=True)
    return [100.0 * (normalize(hypothesis) == normalize(reference)) for hypothesis, reference in pairs]


def bleu_scorer(language: str, **settings: Any) -> Callable[..., BLEU]:
    """Returns a function that makes sacreBLEU's BLEU for a target language.

    force=True turns off a warning about text that looks tokenized (for which there is bleu_tok), and changes
    no score.
    """
    return functools.partial(BLEU, force=True, **{"tokenize": bleu_tokenizer(language), **settings})


def length_ratio(outputs: Outputs) -> float:
    """Tokens of the hypotheses divided by tokens of the references, with the tokenizer of `bleu`.

    NaN if the references have no tokens.
    """
    scorer = bleu_scorer(outputs.language)(references=[list(outputs.references)])
    score = scorer.corpus_score(list(outputs.hypotheses), None)
    return score.sys_len / score.ref_len if score.ref_len else math.nan


_REPETITION = re.compile(r"(.)\1{19}|(..)\2{9}|(...)\3{6}|(....)\4{4}|(.{5,50}?)\5{3}", re.DOTALL)


def repeats_itself(text: str) -> bool:
    """Returns whether `text` has a substring of at most 50 characters that occurs at least 4 times in a row.

    The repetitions together must have at least 20 characters. True for "the dog the dog the dog the dog" and
    for repeated syllables within a word, false for "10000" and "...".
    """
    return _REPETITION.search(text + " ") is not None  # the space completes the last word


def looping(outputs: Outputs) -> list[float]:
    """Returns, per sentence, 100 if the hypothesis repeats itself, otherwise 0; see `repeats_itself`."""
    return [100.0 * repeats_itself(hypothesis) for hypothesis in outputs.hypotheses]


def at_limit(outputs: Outputs) -> list[float]:
    """Returns, per sentence, 100 if the hypothesis reached its length limit without EOS, otherwise 0."""
    return [100.0 * (not ended) for ended in outputs.ended]


def perplexity_per_word(outputs: Outputs) -> float:
    """Returns exp(nats per word of the references). White space separates words.

    Like perplexity per character, this metric is comparable between models with different vocabularies. NaN
    if the references have no words. Also NaN if the summary has no perplexity per character, because the
    vocabulary lacks characters of the references.
    """
    num_words = sum(len(reference.split()) for reference in outputs.references)
    if not num_words or "perplexity_per_character" not in outputs.summary:
        return math.nan
    nats = outputs.summary["nll"] * outputs.num_tokens / num_words
    return math.exp(nats) if nats < 700 else math.inf


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        # Share of hypotheses equal to their references, 0 to 100.
        mean_metric("exact_match", exact_matches, by_length=True, compared=True),
        # Cased, with sacreBLEU's tokenization for the target language.
        sacrebleu_metric("bleu", bleu_scorer, by_length=True, compared=True),
        # Lower-cased.
        sacrebleu_metric(
            "bleu_lc", functools.partial(bleu_scorer, lowercase=True), compared=True, needs_spaces=True
        ),
        # With the tokenizer `intl`, which knows the punctuation of all of Unicode: cased, then lower-cased.
        sacrebleu_metric(
            "bleu_intl", functools.partial(bleu_scorer, tokenize="intl"), shown=False, needs_spaces=True
        ),
        sacrebleu_metric(
            "bleu_lc_intl",
            functools.partial(bleu_scorer, lowercase=True, tokenize="intl"),
            shown=False,
            needs_spaces=True,
        ),
        # Split at spaces, for text that is tokenized already.
        sacrebleu_metric(
            "bleu_tok", functools.partial(bleu_scorer, tokenize="none"), compared=True, needs_spaces=True
        ),
        # The paper's BLEU, for comparison with Table 2 of the paper only; see `LegacyBLEU`.
        sacrebleu_metric("bleu_legacy", lambda language: LegacyBLEU, shown=False, needs_spaces=True),
        # chrF2.
        sacrebleu_metric("chrf", lambda language: CHRF, by_length=True, compared=True),
        Metric("length_ratio", length_ratio, ".3f", higher_is_better=None),
        # Shares of hypotheses, 0 to 100.
        mean_metric("looping", looping, higher_is_better=False),
        mean_metric("at_limit", at_limit, higher_is_better=False),
        summary_metric("loss", format=".4f", higher_is_better=False, shown=False),
        summary_metric("nll", format=".4f", higher_is_better=False, shown=False),
        summary_metric("accuracy", format=".4f", shown=False),
        summary_metric("perplexity", format=".3f", higher_is_better=False),
        Metric("perplexity_per_word", perplexity_per_word, higher_is_better=False, needs_spaces=True),
        summary_metric("perplexity_per_character", format=".4f", higher_is_better=False),
        summary_metric("bits_per_byte", format=".4f", higher_is_better=False, of_translations=False),
    )
}
LARGE = 1e7  # from this size on, scores are written in short form
FIRST_BOUND = 8  # tokens, the upper end of the first range of `by_length`


def score_text(score: float, form: str) -> str:
    """Returns a score in the format of its metric; a large score in short form, such as 1.2e+31."""
    if abs(score) >= LARGE:
        form = f"{'+' if form.startswith('+') else ''}.1e"
    return f"{score:{form}}"


def metrics_for(language: str) -> dict[str, Metric]:
    """Returns the metrics that are meaningful for translations into a language, by name."""
    is_spaced = has_spaces(language)
    return {
        name: metric
        for name, metric in METRICS.items()
        if metric.of_translations and (is_spaced or not metric.needs_spaces)
    }


def compute_scores(outputs: Outputs) -> dict[str, float | None]:
    """Returns the score of every metric of the language, by name; None for a score that is not finite."""
    return {name: finite(metric.compute(outputs)) for name, metric in metrics_for(outputs.language).items()}


def signatures(language: str) -> dict[str, str]:
    """Returns the signature of every metric of the language that has one, by name."""
    signed = {name: metric.signature(language) for name, metric in metrics_for(language).items()}
    return {name: signature for name, signature in signed.items() if signature}


def by_length(outputs: Outputs, source_lengths: Int[np.ndarray, "n"]) -> list[dict[str, Any]]:
    """Returns scores per range of source lengths: up to 8 tokens, 9 to 12, 13 to 16, 17 to 24, 25 to 32, ...

    Args:
      outputs: the outputs for the whole test set.
      source_lengths: tokens of each source, EOS included.

    Returns:
      For each range that has sentences, from short to long: "least" and "most" (tokens, inclusive),
      "sentences" (number of sentences), and the score of every metric with `by_length`.

    Raises:
      ValueError: the numbers of lengths and sentences differ.
    """
    if len(source_lengths) != len(outputs.sources):
        num_lengths, num_sources = len(source_lengths), len(outputs.sources)
        raise ValueError(f"got {num_lengths} source lengths for {num_sources} sources; give one per source")
    bounds = [0, FIRST_BOUND]  # 8, 12, 16, 24, ...: powers of two, and 1.5 times each power
    while bounds[-1] < max(source_lengths):
        bounds += [bounds[-1] * 3 // 2, bounds[-1] * 2]
    ranges = []
    for lower, upper in itertools.pairwise(bounds):
        members = np.flatnonzero((lower < source_lengths) & (source_lengths <= upper))
        if len(members):
            selected = outputs.select(members.tolist())
            metrics = metrics_for(outputs.language).values()
            scores = {metric.name: metric.compute(selected) for metric in metrics if metric.by_length}
            ranges.append({"least": lower + 1, "most": upper, "sentences": len(members), **scores})
    return ranges
