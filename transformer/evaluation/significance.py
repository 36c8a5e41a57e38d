"""Paired tests of two models on one test set.

The tests ask if the difference between the two models would also occur on other sentences. They say nothing
about models trained with other seeds; see `experiments.study.statistics`.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from sacrebleu.significance import PairedTest
from scipy.special import bdtr

from transformer.evaluation.metrics import Metric, Outputs

# Settings of sacreBLEU's randomization test, used also for the metrics that are not sacreBLEU's.
NUM_SAMPLES = 10_000
SEED = 12_345


class Comparison(NamedTuple):
    """A metric of two models on the same test set.

    Attributes:
      score: score of the model.
      other_score: score of the model that the first model is compared with.
      difference: score - other_score.
      p_bootstrap: two-sided p-value of paired bootstrap resampling (Koehn 2004); None if the metric is not
        sacreBLEU's.
      p_randomization: two-sided p-value of approximate randomization (Riezler and Maxwell 2005); None if the
        metric is not sacreBLEU's and has no score per sentence.
      signatures: sacreBLEU's signatures of its tests, which name the number of samples and the seed; empty if
        the metric is not sacreBLEU's.
    """

    score: float
    other_score: float
    difference: float
    p_bootstrap: float | None
    p_randomization: float | None
    signatures: dict[str, str]


def compare(metric: Metric, outputs: Outputs, other_outputs: Outputs) -> Comparison:
    """Compares two models in one metric. Swapping the models changes only its sign.

    Metrics of sacreBLEU use sacreBLEU's paired tests. Other metrics with a score per sentence use a paired
    randomization test, which flips the signs of the per-sentence score differences at random. The seed is
    fixed, so a result can be reproduced.

    Raises:
      ValueError: the references of the two models differ.
    """
    if list(outputs.references) != list(other_outputs.references):
        raise ValueError("the two models have different references; give outputs on the same test set")
    if metric.scorer is not None:
        return _sacrebleu_comparison(metric, outputs, other_outputs)
    score, other_score = metric.compute(outputs), metric.compute(other_outputs)
    p_value = None
    if metric.sentence_scores is not None:
        pair = metric.sentence_scores(outputs), metric.sentence_scores(other_outputs)
        p_value = randomization_test(np.subtract(*pair, dtype=np.float64))
    return Comparison(score, other_score, score - other_score, None, p_value, {})


def randomization_test(differences: Float[np.ndarray, "n"]) -> float:
    """Returns the two-sided p-value of the mean of paired differences.

    The null hypothesis is that the signs of the differences are random. The p-value is exact (a sign test) if
    all differences other than 0 have the same size, as in a metric that counts a sentence as right or wrong.
    Otherwise, the p-value comes from `NUM_SAMPLES` random samples, and the observed signs count as one more
    sample.
    """
    differences = differences[differences != 0]
    if not len(differences):
        return 1.0
    num_negative = int((differences < 0).sum())
    if np.all(np.abs(differences) == np.abs(differences[0])):
        smaller = min(num_negative, len(differences) - num_negative)
        return min(1.0, 2 * float(bdtr(smaller, len(differences), 0.5)))
    rng = np.random.default_rng(SEED)
    observed = abs(differences.sum()) * (1 - 1e-9)  # equal sums may be rounded differently
    num_extreme = 0
    for _ in range(100):
        signs = 1.0 - 2.0 * rng.integers(0, 2, (NUM_SAMPLES // 100, len(differences)))
        num_extreme += int((np.abs(signs @ differences) >= observed).sum())
    return (num_extreme + 1) / (NUM_SAMPLES + 1)


def _sacrebleu_comparison(metric: Metric, outputs: Outputs, other_outputs: Outputs) -> Comparison:
    """Compares two sets of outputs by the tests of sacreBLEU, with its seed and its numbers of samples.

    The bootstrap takes 1,000 samples, the randomization test 10,000.

    Differs from sacreBLEU: sacreBLEU counts only samples with a larger difference than the observed one, not
    samples with an equal difference. So sacreBLEU reports p = 0.0001 for a model that is compared with
    itself. Here p is 1 if the scores are equal. If the outputs differ for k sentences, p_randomization is at
    least 2^(1 - k): of the 2^k ways to swap these outputs, two give a difference of the observed size.
    """
    # One metric at a time: sacreBLEU cannot distinguish metrics of the same class, such as two BLEUs.
    scorer = metric.scorer(outputs.language)(references=[list(outputs.references)])
    systems = [("other", list(other_outputs.hypotheses)), ("model", list(outputs.hypotheses))]
    results, signatures = {}, {}
    for test, test_type in {"bootstrap": "bs", "randomization": "ar"}.items():
        test_signatures, columns = PairedTest(
            systems, {metric.name: scorer}, references=None, test_type=test_type
        )()
        ((column, signature),) = test_signatures.items()
        results[test], signatures[test] = columns[column], str(signature)
    baseline, model = results["randomization"]
    num_differing = sum(map(str.__ne__, outputs.hypotheses, other_outputs.hypotheses))
    equal = model.score == baseline.score
    return Comparison(
        model.score,
        baseline.score,
        model.score - baseline.score,
        p_bootstrap=1.0 if equal else results["bootstrap"][1].p_value,
        p_randomization=1.0 if equal else max(model.p_value, min(1.0, 2.0 ** (1 - num_differing))),
        signatures=signatures,
    )
