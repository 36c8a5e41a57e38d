"""A search with a model drops finished sentences, which changes no output."""

import functools

import jax
import numpy as np
import pytest

from tests.support.tiny import tiny_config
from tests.support.translators import VOCAB_SIZE, model_and_params
from transformer.config import DecodeConfig, UserError
from transformer.decoding import model_search
from transformer.decoding.model_search import ModelSearch, ShrinkingSearch
from transformer.model import TEXT_KINDS, build_model, parameter_shapes
from transformer.model.ensemble import ensemble
from transformer.training.parallelism import Mesh


@pytest.fixture
def row_counts(monkeypatch):
    """The number of rows that remain, recorded each time that a search drops rows."""
    counts, select_rows = [], model_search.select_rows

    def recording(rows, indices):
        counts.append(len(indices))
        return select_rows(rows, indices)

    monkeypatch.setattr(model_search, "select_rows", recording)
    return counts


def random_sources(num_rows):
    return np.random.default_rng(0).integers(4, VOCAB_SIZE, (num_rows, 9)).astype(np.int32)


@pytest.mark.parametrize(
    ("config", "length"),
    [
        pytest.param(DecodeConfig(beam_size=4), 24, id="beam search"),  # the cache grows from 16 to 24 tokens
        pytest.param(DecodeConfig(sampling=True, temperature=2.0), 16, id="sampling", marks=pytest.mark.slow),
    ],
)
def test_shrinking_search_equals_search_in_one_program(row_counts, config, length):
    """Rows end at different steps because their limits differ; two rows are padding.

    Each row has its own prefix and sentence id.
    """
    (model, params), source = model_and_params(), random_sources(8)
    limits = np.array([3, length, 5, length - 4, 9, length, 0, 0], np.int32)
    source[-2:] = 0
    prefix = np.zeros((8, 2), np.int32)
    prefix[:6, 0] = np.arange(6) + 4
    arguments = (params, source, limits, length, prefix, np.arange(8, dtype=np.int32)[::-1] * 7)
    search = ModelSearch(model, config, n_best=2)

    expected = jax.jit(search, static_argnums=3)(*arguments)
    # This minimum lets the search shrink to 2 rows. Scores of 2 rows may be rounded differently.
    result = ShrinkingSearch(search, min_hypotheses=2 * search.num_hypotheses)(*arguments)

    assert row_counts == [4, 2]
    np.testing.assert_array_equal(result.tokens, expected.tokens)
    np.testing.assert_array_equal(result.ended, expected.ended)
    np.testing.assert_allclose(result.score, expected.score, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [DecodeConfig(beam_size=4), DecodeConfig(sampling=True, seed=3)],
    ids=["beam search", "sampling"],
)
def test_a_search_over_several_devices_equals_one_on_a_device(row_counts, config):
    """The 19 sentences are padded to 20 rows, 5 per device; an odd number of rows cannot be halved."""
    (model, params), source, length = model_and_params(), random_sources(19), 24
    limits = np.full(19, 3, np.int32)
    limits[::4] = length
    mesh = Mesh(devices=jax.devices()[:4]).mesh
    search = ModelSearch(model, config, n_best=2)
    expected = ShrinkingSearch(search)(params, source, limits, length)
    for num_sentences, counts in ((19, []), (16, [4])):
        result = ShrinkingSearch(search, min_hypotheses=2, mesh=mesh)(
            params, source[:num_sentences], limits[:num_sentences], length
        )
        assert row_counts == counts
        np.testing.assert_array_equal(result.tokens, expected.tokens[:num_sentences])
        # On CPU, products of other numbers of rows are rounded differently.
        np.testing.assert_allclose(result.score, expected.score[:num_sentences], rtol=1e-4)


@pytest.mark.parametrize("kind", [*TEXT_KINDS, "ensemble"])
def test_every_array_of_a_search_has_a_row_per_sentence(kind):
    """A search relies on this when it drops sentences. The only exception is the step, `state.index`."""
    names = TEXT_KINDS if kind == "ensemble" else [kind]
    models = [build_model(tiny_config(num_layers=1, kind=name), VOCAB_SIZE) for name in names]
    params = [parameter_shapes(model) for model in models]
    model, params = ensemble(models, params) if kind == "ensemble" else (models[0], params[0])
    search = ModelSearch(model, DecodeConfig(beam_size=4))
    rows = jax.eval_shape(
        functools.partial(search.start, length=24), params, random_sources(5), np.ones(5, np.int32)
    )
    assert {x.shape[:1] for x in jax.tree.leaves(rows) if x is not rows.state.index} == {(5,)}


def test_outputs_do_not_depend_on_neighboring_sentences(row_counts):
    """The neighbors end early in one search and late in the other. `min_hypotheses` has its default."""
    (model, params), source = model_and_params(), random_sources(32)
    length = 16
    search, results = ShrinkingSearch(ModelSearch(model, DecodeConfig(beam_size=4))), []
    for neighbor_limit in (3, length):
        limits = np.full(32, neighbor_limit, np.int32)
        limits[::4] = length
        results.append(search(params, source, limits, length))
    assert row_counts == [16]
    for early, late in zip(*results, strict=True):
        np.testing.assert_array_equal(early[::4], late[::4])


def test_impossible_search_settings_are_refused():
    model = build_model(tiny_config(positions="learned", max_positions=12), VOCAB_SIZE)
    for config, n_best, message in [
        (DecodeConfig(penalty="none"), 1, "decode.penalty is 'none'; it must be one of: length, wu"),
        (DecodeConfig(), 0, "the number of outputs per sentence is 0; it must be at least 1"),
        (DecodeConfig(beam_size=3), 4, "decode.beam_size is 3; it must be at least 4, the number of outputs"),
        (DecodeConfig(min_output_length=13), 1, "decode.min_output_length is 13; it must be at most 12, the"),
    ]:
        with pytest.raises(UserError, match=message):
            ModelSearch(model, config, n_best)
