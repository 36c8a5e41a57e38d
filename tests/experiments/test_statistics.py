"""Statistics over seeds: equality with SciPy and statsmodels, a hand-worked example, simulated studies."""

import math

import numpy as np
import pytest
from scipy import special, stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from experiments.study.statistics import (
    ALPHA,
    compare,
    detectable_difference,
    holm,
    summarize,
    welch,
)

NUM_STUDIES = 20_000


def by_seed(values):
    return dict(enumerate(values))


def random_scores(num_variants, seeds=5):
    rng = np.random.default_rng(1)
    return {f"v{i}": by_seed(rng.normal(i, 1 + i, seeds).tolist()) for i in range(num_variants)}


def test_a_summary_is_the_t_interval_of_the_mean():
    values = [40.59, 39.60, 40.74, 40.71, 40.77]
    expected = DescrStatsW(values)
    summary = summarize(values)
    assert summary.mean == pytest.approx(expected.mean, rel=1e-12)
    assert summary.deviation == pytest.approx(np.std(values, ddof=1), rel=1e-12)
    np.testing.assert_allclose(summary.interval, expected.tconfint_mean(0.05), rtol=1e-9)


def test_the_interval_covers_the_mean_in_95_percent_of_studies():
    scores = np.random.default_rng(0).normal(size=(1_000, 3))
    bounds = np.array([summarize(list(study)).interval for study in scores])
    covered = np.mean((bounds[:, 0] <= 0) & (bounds[:, 1] >= 0))
    assert covered == pytest.approx(0.95, abs=0.028)  # the tolerance is four standard errors of the share


def test_one_seed_has_no_spread():
    mean, deviation, interval = summarize([3.0])
    assert mean == 3.0
    assert all(map(math.isnan, (deviation, *interval)))


def test_equal_scores_have_no_interval():
    summary = summarize([0.1] * 3)
    assert (summary.mean, summary.deviation) == (0.1, 0.0)
    assert np.isnan(summary.interval).all()


def test_a_comparison_worked_by_hand():
    # Means 3 and 6, variances 1 and 4, n = 3: t = 3 / sqrt(1/3 + 4/3) = 2.3238,
    # degrees of freedom = (5/3)^2 / ((1/3)^2 / 2 + (4/3)^2 / 2) = 50/17.
    (comparison,) = compare({"base": by_seed([2, 3, 4]), "new": by_seed([4, 6, 8])}, "base").values()
    t, freedom = 3 / math.sqrt(5 / 3), 50 / 17
    assert comparison.difference == 3
    assert comparison.p == pytest.approx(2 * special.stdtr(freedom, -t), rel=1e-9)
    assert comparison.p == pytest.approx(0.1045, abs=1e-4)
    assert comparison.p_adjusted == comparison.p  # there is no other test
    half_width = special.stdtrit(freedom, 0.975) * math.sqrt(5 / 3)
    np.testing.assert_allclose(comparison.interval, (3 - half_width, 3 + half_width), rtol=1e-9)
    assert comparison.probability_higher == pytest.approx((8 + 0.5) / 9)  # of 9 pairs, 8 higher, 1 equal
    assert comparison.paired.seeds == (0, 1, 2)
    assert comparison.paired.mean == 3
    half_width = special.stdtrit(2, 0.975) / math.sqrt(3)  # the differences are 2, 3 and 4
    np.testing.assert_allclose(comparison.paired.interval, (3 - half_width, 3 + half_width), rtol=1e-9)
    assert not comparison.is_significant


def test_every_statistic_equals_that_of_scipy_and_statsmodels():
    scores = random_scores(4)
    base = list(scores["v0"].values())
    comparisons = compare(scores, "v0")
    p_values = []
    for name, comparison in comparisons.items():
        values = list(scores[name].values())
        means = CompareMeans.from_data(values, base)
        p_values.append(stats.ttest_ind(values, base, equal_var=False).pvalue)
        assert comparison.p == pytest.approx(means.ttest_ind(usevar="unequal")[1], rel=1e-9)
        np.testing.assert_allclose(
            comparison.interval, means.tconfint_diff(0.05, usevar="unequal"), rtol=1e-9
        )
        assert comparison.probability_higher == np.mean([a > b for a in values for b in base])
        paired = stats.ttest_rel(values, base).confidence_interval(0.95)
        np.testing.assert_allclose(comparison.paired.interval, paired, rtol=1e-9)
    adjusted = [comparison.p_adjusted for comparison in comparisons.values()]
    np.testing.assert_allclose(adjusted, multipletests(p_values, method="holm")[1], rtol=1e-12)


