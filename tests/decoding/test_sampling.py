"""Sampling: frequencies, truncation of a distribution, and the inputs on which samples depend."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.search_tables import log_probs, random_table, sample, search
from tests.support.translators import TEXTS, tokenizer, translator
from transformer.config import BOS, EOS
from transformer.decoding.sampling import Sampler, keep_top_k, keep_top_p
from transformer.decoding.translator import Translator
from transformer.model.masks import NEG_INF

LOGITS = np.log([0.5, 0.25, 0.15, 0.07, 0.03])
NUM_SAMPLES = 20_000
SAMPLING = {"sampling": True, "temperature": 2.0, "min_output_length": 6}
UNSORTED = jnp.log(jnp.array([[0.4, 0.15, 0.2, 0.2, 0.05]]))


@functools.partial(jax.jit, static_argnames="k")
def first_samples(index, temperature, p, k=None):
    """Draws tokens from `LOGITS` for `NUM_SAMPLES` sentences with two hypotheses each."""
    logits = jnp.broadcast_to(jnp.float32(LOGITS)[None, None], (NUM_SAMPLES, 2, 5))
    return Sampler(jax.random.key(7), jnp.arange(NUM_SAMPLES), temperature, k, p)(logits, index)


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, softmax(LOGITS)),
        ({"temperature": 0.5}, softmax(2 * LOGITS)),
        ({"k": 2}, np.array([2 / 3, 1 / 3, 0, 0, 0])),
        ({"p": 0.76}, np.array([0.5, 0.25, 0.15, 0, 0]) / 0.9),
        ({"temperature": 0.5, "k": 3, "p": 0.9}, np.array([4 / 5, 1 / 5, 0, 0, 0])),
    ],
    ids=["unchanged", "low temperature", "top-k", "nucleus", "all three"],
)
def test_frequencies_equal_probabilities(options, expected):
    """The tolerance is four standard deviations. Top-p acts on the distribution after the temperature."""
    tokens = first_samples(jnp.int32(0), **{"temperature": 1.0, "p": 1.0, **options})[:, 0]
    frequencies = np.bincount(tokens, minlength=5) / NUM_SAMPLES
    assert np.all(np.abs(frequencies - expected) <= 4 * np.sqrt(expected * (1 - expected) / NUM_SAMPLES))


def test_sentences_hypotheses_and_positions_have_independent_samples():
    """Independent samples are equal with probability sum p^2. The tolerance is four standard deviations."""
    first, second = (np.asarray(first_samples(jnp.int32(index), 1.0, 1.0)) for index in (0, 1))
    expected = (softmax(LOGITS) ** 2).sum()
    for left, right in (
        (first[:, 0], first[:, 1]),
        (first[:, 0], second[:, 0]),
        (first[1:, 0], first[:-1, 0]),
    ):
        deviation = np.sqrt(expected * (1 - expected) / NUM_SAMPLES)
        assert abs(np.mean(left == right) - expected) < 4 * deviation


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (0.3, [0]),
        (0.39, [0]),
        (0.41, [0, 2, 3]),  # either token of probability 0.2 would be enough; both are kept
        (0.79, [0, 2, 3]),
        (0.81, [0, 1, 2, 3]),
        (1.0, [0, 1, 2, 3, 4]),
    ],
)
def test_top_p_keeps_the_tokens_computed_by_hand(p, expected):
    """The cumulative probabilities, from the most probable token, are 0.4, 0.6, 0.8, 0.95 and 1."""
    kept = np.asarray(jax.jit(keep_top_p)(UNSORTED, p)[0])
    assert np.flatnonzero(kept > NEG_INF).tolist() == expected
    np.testing.assert_array_equal(kept[expected], np.asarray(UNSORTED)[0, expected])


@pytest.mark.parametrize(("k", "expected"), [(1, [0]), (2, [0, 2, 3]), (4, [0, 1, 2, 3]), (9, [0, 1, 2, 3, 4])])  # fmt: skip
def test_top_k_keeps_the_tokens_computed_by_hand(k, expected):
    assert np.flatnonzero(keep_top_k(UNSORTED, k)[0] > NEG_INF).tolist() == expected


@pytest.mark.parametrize("options", [{"k": 1}, {"p": 1e-6}, {"temperature": 1e-6}])
def test_sampling_from_a_single_token_equals_greedy_search(options):
    table, limits = random_table(4, num_rows=5), [6, 5, 4, 6, 1]
    samples, greedy = sample(table, limits, **options), search(table, limits, beam_size=0, alpha=0.0)
    for hypothesis in range(3):
        np.testing.assert_array_equal(samples.tokens[:, hypothesis], greedy.tokens[:, 0])
        np.testing.assert_allclose(samples.score[:, hypothesis], greedy.score[:, 0], rtol=1e-6)


def test_score_of_a_sample_is_its_log_probability():
    """The log-probability is that of the model, before the temperature is applied."""
    table = random_table(4, num_rows=2)
    result = sample(table, [6, 4], seed=1, temperature=3.0)
    for row in range(2):
        for hypothesis in range(3):
            path = (0, BOS, *filter(None, result.tokens[row, hypothesis].tolist()))
            total = sum(log_probs(table, row)[path[i : i + 3]] for i in range(len(path) - 2))
            assert result.score[row, hypothesis] == pytest.approx(total, rel=1e-5)
            assert result.ended[row, hypothesis] == (path[-1] == EOS)


@pytest.fixture(scope="module")
def sampling():
    """A translator with four samples per text."""
    return translator(**SAMPLING, n_best=4)


@pytest.fixture(scope="module")
def samples(sampling):
    """The four samples for each of `TEXTS`."""
    return [[sample.text for sample in hypotheses] for hypotheses in sampling.hypotheses(TEXTS)]


def test_samples_depend_on_sentence_number_and_not_on_neighbors(sampling, samples):
    """Logits are rounded differently in different batches, but no choice here is close enough to change."""
    for number, text in enumerate(TEXTS):
        alone = sampling.hypotheses([text], first=number)[0]
        assert [sample.text for sample in alone] == samples[number]
    assert sampling(TEXTS[1:2]) != [samples[1][0]]
    assert len({texts[0] for texts in samples}) == len(TEXTS)


def test_samples_depend_on_the_seed(samples):
    other_seed = translator(**SAMPLING, n_best=4, seed=1)(TEXTS[:2])
    assert all(text != texts[0] for text, texts in zip(other_seed, samples[:2], strict=True))


def test_samples_differ_and_the_first_sample_does_not_depend_on_their_number(samples):
    assert [len(set(texts)) for texts in samples] == [4 if text else 1 for text in TEXTS]
    one_sample = translator(**SAMPLING)
    assert one_sample(TEXTS[:2]) == [texts[0] for texts in samples[:2]]


def test_equal_parts_of_a_text_have_different_samples(sampling):
    """The text is split into two equal parts of 15 tokens and EOS."""
    part, results = tokenizer().encode("a man in a hat"), []
    assert len(part) == sampling.max_source_length == 16

    class Recorder(Translator):
        """Records the source and the result of every search."""

        def search(self, source, *arguments):
            results.append((source, super().search(source, *arguments)))
            return results[-1][1]

    translator(Recorder, **SAMPLING, n_best=4)(["a man in a hat a man in a hat"])
    ((source, result),) = results
    assert source.tolist() == [part, part]
    assert not np.array_equal(result.tokens[0], result.tokens[1])
