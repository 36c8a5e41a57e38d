"""Search on hand-made tables, against enumeration of everything."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.config import BOS, EOS, PAD
from transformer.decoding.search import UNENDED, beam_search, greedy_search, length_penalty

VOCAB = 5  # PAD, BOS, EOS and two words


def table_step(table):
    """A model whose next-piece logits depend on the row and the last two pieces: table [b, v, v, v].

    Its state is the piece before the last, so that a search that names wrong parents is caught.
    """

    def step(tokens, parents, state, index):
        rows = jnp.arange(tokens.shape[0])[:, None]
        return table[rows, jnp.take_along_axis(state, parents, axis=1), tokens], tokens

    return step


def random_table(seed, rows=3):
    """Log-probabilities; PAD and BOS are never predicted."""
    logits = np.random.default_rng(seed).normal(scale=2, size=(rows, VOCAB, VOCAB, VOCAB))
    logits[..., [PAD, BOS]] = -1e9
    return jnp.float32(logits)


def exhaustive(table, row, limit, alpha):
    """The best ended output of at most `limit` pieces, by trying them all."""
    log_probs = np.asarray(jax.nn.log_softmax(table[row]), np.float64)
    best = (-np.inf, None)
    for length in range(1, limit + 1):
        for words in itertools.product([3, 4], repeat=length - 1):
            before, last, total = 0, BOS, 0.0
            for piece in (*words, EOS):
                total += log_probs[before, last, piece]
                before, last = last, piece
            best = max(best, (total / ((5 + length) / 6) ** alpha, (*words, EOS)))
    return best


def search(table, limits, length, beam_size, alpha=0.6):
    step, rows = table_step(table), table.shape[0]
    limits = jnp.asarray(limits, jnp.int32)
    if beam_size == 0:
        return greedy_search(step, jnp.zeros((rows, 1), jnp.int32), limits, length, alpha)
    state = jnp.zeros((rows, beam_size), jnp.int32)
    return jax.jit(beam_search, static_argnums=(0, 3, 4, 5))(step, state, limits, length, beam_size, alpha)


def words(found, row):
    tokens = list(map(int, found.tokens[row]))
    return tuple(tokens[: tokens.index(PAD)] if PAD in tokens else tokens)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_a_wide_beam_equals_exhaustive_search(seed, alpha):
    """There are 31 outputs of at most five pieces."""
    table, limits = random_table(seed), [5, 3, 1]
    found = search(table, limits, length=5, beam_size=32, alpha=alpha)
    for row, limit in enumerate(limits):
        score, best = exhaustive(table, row, limit, alpha)
        assert words(found, row) == best
        assert float(found.score[row]) == pytest.approx(score, rel=1e-5)


def reference_beam(table, row, limit, beam_size, alpha):
    """The same search with sorted lists: an ended hypothesis keeps its place."""
    log_probs = np.asarray(jax.nn.log_softmax(table[row]), np.float64)
    live, ended = [(0.0, (0, BOS))], []
    for length in range(1, limit + 1):
        extended = [
            (total + log_probs[pieces[-2], pieces[-1], piece], (*pieces, piece))
            for total, pieces in live
            for piece in (EOS, 3, 4)
        ]
        extended.sort(key=lambda one: -one[0])
        kept = extended[: beam_size - len(ended)]
        ended += [(t / ((5 + length) / 6) ** alpha, p[2:]) for t, p in kept if p[-1] == EOS]
        live = [(t, p) for t, p in kept if p[-1] != EOS]
    return max(ended) if ended else None


@pytest.mark.parametrize("beam_size", [2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_a_narrow_beam_equals_sorted_lists(seed, beam_size):
    limits = [7, 5, 4, 6, 7, 3]
    table = random_table(seed, rows=len(limits))
    found = search(table, limits, 7, beam_size)
    checked = 0
    for row, limit in enumerate(limits):
        if (best := reference_beam(table, row, limit, beam_size, 0.6)) is not None:
            assert words(found, row) == best[1]
            assert float(found.score[row]) == pytest.approx(best[0], rel=1e-5)
            checked += 1
    assert checked >= 3


def test_padding_and_start_are_no_predictions():
    table = jnp.zeros((1, VOCAB, VOCAB, VOCAB)).at[..., [PAD, BOS]].set(5.0)
    for beam_size in (0, 2):
        assert not set(words(search(table, [6], 6, beam_size), 0)) & {PAD, BOS}


def test_by_hand_a_beam_of_two_finds_what_greedy_misses():
    """Greedy takes 3 (0.6) and then can only reach 0.6 * 0.4; 4 (0.4) leads to 0.4 * 1."""
    table = np.full((1, VOCAB, VOCAB, VOCAB), -1e9)
    table[0, :, BOS, [3, 4]] = np.log([0.6, 0.4])[:, None]
    table[0, :, 3, [EOS, 3, 4]] = np.log([0.4, 0.3, 0.3])[:, None]
    table[0, :, 4, EOS] = 0
    table = jnp.float32(table)
    assert words(search(table, [4], 4, beam_size=0, alpha=0.0), 0) == (3, EOS)
    found = search(table, [4], 4, beam_size=2, alpha=0.0)
    assert words(found, 0) == (4, EOS)
    assert float(found.score[0]) == pytest.approx(np.log(0.4), rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_a_beam_of_one_is_greedy(seed):
    table, limits = random_table(seed, rows=7), [6, 5, 4, 3, 2, 1, 6]
    beam, greedy = search(table, limits, 6, beam_size=1), search(table, limits, 6, beam_size=0)
    np.testing.assert_array_equal(beam.tokens, greedy.tokens)
    np.testing.assert_allclose(beam.score, greedy.score, rtol=1e-5)


@pytest.mark.parametrize("beam_size", [0, 2, 3])
def test_neighbours_and_room_change_nothing(beam_size):
    table, limits = random_table(11), [6, 2, 4]
    together = search(table, limits, 9, beam_size)
    for row, limit in enumerate(limits):
        alone = search(table[row : row + 1], [limit], 6, beam_size)
        assert words(together, row) == words(alone, 0)
        assert float(together.score[row]) == pytest.approx(float(alone.score[0]), rel=1e-6)


@pytest.mark.parametrize("beam_size", [0, 2])
def test_what_never_ends_stops_at_its_limit(beam_size):
    table = jnp.full((2, VOCAB, VOCAB, VOCAB), -1e9).at[..., 3].set(0.0)
    found = search(table, [3, 0], 6, beam_size)
    assert words(found, 0) == (3, 3, 3)
    assert float(found.score[0]) < UNENDED / 2
    assert words(found, 1) == ()


def test_early_stopping_waits_for_a_longer_and_better_hypothesis():
    """EOS at once has probability 1/2; so has 3 3 4 4 EOS, which its length makes the better one."""
    table = np.full((1, VOCAB, VOCAB, VOCAB), -1e9)
    table[0, :, BOS, [EOS, 3]] = np.log([0.5, 0.5])[:, None]
    for before, last, following in ((BOS, 3, 3), (3, 3, 4), (3, 4, 4), (4, 4, EOS)):
        table[0, before, last, following] = 0
    found = search(jnp.float32(table), [10], 10, beam_size=2, alpha=1.0)
    assert words(found, 0) == (3, 3, 4, 4, EOS)
    assert float(found.score[0]) == pytest.approx(np.log(0.5) / (10 / 6), rel=1e-5)


def test_length_penalty_is_that_of_wu_et_al():
    assert float(length_penalty(1, 0.6)) == pytest.approx(1)
    assert float(length_penalty(7, 0.6)) == pytest.approx(2**0.6)
    assert float(length_penalty(7, 0.0)) == pytest.approx(1)
