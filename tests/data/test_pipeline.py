"""Training batches: they follow the plan, are divided among processes, and are served from any step."""

import jax
import numpy as np
import pytest

from transformer.data.bucketing import BucketedPlan
from transformer.data.corpus import Corpus
from transformer.data.packing import PackedPlan
from transformer.data.pipeline import TrainingBatches, serve

EACH_PLAN = pytest.mark.parametrize("plan", [PackedPlan, BucketedPlan], indirect=True)


@pytest.fixture(scope="module")
def training(number_words):
    return Corpus(number_words).split("train")


@pytest.fixture(scope="module")
def plan(request, training):
    return request.param(training.source.lengths, training.target.lengths, 64, 256, seed=0)


def batches_of(training, plan, **process):
    """The batches of one epoch and of the first step after it."""
    return TrainingBatches(training, plan, plan.steps_per_epoch + 1, **process)


def assert_equal(batch, expected):
    jax.tree.map(np.testing.assert_array_equal, batch, expected)


@EACH_PLAN
def test_a_batch_has_the_shape_and_the_pairs_of_the_plan(training, plan):
    batches = batches_of(training, plan)
    for step in range(len(batches)):
        num_rows, *lengths = plan.shape(step)
        sides = batches[step].source, batches[step].target
        assert [side.tokens.shape for side in sides] == [(num_rows, length) for length in lengths]
        for side in sides:
            for row, pairs in enumerate(plan.rows(step)):
                assert set(side.segment_ids[row]) - {0} == set(pairs + 1)


@EACH_PLAN
@pytest.mark.parametrize("first", [0, 3])
def test_serving_from_a_step_skips_the_earlier_steps(training, plan, first):
    batches = batches_of(training, plan)
    served = list(serve(batches, first, workers=0))
    assert len(served) == len(batches) - first
    for step, batch in enumerate(served, start=first):
        assert_equal(batch, batches[step])


@EACH_PLAN
@pytest.mark.slow
def test_worker_processes_serve_the_same_batches(training, plan):
    batches = batches_of(training, plan)
    served = list(serve(batches, 2, workers=2))
    assert len(served) == len(batches) - 2
    for step, batch in enumerate(served, start=2):
        assert_equal(batch, batches[step])


@pytest.mark.parametrize("plan", [PackedPlan], indirect=True)
def test_nothing_is_served_after_the_last_step(training, plan):
    batches = batches_of(training, plan)
    assert list(serve(batches, len(batches), workers=0)) == []


@EACH_PLAN
def test_processes_divide_a_batch_without_overlap(training, plan):
    whole = batches_of(training, plan)[1].source.segment_ids
    shares = [
        batches_of(training, plan, process_index=index, process_count=3)[1].source.segment_ids
        for index in range(3)
    ]
    assert {len(share) for share in shares} == {-(-len(whole) // 3)}
    together = np.concatenate(shares)
    assert sorted(map(tuple, together[together.any(axis=1)])) == sorted(map(tuple, whole[whole.any(axis=1)]))
