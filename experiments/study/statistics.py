"""Statistics over seeds: intervals, and the comparison of every variant with the baseline.

The unit is a seed: one trained model. Welch's t-test (Welch 1947) compares each variant with the baseline on
the study's primary metric, and Holm's method (Holm 1979) adjusts the p-values for the number of comparisons.
These p-values decide what the report says; all other figures describe. SciPy computes every distribution.
"""

import dataclasses
import functools
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.optimize import brentq

ALPHA = 0.05  # largest adjusted p-value of a significant difference
POWER = 0.8  # probability of finding a difference of the detectable size
MIN_SEEDS = 5
NUM_QUANTILES = 200  # of each sample variance, in the integral for the power
FEW_SEEDS = f"Fewer than {MIN_SEEDS} seeds find only differences of several standard deviations."


Scores = Mapping[str, Mapping[int, float]]  # scores[variant][seed]


class Interval(NamedTuple):
    """Bounds of a 95% confidence interval; NaN if there are too few values, or if they do not vary."""

    low: float
    high: float


class Summary(NamedTuple):
    """The scores of a variant: mean, sample standard deviation, and Student's t-interval of the mean."""

    mean: float
    deviation: float
    interval: Interval


class Paired(NamedTuple):
    """Differences between runs with the same seed, which share the order of the data.

    If the shapes of two variants differ, their initial weights are unrelated. So in general, the runs of a
    pair are no more alike than other runs, and no test uses the pairs.
    """

    seeds: tuple[int, ...]
    mean: float
    interval: Interval


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A variant and the baseline on one metric.

    Attributes:
      difference: mean of the variant minus mean of the baseline.
      interval: 95% interval of the difference by Welch's method, not adjusted for multiple comparisons.
      p: two-sided p-value of Welch's t-test; None if there is no test.
      p_adjusted: `p` after Holm's adjustment for all tests of the study, on all its tasks.
      probability_higher: estimate of the probability that a run of the variant scores higher than a run of
        the baseline; equal scores count half (Mann and Whitney 1947).
      paired: the differences by seed; None if fewer than two seeds have both scores.
      detectable: the difference that the study would find with a probability of 80%, given its numbers of
        seeds and tests and its standard deviations; None if there is no test.
      reason: the reason why there is no test; empty if there is one.
    """

    difference: float
    interval: Interval
    p: float | None
    p_adjusted: float | None
    probability_higher: float
    paired: Paired | None
    detectable: float | None
    reason: str

    @property
    def is_significant(self) -> bool:
        """True if the adjusted p-value is at most `ALPHA`."""
        return self.p_adjusted is not None and self.p_adjusted <= ALPHA


def summarize(values: Sequence[float]) -> Summary:
    """Returns the summary of scores, one per seed. With a single score, only the mean is known."""
    if len(values) < 2:
        mean = values[0] if values else math.nan
        return Summary(mean, math.nan, Interval(math.nan, math.nan))
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    if np.ptp(values) == 0:  # the spread of equal scores is unknown
        return Summary(values[0], 0.0, Interval(math.nan, math.nan))
    bounds = stats.t.interval(0.95, len(values) - 1, mean, stats.sem(values))
    return Summary(mean, deviation, Interval(*map(float, bounds)))


def compare(scores: Scores, baseline: str) -> dict[str, Comparison]:
    """Compares every other variant with the baseline; see `compare_tasks`."""
    return compare_tasks({"": (scores, baseline)})[""]


def compare_tasks(tasks: Mapping[str, tuple[Scores, str]]) -> dict[str, dict[str, Comparison]]:
    """Compares every other variant with the baseline of its task. All tests are one family for Holm's method.

    Args:
      tasks: the scores of the variants and the name of the baseline, by task. Each variant has at least one
        score.

    Returns:
      The comparison of each variant except the baseline, as comparisons[task][variant], in the order of the
      scores.
    """
    sides = {
        (task, name): (runs, scores[baseline])
        for task, (scores, baseline) in tasks.items()
        for name, runs in scores.items()
        if name != baseline
    }
    reasons = {key: _no_test(*map(_values, pair)) for key, pair in sides.items()}
    tested = [key for key in sides if not reasons[key]]
    p_values = {key: float(welch(*map(_values, sides[key])).pvalue) for key in tested}
    adjusted = dict(zip(tested, holm(list(p_values.values())), strict=True))
    comparisons: dict[str, dict[str, Comparison]] = {task: {} for task in tasks}
    for key, (runs, base) in sides.items():
        values, base_values = _values(runs), _values(base)
        task, name = key
        comparisons[task][name] = Comparison(
            difference=float(np.mean(values) - np.mean(base_values)),
            interval=_difference_interval(values, base_values),
            p=p_values.get(key),
            p_adjusted=adjusted.get(key),
            probability_higher=_probability_higher(values, base_values),
            paired=_paired(runs, base),
            detectable=_detectable(runs, base, len(tested)) if key in tested else None,
            reason=reasons[key],
        )
    return comparisons


def _values(runs: Mapping[int, float]) -> list[float]:
    return list(runs.values())


def welch(values: npt.ArrayLike, baseline: npt.ArrayLike) -> Any:
    """Returns SciPy's result of Welch's t-test along the last axis; the p-value is two-sided."""
    with warnings.catch_warnings():  # SciPy warns if one sample has no spread, but the test is valid
        warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)
        return stats.ttest_ind(values, baseline, axis=-1, equal_var=False)


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns the p-values after Holm's adjustment, which bounds the probability of any false positive.

    Written here, because `multipletests` of statsmodels collects all garbage of the process, which takes most
    of a second per call beside JAX.
    """
    order = np.argsort(p_values)
    factors = np.arange(len(p_values), 0, -1)  # the smallest p-value is multiplied by the number of tests
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * np.sort(p_values)), 1)
    return adjusted.tolist()


