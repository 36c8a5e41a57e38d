"""Batches: what is in them, that any process finds its share, and that serving can begin anywhere."""

import jax
import numpy as np
import pytest

from transformer.data.corpus import Corpus, Side, Split
from transformer.data.pipeline import TrainingBatches, assemble, evaluation_batches, serve
from transformer.data.plan import BucketedPlan, PackedPlan


def side(*sentences):
    return Side(np.concatenate(sentences), np.cumsum([0, *map(len, sentences)]))


@pytest.fixture
def split():
    return Split(
        source=side([5, 6, 2], [7, 2], [8, 9, 10, 2]),
        target=side([11, 2], [12, 13, 2], [14, 2]),
        characters=np.array([3, 5, 7]),
    )


def test_assemble_writes_examples_one_after_the_other(split):
    batch = assemble(split, [np.array([2, 1]), np.array([0])], num_rows=3, source_length=7, target_length=5)
    np.testing.assert_array_equal(
        batch.source.tokens, [[8, 9, 10, 2, 7, 2, 0], [5, 6, 2, 0, 0, 0, 0], [0] * 7]
    )
    np.testing.assert_array_equal(
        batch.source.segments, [[3, 3, 3, 3, 2, 2, 0], [1, 1, 1, 0, 0, 0, 0], [0] * 7]
    )
    np.testing.assert_array_equal(
        batch.source.positions, [[0, 1, 2, 3, 0, 1, 0], [0, 1, 2, 0, 0, 0, 0], [0] * 7]
    )
    np.testing.assert_array_equal(batch.target.tokens, [[14, 2, 12, 13, 2], [11, 2, 0, 0, 0], [0] * 5])
    np.testing.assert_array_equal(batch.target.segments, [[3, 3, 2, 2, 2], [1, 1, 0, 0, 0], [0] * 5])
    np.testing.assert_array_equal(batch.characters, [12, 3, 0])


def test_evaluation_shows_every_pair_once(split):
    shown = np.concatenate([batch.target.segments[:, 0] for batch in evaluation_batches(split, 32)])
    assert sorted(shown[shown > 0]) == [1, 2, 3]


@pytest.fixture(scope="module")
def training(number_words):
    return Corpus(number_words).split("train")


BOTH = pytest.mark.parametrize("kind", [PackedPlan, BucketedPlan])


def plan(training, kind):
    return kind(training.source.lengths, training.target.lengths, 64, 128, seed=0)


def batches(training, kind=PackedPlan, **kwargs):
    one = plan(training, kind)
    return TrainingBatches(training, one, steps=2 * one.steps_per_epoch, **kwargs)


def assert_equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@BOTH
def test_a_batch_has_the_shape_and_the_examples_that_the_plan_says(training, kind):
    one, served = plan(training, kind), batches(training, kind)
    for step in range(len(served)):
        num_rows, *lengths = one.shape(step)
        sides = served[step].source, served[step].target
        assert [side.tokens.shape for side in sides] == [(num_rows, length) for length in lengths]
        for side in sides:
            for row, examples in enumerate(one.rows(step)):
                assert set(side.segments[row]) - {0} == set(examples + 1)


@BOTH
@pytest.mark.parametrize("first", [0, 3])
def test_serving_from_a_step_equals_having_served_up_to_it(training, kind, first):
    source = batches(training, kind)
    served = list(serve(source, first, workers=0))
    assert len(served) == len(source) - first
    for step, batch in enumerate(served, start=first):
        assert_equal(batch, source[step])


@BOTH
@pytest.mark.slow
def test_worker_processes_serve_the_same(training, kind):
    source = batches(training, kind)
    for step, batch in enumerate(serve(source, 2, workers=2), start=2):
        assert_equal(batch, source[step])


def test_nothing_is_served_after_the_last_step(training):
    source = batches(training)
    assert list(serve(source, len(source), workers=0)) == []


@BOTH
def test_processes_share_a_batch_without_overlap(training, kind):
    whole = batches(training, kind)[1].source.segments
    shares = [batches(training, kind, process=one, processes=3)[1].source.segments for one in range(3)]
    assert {len(share) for share in shares} == {-(-len(whole) // 3)}
    together = np.concatenate(shares)
    assert sorted(map(tuple, together[together.any(axis=1)])) == sorted(map(tuple, whole[whole.any(axis=1)]))