def test_the_detectable_difference_is_that_of_the_scores_and_of_the_number_of_tests():
    scores = {"base": by_seed([2, 3, 4]), "new": by_seed([4, 6, 8]), "third": by_seed([1, 2, 4, 9])}
    comparison = compare(scores, "base")["new"]
    assert comparison.detectable == detectable_difference((2.0, 1.0), (3, 3), num_tests=2)


def test_scores_without_spread_are_neither_tested_nor_counted_by_holm():
    scores = {"base": by_seed([100.0] * 3), "same": by_seed([100.0] * 3), "new": by_seed([90.0, 92.0, 95.0])}
    comparisons = compare(scores, "base")
    assert comparisons["same"].p is None
    assert comparisons["same"].p_adjusted is None
    assert comparisons["same"].detectable is None
    assert "spread is unknown" in comparisons["same"].reason
    assert comparisons["new"].p_adjusted == comparisons["new"].p


def test_a_baseline_with_one_seed_allows_no_test():
    (comparison,) = compare({"base": {0: 1.0}, "new": by_seed([1.0, 2.0])}, "base").values()
    assert comparison.p is None
    assert comparison.reason == "a test needs at least two seeds of both variants"


def test_pairs_are_the_seeds_that_both_variants_have():
    scores = {"base": {0: 1.0, 1: 2.0, 4: 4.0}, "new": {1: 3.0, 2: 9.0, 4: 6.0}}
    assert compare(scores, "base")["new"].paired.seeds == (1, 4)
    assert compare(scores, "base")["new"].paired.mean == 1.5


@pytest.mark.parametrize(
    ("deviations", "seeds", "num_tests"),
    [
        ((1.0, 1.0), (5, 5), 1),
        ((0.0, 1.0), (5, 5), 7),  # all seeds of the variant score the same
        ((1.0, 1.0), (2, 2), 1),
        ((1.0, 1.0), (5, 2), 3),
        ((5.0, 0.5), (3, 10), 1),
        ((0.5, 5.0), (3, 10), 19),
    ],
    ids=str,
)
def test_welchs_test_finds_the_detectable_difference_with_a_probability_of_80_percent(
    deviations, seeds, num_tests
):
    difference = detectable_difference(deviations, seeds, num_tests)
    rng = np.random.default_rng(0)
    variant, base = (
        deviation * rng.normal(size=(NUM_STUDIES, size))
        for deviation, size in zip(deviations, seeds, strict=True)
    )
    result = welch(variant + difference, base)
    is_found = (result.pvalue <= ALPHA / num_tests) & (result.statistic > 0)
    assert np.mean(is_found) == pytest.approx(0.8, abs=0.01)


def simulated_p_values(num_tests, shift=0.0, seed=0):
    """Returns p-values [studies, tests] of variants `shift` standard deviations above the baseline."""
    rng = np.random.default_rng(seed)
    baseline = rng.normal(size=(NUM_STUDIES, 1, 5))
    return welch(rng.normal(shift, size=(NUM_STUDIES, num_tests, 5)), baseline).pvalue


def independent_false_positives(num_tests):
    """Returns, for each of `NUM_STUDIES` null studies, whether it has a false positive, by other formulas."""
    rng = np.random.default_rng(99)
    scores = rng.normal(size=(NUM_STUDIES, num_tests + 1, 5))
    errors = scores.var(axis=-1, ddof=1) / 5
    error = errors[:, 1:] + errors[:, :1]
    t = (scores[:, 1:].mean(axis=-1) - scores[:, :1].mean(axis=-1)) / np.sqrt(error)
    freedom = error**2 / ((errors[:, 1:] ** 2 + errors[:, :1] ** 2) / 4)
    # Holm's method rejects at least one hypothesis exactly if Bonferroni's does.
    return (2 * special.stdtr(freedom, -np.abs(t))).min(axis=1) <= ALPHA / num_tests


@pytest.mark.parametrize(
    "num_tests", [3, pytest.param(7, marks=pytest.mark.slow), pytest.param(19, marks=pytest.mark.slow)]
)
def test_studies_without_a_difference_rarely_report_one(num_tests):
    p_values = simulated_p_values(num_tests)
    smallest = np.minimum(1, num_tests * p_values.min(axis=1))  # the first step of Holm's method
    assert [min(holm(study.tolist())) for study in p_values[:5]] == pytest.approx(smallest[:5].tolist())
    rate = np.mean(smallest <= ALPHA)
    expected = independent_false_positives(num_tests).mean()
    standard_error = math.sqrt(2 * expected * (1 - expected) / NUM_STUDIES)
    assert rate <= 0.055
    assert rate == pytest.approx(expected, abs=3 * standard_error)


def test_the_power_at_two_standard_deviations_and_five_seeds():
    assert np.mean(simulated_p_values(1, shift=2.0) <= ALPHA) == pytest.approx(0.77, abs=0.01)