@functools.cache
def detectable_difference(deviations: tuple[float, float], seeds: tuple[int, int], num_tests: int) -> float:
    """Returns the smallest difference that a study finds with 80% power.

    The power is that of Welch's test at level ALPHA / num_tests, the first and strictest step of Holm's
    method, for normal scores with the given standard deviations. It is exact up to a numerical integral over
    the two sample variances, which decide the standard error and the degrees of freedom of a test. Only the
    tail in the direction of the difference counts.

    Args:
      deviations: standard deviations of the scores of the variant and of the baseline; not both are 0.
      seeds: number of scores of the variant and of the baseline.
      num_tests: number of tests in the study.
    """
    sizes = np.array(seeds)[:, None, None]
    shares = (np.arange(NUM_QUANTILES) + 0.5) / NUM_QUANTILES
    sampled = [
        deviation**2 * stats.chi2.ppf(shares, size - 1) / (size - 1)
        for deviation, size in zip(deviations, seeds, strict=True)
    ]
    squared_errors = np.stack(np.meshgrid(*sampled, indexing="ij")) / sizes  # of the two means
    squared_error = squared_errors.sum(axis=0)
    degrees_of_freedom = squared_error**2 / (squared_errors**2 / (sizes - 1)).sum(axis=0)
    critical = stats.t.ppf(1 - ALPHA / num_tests / 2, degrees_of_freedom) * np.sqrt(squared_error)
    standard_error = math.sqrt(deviations[0] ** 2 / seeds[0] + deviations[1] ** 2 / seeds[1])

    def excess_power(difference: float) -> float:
        return float(stats.norm.sf((critical - difference) / standard_error).mean()) - POWER

    high = standard_error
    while excess_power(high) < 0:
        high *= 2
    return float(brentq(excess_power, 0, high))


def _no_test(values: Sequence[float], baseline: Sequence[float]) -> str:
    """Returns the reason why two variants cannot be tested, or an empty string."""
    if min(len(values), len(baseline)) < 2:
        return "a test needs at least two seeds of both variants"
    if np.ptp(values) == 0 and np.ptp(baseline) == 0:
        return "all seeds of each variant score the same, so their spread is unknown"
    return ""


def _difference_interval(values: Sequence[float], baseline: Sequence[float]) -> Interval:
    if _no_test(values, baseline):
        return Interval(math.nan, math.nan)
    interval = welch(values, baseline).confidence_interval(0.95)
    return Interval(float(interval.low), float(interval.high))


def _probability_higher(values: Sequence[float], baseline: Sequence[float]) -> float:
    return float(stats.mannwhitneyu(values, baseline).statistic) / (len(values) * len(baseline))


def _paired(runs: Mapping[int, float], baseline: Mapping[int, float]) -> Paired | None:
    seeds = tuple(sorted(runs.keys() & baseline.keys()))
    if len(seeds) < 2:
        return None
    differences = summarize([runs[seed] - baseline[seed] for seed in seeds])
    return Paired(seeds, differences.mean, differences.interval)


def _detectable(runs: Mapping[int, float], baseline: Mapping[int, float], num_tests: int) -> float:
    deviations = tuple(float(np.std(list(values), ddof=1)) for values in (runs.values(), baseline.values()))
    return detectable_difference(deviations, (len(runs), len(baseline)), num_tests)
