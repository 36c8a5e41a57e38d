"""Differences on one test set by sacreBLEU's tests; across seeds by a t-interval."""

import itertools
import json
import math
import random
import subprocess
import sys

import pytest

from transformer.evaluation.significance import compare, interval

WORDS = ["the", "a", "dog", "cat", "runs", "sits", "in", "on", "park", "house", "big", "small", "and", "then"]


def corpus(seed, sentences=60):
    """References, and two systems that change a word in half of them, each where it likes."""
    rng = random.Random(seed)
    references = [" ".join(rng.choices(WORDS, k=rng.randint(5, 12))) for _ in range(sentences)]
    return references, damaged(references, rng, 0.5), damaged(references, rng, 0.5)


def damaged(references, rng, share):
    changed = []
    for reference in references:
        words = reference.split()
        if rng.random() < share:
            words[rng.randrange(len(words))] = "something"
        changed.append(" ".join(words))
    return changed


@pytest.mark.parametrize(
    ("flag", "field", "metrics"),
    [  # with chrF, the command line cannot write what its bootstrap found
        ("--paired-bs", "p_bootstrap", {"bleu": "BLEU"}),
        ("--paired-ar", "p_randomisation", {"bleu": "BLEU", "chrf": "chrF2"}),
    ],
)
def test_p_values_are_those_of_sacrebleus_command_line(tmp_path, flag, field, metrics):
    references, one, other = corpus(seed=3)
    for name, lines in (("ref", references), ("one", one), ("other", other)):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    command = [
        sys.executable,
        "-m",
        "sacrebleu",
        "ref",
        "-i",
        "other",
        "one",
        "-m",
        *metrics,
        flag,
        "-f",
        "json",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    baseline, system = json.loads(done.stdout)
    for name, column in metrics.items():
        found = compare(name, one, other, references)
        assert found.score == pytest.approx(system[column]["score"])
        assert found.other == pytest.approx(baseline[column]["score"])
        assert getattr(found, field) == pytest.approx(system[column]["p_value"])
        assert 0.01 < getattr(found, field) < 0.99  # an example that says something


@pytest.mark.parametrize("name", ["bleu", "chrf", "exact_match"])
def test_the_same_again_and_the_other_way_round(name):
    references, one, other = corpus(seed=5)
    found = compare(name, one, other, references)
    assert compare(name, one, other, references) == found
    back = compare(name, other, one, references)
    assert back == found._replace(score=found.other, other=found.score, difference=-found.difference)
    assert found.difference == found.score - found.other != 0


@pytest.mark.parametrize("name", ["bleu", "exact_match"])
def test_a_large_difference_is_found_and_none_is_not(name):
    references, one, _ = corpus(seed=7)
    better = [reference if number % 4 else hypothesis for number, (reference, hypothesis) in
              enumerate(zip(references, one, strict=True))]  # fmt: skip
    found = compare(name, better, one, references)
    assert found.difference > 0
    assert found.p_randomisation < 0.001
    same = compare(name, one, one, references)
    assert (same.difference, same.p_randomisation) == (0, 1)
    if name != "exact_match":
        assert found.p_bootstrap < 0.05
        assert same.p_bootstrap == 1


def test_no_difference_after_lower_casing_is_none():
    references, one, _ = corpus(seed=7)
    found = compare("bleu_lc", one, [line.upper() for line in one], references)
    assert (found.p_bootstrap, found.p_randomisation) == (1, 1)


@pytest.mark.parametrize("differing", [1, 2, 4])
def test_few_sentences_prove_little(differing):
    """sacreBLEU finds 0.0001 for a single sentence, where half of all assignments give the difference found."""
    references, one, _ = corpus(seed=11)
    other = [line if number >= differing else f"{line} tail" for number, line in enumerate(one)]
    for name in ("bleu", "chrf"):
        assert compare(name, one, other, references).p_randomisation >= 2 ** (1 - differing)


@pytest.mark.parametrize(("wins", "losses"), [(1, 0), (6, 4), (7, 1), (3, 3), (0, 5)])
def test_exact_match_by_every_assignment(wins, losses):
    """All 2^k of them, counted one by one."""
    references = ["r"] * (wins + losses + 4)
    one = ["r"] * wins + ["x"] * losses + ["r", "r", "x", "x"]
    other = ["x"] * wins + ["r"] * losses + ["r", "r", "x", "y"]
    signs = list(itertools.product((1, -1), repeat=wins + losses))
    extreme = sum(abs(sum(sign)) >= abs(wins - losses) for sign in signs)
    found = compare("exact_match", one, other, references)
    assert found.p_randomisation == pytest.approx(extreme / len(signs))
    assert found.p_bootstrap is None


@pytest.mark.parametrize("counts", [(2, 2, 3), (2, 3, 2), (3, 2, 2), (0, 0, 0)])
@pytest.mark.parametrize("name", ["bleu", "exact_match"])
def test_other_numbers_of_sentences_are_refused(name, counts):
    with pytest.raises(ValueError, match=r"\d and \d hypotheses for \d references"):
        compare(name, *(["a"] * count for count in counts))


def test_interval():
    """t(0.975) is 4.302653 for 2 degrees of freedom and 12.706205 for 1 (any table)."""
    mean, deviation, low, high = interval([1.0, 2.0, 3.0])
    assert (mean, deviation) == (2, 1)
    assert (low, high) == pytest.approx((2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)))
    assert interval([1.0, 3.0])[2:] == pytest.approx((2 - 12.706205, 2 + 12.706205))
    assert interval([5.0, 5.0]) == (5, 0, 5, 5)


def test_interval_of_too_few():
    assert interval([4.0]).mean == 4
    assert all(map(math.isnan, interval([4.0])[1:]))
    assert all(map(math.isnan, interval([])))


def test_interval_covers_the_mean_as_often_as_it_says():
    rng = random.Random(0)
    intervals = [interval([rng.gauss(0, 1) for _ in range(3)]) for _ in range(2_000)]
    covered = sum(one.low <= 0 <= one.high for one in intervals) / len(intervals)
    assert covered == pytest.approx(0.95, abs=0.02)  # four standard errors of such a share
