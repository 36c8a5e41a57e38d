"""Settled sentences are dropped on the way, and no translation is another for it."""

import functools

import jax
import numpy as np
import pytest

from tests.tiny import tiny_config
from transformer.config import DecodeConfig
from transformer.decoding import shrinking
from transformer.decoding.shrinking import ModelSearch, ShrinkingSearch
from transformer.model import build, init_params
from transformer.model.ensemble import ensemble

VOCAB, ROWS, LENGTH = 24, 32, 36
SEARCHES = {
    "beam": DecodeConfig(beam_size=4),
    "greedy": DecodeConfig(beam_size=1),
    "drawn": DecodeConfig(sampling=True, temperature=2.0),
}


@functools.cache
def weighted(**changes):
    """A model and its weights."""
    model = build(tiny_config(**changes), VOCAB)
    return model, init_params(model, seed=3)


def both():
    """An ensemble of two kinds."""
    return ensemble(*map(list, zip(weighted(), weighted(kind="recurrent_attention"), strict=True)))


@pytest.fixture
def sizes(monkeypatch):
    """How many sentences are dropped to, each time."""
    seen, chosen = [], shrinking._chosen
    monkeypatch.setattr(
        shrinking, "_chosen", lambda rows, which: (seen.append(len(which)), chosen(rows, which))[1]
    )
    return seen


def arguments():
    """Sentences of which half end by their limits at different times, the others late; padding rows."""
    rng = np.random.default_rng(0)
    source = rng.integers(4, VOCAB, (ROWS, 9)).astype(np.int32)
    limits = rng.integers(2, LENGTH + 1, ROWS).astype(np.int32)
    source[-3:], limits[-3:] = 0, 0
    return source, limits


@pytest.mark.parametrize(
    ("model", "kind"),
    [*[(weighted, kind) for kind in SEARCHES], (both, "beam")],
)
def test_fewer_and_fewer_rows_find_what_one_program_finds(sizes, model, kind, monkeypatch):
    """At sizes down to very few, where rounding may differ."""
    monkeypatch.setattr(shrinking, "FEWEST", 1)
    (model, params), config = model(), SEARCHES[kind]
    n_best = 1 if kind == "greedy" else 2
    (source, limits), prefix = arguments(), np.full((ROWS, 2), 0, np.int32)
    prefix[limits > 4, 0] = np.arange(ROWS)[limits > 4] % 20 + 4  # each row its own
    given = {"prefix": prefix, "sentences": np.arange(ROWS)[::-1] * 7}
    whole = jax.jit(ModelSearch(model, config, n_best), static_argnames="length")
    one = jax.device_get(whole(params, source, limits, length=LENGTH, **given))
    other = ShrinkingSearch(model, config, n_best)(params, source, limits, length=LENGTH, **given)
    assert sizes[0] == ROWS // 2
    assert sizes[-1] <= 2
    np.testing.assert_array_equal(other.tokens, one.tokens)
    np.testing.assert_array_equal(other.ended, one.ended)
    np.testing.assert_allclose(other.score, one.score, rtol=1e-5)


def test_neighbours_change_no_bit(sizes):
    """At the sizes that it is shrunk to by itself: a sentence among ones that end early, and late ones."""
    (model, params), (source, _) = weighted(), arguments()
    search, found = ShrinkingSearch(model, SEARCHES["beam"]), []
    for others in (3, LENGTH):
        limits = np.full(ROWS, others, np.int32)
        limits[::4] = LENGTH
        found.append(search(params, source, limits, length=LENGTH))
    assert sizes == [ROWS // 2]
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one[::4], other[::4])
