"""Whether a difference is more than chance: between two runs on one test set, and across seeds.

The two are different questions. The tests of `compare` ask what other sentences would have given, for these
two models; `interval` asks what other seeds would give, for this test set.
"""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from sacrebleu.significance import PairedTest
from scipy.special import bdtr, stdtrit

from transformer.evaluation.scores import exact_match, metric


class Comparison(NamedTuple):
    """A metric of two runs on the same test set.

    Attributes:
      score: of the one.
      other: of the other.
      difference: score - other.
      p_bootstrap: two-sided, by paired bootstrap resampling (Koehn 2004); None where it is not made.
      p_randomisation: two-sided, by approximate randomisation (Riezler and Maxwell 2005).
      signatures: sacreBLEU's, of its tests: bootstrap and randomisation, with samples and seed.
    """

    score: float
    other: float
    difference: float
    p_bootstrap: float | None
    p_randomisation: float
    signatures: dict[str, str]


class Interval(NamedTuple):
    """Mean, sample standard deviation, and where the mean over all seeds lies with 95% confidence."""

    mean: float
    deviation: float
    low: float
    high: float


def compare(
    name: str, hypotheses: Sequence[str], others: Sequence[str], references: Sequence[str]
) -> Comparison:
    """Compares two runs' translations of one test set by one metric; see `Comparison`.

    Both tests are sacreBLEU's own, with its numbers of samples (1,000 and 10,000) and its seed (12345, or
    what the variable SACREBLEU_SEED says), so that a result can be had again.

    Differs from sacreBLEU: it counts only the samples in which the difference is larger than the one found,
    not those in which it is equal, and so finds that a run differs from itself with p = 0.0001. Here p is 1
    where there is no difference, and where k sentences differ, p_randomisation is at least 2^(1 - k): of that
    share of the random assignments comes the difference found, or its opposite.

    For exact_match, where samples of equal difference are many, p_randomisation is exact: the sign test over
    the sentences that one run alone has right. It needs no bootstrap.

    Args:
      name: one of `METRICS`, or exact_match.
      hypotheses: of the one run.
      others: of the other.
      references: of both.

    Raises:
      ValueError: different numbers of sentences, or none.
    """
    numbers = {len(hypotheses), len(others), len(references)}
    if len(numbers) > 1 or not references:
        raise ValueError(f"{len(hypotheses)} and {len(others)} hypotheses for {len(references)} references")
    if name == "exact_match":
        return _compare_exact(hypotheses, others, references)
    # One metric at a time: sacreBLEU takes metrics of the same kind, as all BLEUs are, for one.
    scorer = metric(name, references)
    systems = [("other", list(others)), ("one", list(hypotheses))]
    found, signatures = {}, {}
    for test, kind in {"bootstrap": "bs", "randomisation": "ar"}.items():
        signed, columns = PairedTest(systems, {name: scorer}, references=None, test_type=kind)()
        ((column, signature),) = signed.items()
        found[test], signatures[test] = columns[column], str(signature)
    other, one = found["randomisation"]
    differing = sum(map(str.__ne__, hypotheses, others))
    equal = one.score == other.score
    return Comparison(
        one.score,
        other.score,
        one.score - other.score,
        p_bootstrap=1.0 if equal else found["bootstrap"][1].p_value,
        p_randomisation=1.0 if equal else max(one.p_value, min(1.0, 2.0 ** (1 - differing))),
        signatures=signatures,
    )


def interval(values: Sequence[float]) -> Interval:
    """Student's 95% t-interval of the mean of one value a seed; NaN where there are too few values."""
    mean = statistics.fmean(values) if values else math.nan
    if len(values) < 2:
        return Interval(mean, math.nan, math.nan, math.nan)
    deviation = statistics.stdev(values)
    reach = float(stdtrit(len(values) - 1, 0.975)) * deviation / math.sqrt(len(values))
    return Interval(mean, deviation, mean - reach, mean + reach)


def _compare_exact(hypotheses, others, references):
    one, other = exact_match(hypotheses, references), exact_match(others, references)
    right = [(a == c, b == c) for a, b, c in zip(hypotheses, others, references, strict=True)]
    wins, losses = right.count((True, False)), right.count((False, True))
    p_value = min(1.0, 2 * float(bdtr(min(wins, losses), wins + losses, 0.5)))
    return Comparison(one, other, one - other, None, p_value, {})
