"""Paired tests for a difference on one test set.

The randomization test counts assignments. An assignment swaps the outputs of the two models for some of the
sentences.
"""

import itertools
import json
import math
import random
import subprocess
import sys

import numpy as np
import pytest

from tests.support.outputs import outputs_of
from transformer.evaluation.metrics import METRICS
from transformer.evaluation.significance import compare, randomization_test

WORDS = ["the", "a", "dog", "cat", "runs", "sits", "in", "on", "park", "house", "big", "small", "and", "then"]


def corpus(seed, num_sentences=60):
    """References, and outputs of two models.

    Each model changes one word in about half of the sentences, chosen independently.
    """
    rng = random.Random(seed)
    references = [" ".join(rng.choices(WORDS, k=rng.randint(5, 12))) for _ in range(num_sentences)]
    return references, damaged(references, rng), damaged(references, rng)


def damaged(references, rng):
    hypotheses = []
    for reference in references:
        words = reference.split()
        if rng.random() < 0.5:
            words[rng.randrange(len(words))] = "something"
        hypotheses.append(" ".join(words))
    return hypotheses


def compared(name, hypotheses, baseline_hypotheses, references):
    return compare(
        METRICS[name], outputs_of(hypotheses, references), outputs_of(baseline_hypotheses, references)
    )


@pytest.mark.parametrize(
    ("flag", "field", "metrics"),
    [  # with chrF, sacreBLEU's command line cannot write the result of its bootstrap
        ("--paired-bs", "p_bootstrap", {"bleu": "BLEU"}),
        ("--paired-ar", "p_randomization", {"bleu": "BLEU", "chrf": "chrF2"}),
    ],
)
def test_p_values_are_those_of_sacrebleus_command_line(tmp_path, flag, field, metrics):
    references, model, baseline = corpus(seed=3)
    for name, lines in (("references", references), ("model", model), ("baseline", baseline)):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    files, options = ["references", "-i", "baseline", "model"], ["-m", *metrics, flag, "-f", "json"]
    done = subprocess.run(
        [sys.executable, "-m", "sacrebleu", *files, *options], cwd=tmp_path, capture_output=True, check=True
    )
    first, second = json.loads(done.stdout)
    for name, column in metrics.items():
        comparison = compared(name, model, baseline, references)
        assert comparison.score == pytest.approx(second[column]["score"])
        assert comparison.other_score == pytest.approx(first[column]["score"])
        assert getattr(comparison, field) == pytest.approx(second[column]["p_value"])
        assert 0.01 < getattr(comparison, field) < 0.99  # not a trivial p-value


@pytest.mark.parametrize("name", ["bleu", "exact_match"])
def test_comparison_is_reproducible_and_antisymmetric(name):
    references, model, baseline = corpus(seed=5)
    comparison = compared(name, model, baseline, references)
    assert compared(name, model, baseline, references) == comparison
    assert compared(name, baseline, model, references) == comparison._replace(
        score=comparison.other_score, other_score=comparison.score, difference=-comparison.difference
    )
    assert comparison.difference == comparison.score - comparison.other_score != 0


@pytest.mark.parametrize("name", ["bleu", "exact_match"])
def test_a_large_difference_is_significant_and_no_difference_is_not(name):
    references, model, _ = corpus(seed=7)
    better = [references[i] if i % 4 else model[i] for i in range(len(model))]
    comparison = compared(name, better, model, references)
    assert comparison.difference > 0
    assert comparison.p_randomization < 0.001
    same = compared(name, model, model, references)
    assert (same.difference, same.p_randomization) == (0, 1)
    if name == "bleu":
        assert comparison.p_bootstrap < 0.05
        assert same.p_bootstrap == 1


def test_a_difference_only_in_case_does_not_count_for_bleu_lc():
    references, model, _ = corpus(seed=7)
    comparison = compared("bleu_lc", model, [line.upper() for line in model], references)
    assert (comparison.p_bootstrap, comparison.p_randomization) == (1, 1)


@pytest.mark.parametrize("num_differing", [1, 2, 4])
def test_few_differing_sentences_give_a_large_p_value(num_differing):
    """sacreBLEU reports p = 0.0001 for a single differing sentence.

    The correct value is p = 1, since every assignment gives a difference of the observed size.
    """
    references, model, _ = corpus(seed=11)
    baseline = [line if i >= num_differing else f"{line} tail" for i, line in enumerate(model)]
    assert compared("bleu", model, baseline, references).p_randomization >= 2 ** (1 - num_differing)


@pytest.mark.parametrize(("wins", "losses"), [(1, 0), (6, 4), (7, 1), (3, 3), (0, 5)])
def test_the_p_value_of_exact_match_counts_every_assignment(wins, losses):
    references = ["r"] * (wins + losses + 4)
    model = ["r"] * wins + ["x"] * losses + ["r", "r", "x", "x"]
    baseline = ["x"] * wins + ["r"] * losses + ["r", "r", "x", "y"]
    comparison = compared("exact_match", model, baseline, references)
    signs = list(itertools.product((1, -1), repeat=wins + losses))
    num_extreme = sum(abs(sum(sign)) >= abs(wins - losses) for sign in signs)
    assert comparison.p_randomization == pytest.approx(num_extreme / len(signs))
    assert comparison.p_bootstrap is None


def test_randomization_test_estimates_the_share_of_all_assignments():
    """The tolerance is four standard errors of 10,000 samples."""
    differences = np.array([3.0, -1.5, 2.0, 4.0, -0.5, 1.0, 2.5, 0.0])
    signs = np.array(list(itertools.product((1, -1), repeat=8)))
    exact = np.mean(np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9)
    p_value = randomization_test(differences)
    assert 0.01 < exact < 0.5
    assert abs(p_value - exact) < 4 * math.sqrt(exact * (1 - exact) / 10_000)
    assert randomization_test(-differences) == randomization_test(differences)


@pytest.mark.parametrize("name", ["bleu", "exact_match"])
def test_outputs_for_different_test_sets_cannot_be_compared(name):
    outputs, baseline = outputs_of(["a", "b"], ["a", "b"]), outputs_of(["a", "b"], ["a", "c"])
    with pytest.raises(ValueError, match="the two models have different references"):
        compare(METRICS[name], outputs, baseline)
