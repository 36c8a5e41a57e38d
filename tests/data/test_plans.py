"""Training plans: an epoch shows every pair once, pairs fit their rows, and the order is reproducible."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer.data.bucketing import MAX_SHAPES, BucketedPlan
from transformer.data.packing import OpenRows, PackedPlan, PackedRow
from transformer.data.plan import Plan

LENGTHS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=200)
EACH_PLAN = pytest.mark.parametrize("plan_type", [PackedPlan, BucketedPlan])


def make_plan(plan_type, lengths, row_length=30, batch_tokens=90, seed=0):
    source, target = np.array(lengths).T
    return plan_type(source, target, row_length, batch_tokens, seed)


def steps_of(plan, epoch=0):
    return range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)


def rows_of(plan, epoch=0):
    return [plan.rows(step) for step in steps_of(plan, epoch)]


def order_of(plan, epoch=0):
    """The pairs of an epoch, in the order in which they are shown."""
    return [int(pair) for batch in rows_of(plan, epoch) for row in batch for pair in row]


def tokens_per_step(plan, lengths):
    """The number of target tokens in each step of an epoch."""
    return [lengths[np.concatenate(batch), 1].sum() for batch in rows_of(plan)]


def share_of_tokens(plan, lengths):
    """The fraction of an epoch's source arrays, and of its target arrays, that is not padding."""
    shapes = np.array([plan.shape(step) for step in steps_of(plan)])
    return lengths.sum(axis=0) / (shapes[:, :1] * shapes[:, 1:]).sum(axis=0)


@EACH_PLAN
@settings(deadline=None, max_examples=50)
@given(lengths=LENGTHS, seed=st.integers(0, 3))
def test_an_epoch_shows_every_pair_that_fits_exactly_once(plan_type, lengths, seed):
    fitting = [number for number, pair in enumerate(lengths) if max(pair) <= 30]
    if not fitting:
        with pytest.raises(ValueError, match="no pair fits into a row"):
            make_plan(plan_type, lengths)
        return
    plan = make_plan(plan_type, lengths, seed=seed)
    assert isinstance(plan, Plan)
    assert plan.dropped == len(lengths) - len(fitting)
    assert plan.max_lengths == tuple(np.array(lengths)[fitting].max(axis=0))
    for epoch in range(2):
        assert sorted(order_of(plan, epoch)) == fitting
        for step in steps_of(plan, epoch):
            num_rows, source_length, target_length = plan.shape(step)
            assert 0 < len(plan.rows(step)) <= num_rows
            for row in plan.rows(step):
                source, target = np.array(lengths)[row].sum(axis=0)
                assert source <= source_length <= 30
                assert target <= target_length <= 30


@settings(deadline=None, max_examples=50)
@given(LENGTHS, st.integers(1, 500))
def test_a_bucket_is_as_long_as_its_longest_pair_and_its_batches_have_equal_sizes(lengths, batch_tokens):
    lengths = np.minimum(lengths, 30)
    plan = make_plan(BucketedPlan, lengths, batch_tokens=batch_tokens)
    longest = {}
    for step in steps_of(plan):
        shape, rows = plan.shape(step), plan.rows(step)
        assert {len(row) for row in rows} == {1}
        assert shape[0] - 1 <= len(rows) <= shape[0]
        longest[shape] = np.maximum(longest.get(shape, 0), lengths[np.concatenate(rows)].max(axis=0))
    assert len(longest) <= MAX_SHAPES
    assert all(shape[1:] == tuple(sides) for shape, sides in longest.items())


def realistic_lengths(count, sigma=0.4):
    rng = np.random.default_rng(0)
    source = np.clip(rng.lognormal(2.6, sigma, count), 2, 60).astype(int)
    return np.stack([source, np.clip(source + rng.integers(-3, 4, count), 2, 60)], axis=1)


def test_packed_rows_are_nearly_full_and_batches_have_the_given_number_of_tokens():
    lengths = realistic_lengths(5_000)
    plan = make_plan(PackedPlan, lengths, row_length=64, batch_tokens=2_048)
    assert min(share_of_tokens(plan, lengths)) > 0.93
    assert np.mean(tokens_per_step(plan, lengths)) == pytest.approx(2_048, rel=0.03)
    assert min(tokens_per_step(plan, lengths)) > 0.8 * 2_048


@pytest.mark.parametrize("scale", [[1, 1], [2, 1], [1, 2]])
@pytest.mark.parametrize("sigma", [0.4, 0.5])
def test_buckets_have_little_padding_and_every_step_has_the_given_number_of_tokens(scale, sigma):
    lengths = realistic_lengths(10_000, sigma) * scale
    plan = make_plan(BucketedPlan, lengths, row_length=128, batch_tokens=2_048)
    assert len({plan.shape(step) for step in steps_of(plan)}) == MAX_SHAPES
    assert min(share_of_tokens(plan, lengths)) > 0.79
    tokens = tokens_per_step(plan, lengths)
    assert np.mean(tokens) == pytest.approx(2_048, rel=0.01)
    # Token counts vary at random between the batches of a bucket, by about 2 percent.
    assert 0.9 * 2_048 < min(tokens) < max(tokens) < 1.1 * 2_048


