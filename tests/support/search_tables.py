"""Searches over tables of logits in place of a model. Tests with equal shapes share one compiled program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from transformer.config import BOS, PAD
from transformer.decoding.length_penalty import power_penalty, wu_penalty
from transformer.decoding.sampling import Sampler
from transformer.decoding.search import (
    BeamSearch,
    Constraints,
    IndependentSearch,
    SearchResult,
    advance,
    cache_sizes,
)

VOCAB = 5  # PAD, BOS, EOS and the words 3 and 4
NUM_ROWS, LENGTH = 6, 10  # for every search, unless a test compares lengths


def run(search, step, model_state, constraints, length, resize_cache=lambda model_state, length: model_state):
    """Searches until every sentence is finished; `resize_cache` enlarges the caches in a model's state."""
    state = search.init(model_state, constraints, length)
    for size in cache_sizes(length):
        state = state._replace(model_state=resize_cache(state.model_state, size))
        state = advance(search, step, constraints, state, size)
    return search.result(constraints, state)


def table_step(table):
    """A step function that reads logits from a table [b, v, v, v], given the row and the last two tokens.

    The state is the second-to-last token of each hypothesis, so that wrong parents change the logits.
    """

    def step(tokens, parents, state, index):
        rows = jnp.arange(tokens.shape[0])[:, None]
        return table[rows, jnp.take_along_axis(state, parents, axis=1), tokens], tokens

    return step


def random_table(seed, num_rows=3):
    """Random logits in which PAD and BOS are never predicted."""
    logits = np.random.default_rng(seed).normal(scale=2, size=(num_rows, VOCAB, VOCAB, VOCAB))
    logits[..., [PAD, BOS]] = -1e9
    return np.float32(logits)


def log_probs(table, row):
    """Log-probabilities [v, v, v] of a row in float64."""
    logits = np.float64(table[row])
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def search(
    table, limits, beam_size, *, alpha=0.6, penalty="wu", min_length=1, prefixes=(), n_best=1, length=LENGTH
) -> SearchResult:
    """Beam search over a table; a beam size of 0 is greedy search, which has one output."""
    n_best = n_best if beam_size else 1
    table, constraints, num_rows = _padded(table, limits, min_length, prefixes, length)
    result = _search(table, constraints, alpha, penalty == "wu", beam_size, n_best, length)
    return jax.tree.map(lambda x: np.asarray(x)[:num_rows], result)


def sample(table, limits, *, seed=0, temperature=1.0, k=None, p=1.0) -> SearchResult:
    """Three samples per row of a table, and their scores without a length penalty."""
    table, constraints, num_rows = _padded(table, limits, 1, (), LENGTH)
    result = _sample(table, constraints, jax.random.key(seed), temperature, p, k)
    return jax.tree.map(lambda x: np.asarray(x)[:num_rows], result)


def words(result, row, hypothesis=0):
    """The tokens of an output, including EOS."""
    tokens = result.tokens[row, hypothesis].tolist()
    return tuple(tokens[: tokens.index(PAD)] if PAD in tokens else tokens)


def _padded(table, limits, min_length, prefixes, length):
    num_rows = len(limits)
    table = np.pad(table, ((0, NUM_ROWS - num_rows), *[(0, 0)] * 3))
    limits = np.pad(np.int32(limits), (0, NUM_ROWS - num_rows))
    prefix = np.full((NUM_ROWS, length), PAD, np.int32)
    for row, tokens in enumerate(prefixes):
        prefix[row, : len(tokens)] = tokens
    return jnp.asarray(table), Constraints(jnp.asarray(limits), jnp.int32(min_length), prefix), num_rows


@functools.partial(jax.jit, static_argnames=("beam_size", "n_best", "length"))
def _search(table, constraints, alpha, is_wu, beam_size, n_best, length):
    def penalty(num_tokens):
        return jnp.where(is_wu, wu_penalty(num_tokens, alpha), power_penalty(num_tokens, alpha))

    method = BeamSearch(beam_size, penalty, n_best) if beam_size else IndependentSearch(penalty=penalty)
    state = jnp.zeros((NUM_ROWS, max(beam_size, 1)), jnp.int32)
    return run(method, table_step(table), state, constraints, length)


@functools.partial(jax.jit, static_argnames="k")
def _sample(table, constraints, key, temperature, p, k):
    method = IndependentSearch(3, choose_token=Sampler(key, jnp.arange(NUM_ROWS), temperature, k, p))
    state = jnp.zeros((NUM_ROWS, 3), jnp.int32)
    return run(method, table_step(table), state, constraints, LENGTH)
