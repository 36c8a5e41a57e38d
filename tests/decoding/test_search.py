"""Search on hand-made tables, against enumeration of everything."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.config import BOS, EOS, PAD
from transformer.decoding.pieces import IMPOSSIBLE, top_k
from transformer.decoding.search import (
    PENALTIES,
    BeamSearch,
    ChoosingSearch,
    Rules,
    length_penalty,
    run,
    stages,
    wu_penalty,
)

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


def penalised(total, length, alpha, name="wu"):
    return total / (((5 + length) / 6) ** alpha if name == "wu" else length**alpha)


def exhaustive(table, row, limit, alpha=0.0, penalty="wu", shortest=1, prefix=()):
    """Every ended output of at most `limit` pieces and its score, best first."""
    log_probs = np.asarray(jax.nn.log_softmax(table[row]), np.float64)
    outputs = []
    for length in range(shortest, limit + 1):
        for words in itertools.product([3, 4], repeat=length - 1):
            if words[: len(prefix)] != tuple(prefix):
                continue
            before, last, total = 0, BOS, 0.0
            for piece in (*words, EOS):
                total += log_probs[before, last, piece]
                before, last = last, piece
            outputs.append((penalised(total, length, alpha, penalty), (*words, EOS)))
    return sorted(outputs, reverse=True)


def search(table, limits, length, beam_size, alpha=0.6, penalty="wu", n_best=1, **rules):
    """A beam of 0 is greedy search."""
    step, rows = table_step(table), table.shape[0]
    rules = Rules(jnp.asarray(limits, jnp.int32), **rules)
    penalty = functools.partial(PENALTIES[penalty], alpha=alpha)
    state = jnp.zeros((rows, max(beam_size, 1)), jnp.int32)
    if beam_size == 0:
        return run(ChoosingSearch(penalty=penalty), step, state, rules, length)
    beam = BeamSearch(beam_size, penalty, n_best)
    return jax.jit(lambda state: run(beam, step, state, rules, length))(state)


def words(found, row, place=0):
    tokens = list(map(int, found.tokens[row, place]))
    return tuple(tokens[: tokens.index(PAD)] if PAD in tokens else tokens)


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_a_wide_beam_equals_exhaustive_search(seed, alpha, penalty):
    """There are 31 outputs of at most five pieces; the three best are asked for."""
    table, limits = random_table(seed), [5, 3, 1]
    found = search(table, limits, length=5, beam_size=32, alpha=alpha, penalty=penalty, n_best=3)
    for row, limit in enumerate(limits):
        for place, (score, best) in enumerate(exhaustive(table, row, limit, alpha, penalty)[:3]):
            assert words(found, row, place) == best
            assert float(found.score[row, place]) == pytest.approx(score, rel=1e-5)
    assert found.ended.all(axis=1).tolist() == [True, True, False]
    assert words(found, 2, 1) in [(3,), (4,)]  # of one piece only EOS has ended; what has not comes after it


@pytest.mark.parametrize("beam_size", [0, 32])
@pytest.mark.parametrize("shortest", [1, 4])
def test_what_the_rules_ask_for(beam_size, shortest):
    """A prefix and a least length, by row: without a prefix, with one, with one that the limit just holds."""
    table, limits, prefixes = random_table(3), [5, 5, 5], [(), (4, 3), (4, 4, 4, 4)]
    prefix = jnp.array([[*one, *[PAD] * (5 - len(one))] for one in prefixes])
    found = search(table, limits, 5, beam_size, shortest=shortest, prefix=prefix)
    for row, forced in enumerate(prefixes):
        outputs = exhaustive(table, row, 5, 0.6, shortest=shortest, prefix=forced)
        if beam_size:
            assert words(found, row) == outputs[0][1]
        assert words(found, row)[: len(forced)] == forced
        if found.ended[row, 0]:
            assert len(words(found, row)) >= shortest
            score = {output: score for score, output in outputs}[words(found, row)]
            assert float(found.score[row, 0]) == pytest.approx(score, rel=1e-5)


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
            assert float(found.score[row, 0]) == pytest.approx(best[0], rel=1e-5)
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
    assert float(found.score[0, 0]) == pytest.approx(np.log(0.4), rel=1e-5)


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
        assert float(together.score[row, 0]) == pytest.approx(float(alone.score[0, 0]), rel=1e-6)


@pytest.mark.parametrize("beam_size", [0, 3])
def test_room_grows_on_the_way(beam_size):
    """A state with as many places as there is room; what it says at a step was written at the first."""
    table = random_table(7, rows=2)
    inner = table_step(table)
    rooms = []

    def step(tokens, parents, state, index):
        logits, before = inner(tokens, parents, state[0], index)
        written = jax.lax.dynamic_update_slice_in_dim(state[1], jnp.ones(1), index, axis=0)
        seen = (written * (jnp.arange(len(written)) <= index)).sum()
        logits = jnp.where((jnp.arange(VOCAB) == EOS) & (seen < 40), -1e9, logits)
        return logits, (before, written)

    def grow(state, length):
        rooms.append(length)
        return state[0], jnp.pad(state[1], (0, length - len(state[1])))

    state = (jnp.zeros((2, max(beam_size, 1)), jnp.int32), jnp.zeros(stages(50)[0]))
    rules = Rules(jnp.array([50, 50]))
    found = run(BeamSearch(beam_size) if beam_size else ChoosingSearch(), step, state, rules, 50, grow)
    assert rooms == stages(50) == [16, 32, 50]
    assert all(len(words(found, row)) >= 40 for row in range(2))
    assert stages(23) == [23]


@pytest.mark.parametrize("beam_size", [0, 2])
def test_what_never_ends_stops_at_its_limit(beam_size):
    table = jnp.full((2, VOCAB, VOCAB, VOCAB), -1e9).at[..., 3].set(0.0)
    found = search(table, [3, 0], 6, beam_size)
    assert words(found, 0) == (3, 3, 3)
    assert not found.ended[0, 0]
    assert float(found.score[0, 0]) == pytest.approx(0)
    assert words(found, 1) == ()


def test_early_stopping_waits_for_a_longer_and_better_hypothesis():
    """EOS at once has probability 1/2; so has 3 3 4 4 EOS, which its length makes the better one."""
    table = np.full((1, VOCAB, VOCAB, VOCAB), -1e9)
    table[0, :, BOS, [EOS, 3]] = np.log([0.5, 0.5])[:, None]
    for before, last, following in ((BOS, 3, 3), (3, 3, 4), (3, 4, 4), (4, 4, EOS)):
        table[0, before, last, following] = 0
    found = search(jnp.float32(table), [10], 10, beam_size=2, alpha=1.0)
    assert words(found, 0) == (3, 3, 4, 4, EOS)
    assert float(found.score[0, 0]) == pytest.approx(np.log(0.5) / (10 / 6), rel=1e-5)


def test_length_penalty_is_that_of_wu_et_al():
    assert float(wu_penalty(1, 0.6)) == pytest.approx(1)
    assert float(wu_penalty(7, 0.6)) == pytest.approx(2**0.6)
    assert float(wu_penalty(7, 0.0)) == pytest.approx(1)
    assert float(length_penalty(8, 0.5)) == pytest.approx(8**0.5)


@pytest.mark.parametrize("pieces", [5, 64, 200, 1_000])
@pytest.mark.parametrize("k", [1, 3, 4])
def test_the_best_pieces_are_those_of_a_full_sort(pieces, k):
    """Of few different values, so that many are equal, and some impossible."""
    drawn = np.random.default_rng(k).integers(-9, 0, (7, 2, pieces))
    logits = jnp.where(drawn < -2, IMPOSSIBLE, jnp.float32(drawn))
    values, places = top_k(logits, k)
    expected, first = jax.lax.top_k(logits, k)
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(places, first)
