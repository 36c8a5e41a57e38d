"""Searches over tables of logits in place of a model, compared with an enumeration of all outputs.

A `beam_size` of 0 stands for greedy search.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.search_tables import (
    VOCAB,
    log_probs,
    random_table,
    run,
    search,
    table_step,
    words,
)
from transformer.config import BOS, EOS, PAD
from transformer.decoding.length_penalty import PENALTIES, power_penalty, wu_penalty
from transformer.decoding.search import BeamSearch, Constraints, IndependentSearch, cache_sizes
from transformer.decoding.top_k import top_k
from transformer.model.masks import NEG_INF


def all_outputs(table, row, limit, alpha=0.6, penalty="wu", min_length=1, prefix=()):
    """All outputs of at most `limit` tokens that end with EOS, with their scores, best first."""
    row_log_probs, outputs = log_probs(table, row), []
    for length in range(min_length, limit + 1):
        divisor = ((5 + length) / 6) ** alpha if penalty == "wu" else length**alpha
        for tokens in itertools.product([3, 4], repeat=length - 1):
            if tokens[: len(prefix)] != tuple(prefix):
                continue
            path = (0, BOS, *tokens, EOS)
            total = sum(row_log_probs[path[i : i + 3]] for i in range(length))
            outputs.append((total / divisor, path[2:]))
    return sorted(outputs, reverse=True)


def sorted_list_beam(table, row, limit, beam_size, alpha):
    """Beam search with sorted lists. A hypothesis that has ended keeps its place in the beam."""
    row_log_probs, live, ended = log_probs(table, row), [(0.0, (0, BOS))], []
    for length in range(1, limit + 1):
        extended = [
            (total + row_log_probs[path[-2], path[-1], token], (*path, token))
            for total, path in live
            for token in (EOS, 3, 4)
        ]
        extended.sort(key=lambda hypothesis: -hypothesis[0])
        kept = extended[: beam_size - len(ended)]
        ended += [(t / ((5 + length) / 6) ** alpha, path[2:]) for t, path in kept if path[-1] == EOS]
        live = [hypothesis for hypothesis in kept if hypothesis[1][-1] != EOS]
    return max(ended) if ended else None


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_wide_beam_equals_exhaustive_search(seed, alpha, penalty):
    """The beam has room for all 31 outputs of at most five tokens."""
    table, limits = random_table(seed), [5, 3, 1]
    result = search(table, limits, beam_size=32, alpha=alpha, penalty=penalty, n_best=3)
    for row, limit in enumerate(limits):
        for place, (score, best) in enumerate(all_outputs(table, row, limit, alpha, penalty)[:3]):
            assert words(result, row, place) == best
            assert result.score[row, place] == pytest.approx(score, rel=1e-5)
    assert result.ended.all(axis=1).tolist() == [True, True, False]
    assert words(result, 2, 1) in [(3,), (4,)]  # outputs without EOS rank after the only output with EOS


@pytest.mark.parametrize("beam_size", [0, 32])
@pytest.mark.parametrize("min_length", [1, 4])
def test_outputs_satisfy_prefix_and_minimum_length(beam_size, min_length):
    """The rows have no prefix, a prefix of two tokens, and a prefix one token shorter than the limit."""
    table, prefixes = random_table(3), [(), (4, 3), (4, 4, 4, 4)]
    result = search(table, [5, 5, 5], beam_size, min_length=min_length, prefixes=prefixes, n_best=3)
    for row, prefix in enumerate(prefixes):
        outputs = all_outputs(table, row, 5, min_length=min_length, prefix=prefix)
        if beam_size:
            assert words(result, row) == outputs[0][1]
        assert words(result, row)[: len(prefix)] == prefix
        if result.ended[row, 0]:
            assert len(words(result, row)) >= min_length
            scores = {output: score for score, output in outputs}
            assert result.score[row, 0] == pytest.approx(scores[words(result, row)], rel=1e-5)


@pytest.mark.parametrize("beam_size", [2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_narrow_beam_equals_sorted_lists(seed, beam_size):
    limits = [7, 5, 4, 6, 7, 3]
    table = random_table(seed, num_rows=6)
    result = search(table, limits, beam_size)
    expected = [sorted_list_beam(table, row, limit, beam_size, 0.6) for row, limit in enumerate(limits)]
    for row, best in enumerate(expected):
        if best is not None:
            assert words(result, row) == best[1]
            assert result.score[row, 0] == pytest.approx(best[0], rel=1e-5)
    assert sum(best is not None for best in expected) >= 3


def test_padding_and_bos_are_never_predicted():
    table = np.zeros((1, VOCAB, VOCAB, VOCAB), np.float32)
    table[..., [PAD, BOS]] = 5
    for beam_size in (0, 2):
        assert not set(words(search(table, [6], beam_size), 0)) & {PAD, BOS}


def test_beam_of_two_finds_an_output_that_greedy_search_misses():
    """Greedy search takes word 3 (0.6), then at best EOS (0.4). Word 4 (0.4) is always followed by EOS."""
    table = np.full((1, VOCAB, VOCAB, VOCAB), -1e9, np.float32)
    table[0, :, BOS, [3, 4]] = np.log([0.6, 0.4])[:, None]
    table[0, :, 3, [EOS, 3, 4]] = np.log([0.4, 0.3, 0.3])[:, None]
    table[0, :, 4, EOS] = 0
    assert words(search(table, [4], beam_size=0, alpha=0.0), 0) == (3, EOS)
    result = search(table, [4], beam_size=2, alpha=0.0)
    assert words(result, 0) == (4, EOS)
    assert result.score[0, 0] == pytest.approx(np.log(0.4), rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_beam_of_one_equals_greedy_search(seed):
    table, limits = random_table(seed, num_rows=6), [6, 5, 4, 3, 2, 1]
    beam, greedy = search(table, limits, beam_size=1), search(table, limits, beam_size=0)
    np.testing.assert_array_equal(beam.tokens, greedy.tokens)
    np.testing.assert_allclose(beam.score, greedy.score, rtol=1e-5)


@pytest.mark.parametrize("beam_size", [0, 2, 3])
def test_other_rows_do_not_change_an_output(beam_size):
    table, limits = random_table(11), [6, 2, 4]
    together = search(table, limits, beam_size)
    for row, limit in enumerate(limits):
        alone = search(table[row : row + 1], [limit], beam_size)
        assert words(together, row) == words(alone, 0)
        assert together.score[row, 0] == pytest.approx(alone.score[0, 0], rel=1e-6)


@pytest.mark.parametrize("beam_size", [0, 3])
def test_length_of_the_arrays_does_not_change_an_output(beam_size):
    table, limits = random_table(11), [6, 2, 4]
    long, short = (search(table, limits, beam_size, length=length) for length in (10, 6))
    np.testing.assert_array_equal(long.tokens[..., :6], short.tokens)
    assert not long.tokens[..., 6:].any()
    np.testing.assert_allclose(long.score, short.score, rtol=1e-6)


@pytest.mark.parametrize("beam_size", [0, 3])
def test_cache_grows_and_keeps_its_entries(beam_size):
    """An output ends when the cache holds 20 entries, so a lost entry would make the output longer."""
    inner, lengths = table_step(jnp.asarray(random_table(7, num_rows=2))), []

    def step(tokens, parents, state, index):
        logits, before = inner(tokens, parents, state[0], index)
        cache = jax.lax.dynamic_update_slice_in_dim(state[1], jnp.ones(1), index, axis=0)
        is_end = (jnp.arange(VOCAB) == EOS)[None, None]
        return jnp.where(is_end == (cache.sum() < 20), -1e9, logits), (before, cache)

    def resize_cache(state, length):
        lengths.append(length)
        return state[0], jnp.pad(state[1], (0, length - len(state[1])))

    method = BeamSearch(beam_size) if beam_size else IndependentSearch()
    state = (jnp.zeros((2, max(beam_size, 1)), jnp.int32), jnp.zeros(cache_sizes(24)[0]))
    constraints = Constraints(jnp.array([24, 24]))
    result = jax.jit(lambda state: run(method, step, state, constraints, 24, resize_cache))(state)
    result = jax.tree.map(np.asarray, result)
    assert lengths == [16, 24]
    assert [len(words(result, row)) for row in range(2)] == [20, 20]


def test_cache_sizes_double_up_to_the_length():
    assert cache_sizes(50) == [16, 32, 50]
    assert cache_sizes(24) == [16, 24]
    assert cache_sizes(23) == [23]


@pytest.mark.parametrize("beam_size", [0, 2])
def test_output_without_eos_stops_at_its_limit(beam_size):
    table = np.full((2, VOCAB, VOCAB, VOCAB), -1e9, np.float32)
    table[..., 3] = 0
    result = search(table, [3, 0], beam_size)
    assert words(result, 0) == (3, 3, 3)
    assert not result.ended[0, 0]
    assert result.score[0, 0] == pytest.approx(0)
    assert words(result, 1) == ()
    assert result.score[1, 0] == NEG_INF


def test_early_stopping_waits_for_a_longer_output_that_may_score_higher():
    """The outputs EOS and 3 3 4 4 EOS both have probability 1/2. The longer output has the higher score."""
    table = np.full((1, VOCAB, VOCAB, VOCAB), -1e9, np.float32)
    table[0, :, BOS, [EOS, 3]] = np.log([0.5, 0.5])[:, None]
    for before, last, following in ((BOS, 3, 3), (3, 3, 4), (3, 4, 4), (4, 4, EOS)):
        table[0, before, last, following] = 0
    result = search(table, [10], beam_size=2, alpha=1.0)
    assert words(result, 0) == (3, 3, 4, 4, EOS)
    assert result.score[0, 0] == pytest.approx(np.log(0.5) / (10 / 6), rel=1e-5)


def test_length_penalties_equal_values_computed_by_hand():
    assert float(wu_penalty(1, 0.6)) == pytest.approx(1)
    assert float(wu_penalty(7, 0.6)) == pytest.approx(2**0.6)
    assert float(wu_penalty(7, 0.0)) == pytest.approx(1)
    assert float(power_penalty(8, 0.5)) == pytest.approx(8**0.5)


@pytest.mark.parametrize(("vocab_size", "k"), [(5, 3), (200, 1), (200, 4), (1_000, 1), (1_000, 4)])
def test_top_k_equals_a_full_sort(vocab_size, k):
    """Logits have few distinct values, so many are equal within and across chunks. Most are masked."""
    values = np.random.default_rng(k).integers(-99, 0, (20, 2, vocab_size))
    logits = jnp.where(values < -9, NEG_INF, jnp.float32(values))
    largest, tokens = jax.jit(top_k, static_argnums=1)(logits, k)
    expected, expected_tokens = jax.lax.top_k(logits, k)
    np.testing.assert_array_equal(largest, expected)
    np.testing.assert_array_equal(tokens, expected_tokens)