def test_a_few_long_pairs_share_a_batch_with_shorter_pairs():
    lengths = np.array([[10, 10]] * 1_000 + [[60, 60]] * 3)
    plan = make_plan(BucketedPlan, lengths, row_length=64, batch_tokens=500)
    assert min(tokens_per_step(plan, lengths)) > 0.9 * 500


def test_the_shorter_language_has_shorter_rows():
    plan = make_plan(PackedPlan, realistic_lengths(1_000) * [2, 1], row_length=128)
    assert plan.source_length == 128
    assert plan.target_length < 80


@EACH_PLAN
def test_seed_and_epoch_determine_the_order(plan_type):
    lengths = realistic_lengths(300)
    first, again, different = (make_plan(plan_type, lengths, 64, seed=seed) for seed in (0, 0, 1))
    assert order_of(first, 1) == order_of(again, 1)
    assert len({tuple(order_of(plan, epoch)) for plan in (first, different) for epoch in range(2)}) == 4


def test_an_epoch_shuffles_the_pairs_of_a_bucket_and_the_batches():
    plan = make_plan(BucketedPlan, realistic_lengths(300), 64)
    first, second = (
        {frozenset(np.concatenate(batch)) for batch in rows_of(plan, epoch)} for epoch in range(2)
    )
    assert len(first & second) < plan.steps_per_epoch / 4
    shapes = [[plan.shape(step) for step in steps_of(plan, epoch)] for epoch in range(2)]
    assert shapes[0] != shapes[1]
    assert sorted(shapes[0]) == sorted(shapes[1])


@EACH_PLAN
def test_a_step_does_not_depend_on_the_steps_computed_before(plan_type):
    lengths = realistic_lengths(300)
    used, fresh = make_plan(plan_type, lengths, 64), make_plan(plan_type, lengths, 64)
    last = 3 * used.steps_per_epoch + 1
    for step in range(last):
        used.rows(step)
    assert used.shape(last) == fresh.shape(last)
    for row, expected in zip(used.rows(last), fresh.rows(last), strict=True):
        np.testing.assert_array_equal(row, expected)


def test_the_summary_gives_the_shapes():
    lengths = np.array([[8, 4]] * 30 + [[3, 2]] * 60)
    packed, bucketed = (make_plan(plan_type, lengths, 16, 40) for plan_type in (PackedPlan, BucketedPlan))
    assert packed.summary == "4 rows of 16 source and 10 target tokens per step"
    assert bucketed.summary == "10 to 20 rows of 2 to 8 tokens per step (shapes: 2)"


# The pairs in each row of each step, in the second epoch of a plan for eight pairs.
FROZEN = {
    PackedPlan: [[[4]], [[2, 5], [1]], [[6, 0], [7, 3]]],
    BucketedPlan: [[[7], [0], [3], [2], [5]], [[6], [4], [1]]],
}


@EACH_PLAN
def test_plans_do_not_change_between_versions(plan_type):
    """A changed plan would change every result. A resumed run would see some pairs twice and others never."""
    lengths = [[3, 4], [9, 8], [5, 5], [2, 2], [7, 9], [4, 3], [6, 6], [2, 3]]
    plan = make_plan(plan_type, lengths, row_length=10, batch_tokens=20, seed=3)
    assert [[row.tolist() for row in batch] for batch in rows_of(plan, epoch=1)] == FROZEN[plan_type]


def test_a_pair_goes_where_it_leaves_the_least_space():
    """The reference searches all rows: least relative space first, then least space on the source side."""
    rng, capacity = np.random.default_rng(0), (12, 9)
    for _ in range(50):
        open_rows, spaces = OpenRows(capacity), []
        for kind in range(100):
            space = (int(rng.integers(0, 13)), int(rng.integers(0, 10)))
            open_rows.add(PackedRow([kind], 1), *space)
            spaces.append(space)
        pair = (int(rng.integers(1, 6)), int(rng.integers(1, 6)))
        while fitting := [space for space in spaces if space[0] >= pair[0] and space[1] >= pair[1]]:
            best = min(fitting, key=lambda space: (space[0] / 12 + space[1] / 9, space))
            rows, *left = open_rows.pop_best(*pair)
            assert left == [best[0] - pair[0], best[1] - pair[1]]
            assert rows.count == 1
            spaces.remove(best)
        assert open_rows.pop_best(*pair) is None


def test_long_rows_are_packed_in_seconds():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 60, (2, 2_000))
    started = time.perf_counter()
    plan = PackedPlan(*lengths, row_length=2_048, batch_tokens=8_192, seed=0)
    assert time.perf_counter() - started < 10  # a search over all spaces took over a minute
    assert sum(len(pairs) for step in range(plan.steps_per_epoch) for pairs in plan.rows(step)) == 2_000
