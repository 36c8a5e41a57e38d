"""The epoch plan: nothing lost, nothing twice, nothing too long, the same again for the same seed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer.data.plan import SHAPES, BucketedPlan, PackedPlan, Plan, bucket, buckets

LENGTHS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=200)
BOTH = pytest.mark.parametrize("kind", [PackedPlan, BucketedPlan])


def plan(kind, lengths, row_length=30, batch_tokens=90, seed=0):
    source, target = np.array(lengths).T
    return kind(source, target, row_length, batch_tokens, seed)


def steps(one, number=0):
    return range(number * one.steps_per_epoch, (number + 1) * one.steps_per_epoch)


def epoch(one, number=0):
    return [one.rows(step) for step in steps(one, number)]


def tokens(one, lengths):
    """Target pieces of each step of an epoch."""
    return [lengths[np.concatenate(batch), 1].sum() for batch in epoch(one)]


def fill(one, lengths):
    """The shares of an epoch's source and target slots that hold a piece."""
    shapes = np.array([one.shape(step) for step in steps(one)])
    return lengths.sum(axis=0) / (shapes[:, :1] * shapes[:, 1:]).sum(axis=0)


@BOTH
@settings(deadline=None, max_examples=100)
@given(lengths=LENGTHS, seed=st.integers(0, 3))
def test_an_epoch_shows_each_pair_that_fits_once(kind, lengths, seed):
    fitting = [number for number, pair in enumerate(lengths) if max(pair) <= 30]
    if not fitting:
        with pytest.raises(ValueError, match="no pair fits into rows of 30 pieces"):
            plan(kind, lengths)
        return
    one = plan(kind, lengths, seed=seed)
    assert isinstance(one, Plan)
    assert one.dropped == len(lengths) - len(fitting)
    assert one.longest == tuple(map(max, zip(*(lengths[number] for number in fitting), strict=True)))
    for number in range(2):
        shown = [example for batch in epoch(one, number) for row in batch for example in row]
        assert sorted(shown) == fitting
        for step in steps(one, number):
            num_rows, source_length, target_length = one.shape(step)
            assert 0 < len(one.rows(step)) <= num_rows
            for row in one.rows(step):
                source, target = np.array(lengths)[row].sum(axis=0)
                assert source <= source_length <= 30
                assert target <= target_length <= 30


@settings(deadline=None, max_examples=100)
@given(LENGTHS, st.integers(1, 500))
def test_a_bucket_is_as_long_as_its_longest_and_its_batches_are_equally_full(lengths, batch_tokens):
    lengths = np.minimum(lengths, 30)
    one = plan(BucketedPlan, lengths, batch_tokens=batch_tokens)
    longest = {}
    for step in steps(one):
        shape, rows = one.shape(step), one.rows(step)
        assert {len(row) for row in rows} == {1}
        assert shape[0] - 1 <= len(rows) <= shape[0]
        longest[shape] = np.maximum(longest.get(shape, 0), lengths[np.concatenate(rows)].max(axis=0))
    assert len(longest) <= SHAPES
    assert all(shape[1:] == tuple(sides) for shape, sides in longest.items())


def normal_lengths(count, seed=0, sigma=0.4):
    rng = np.random.default_rng(seed)
    source = np.clip(rng.lognormal(2.6, sigma, count), 2, 60).astype(int)
    return np.stack([source, np.clip(source + rng.integers(-3, 4, count), 2, 60)], axis=1)


def test_rows_are_nearly_full_and_batches_hold_what_was_asked_for():
    lengths = normal_lengths(5_000)
    one = plan(PackedPlan, lengths, row_length=64, batch_tokens=2_048)
    assert min(fill(one, lengths)) > 0.93
    assert np.mean(tokens(one, lengths)) == pytest.approx(2_048, rel=0.03)
    assert min(tokens(one, lengths)) > 0.8 * 2_048


@pytest.mark.parametrize("scale", [[1, 1], [2, 1], [1, 2]])
@pytest.mark.parametrize("sigma", [0.4, 0.5])
def test_buckets_waste_little_and_every_step_holds_what_was_asked_for(scale, sigma):
    lengths = normal_lengths(10_000, sigma=sigma) * scale
    one = plan(BucketedPlan, lengths, row_length=128, batch_tokens=2_048)
    assert len({one.shape(step) for step in steps(one)}) == SHAPES
    assert min(fill(one, lengths)) > 0.79
    assert np.mean(tokens(one, lengths)) == pytest.approx(2_048, rel=0.01)
    # Examples of a bucket differ in length by chance alone: some 2 per cent of a batch.
    assert 0.9 * 2_048 < min(tokens(one, lengths)) < max(tokens(one, lengths)) < 1.1 * 2_048


def test_a_few_long_pairs_get_no_batch_of_their_own():
    lengths = np.array([[10, 10]] * 1_000 + [[60, 60]] * 3)
    one = plan(BucketedPlan, lengths, row_length=64, batch_tokens=500)
    assert min(tokens(one, lengths)) > 0.9 * 500


def test_the_shorter_language_gets_shorter_rows():
    lengths = normal_lengths(1_000) * [2, 1]
    one = plan(PackedPlan, lengths, row_length=128)
    assert one.source_length == 128
    assert one.target_length < 80


@BOTH
def test_order_depends_on_seed_and_epoch_alone(kind):
    lengths = normal_lengths(300)

    def order(seed, number):
        return [
            example
            for batch in epoch(plan(kind, lengths, 64, seed=seed), number)
            for row in batch
            for example in row
        ]

    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(seed, number)) for seed in range(2) for number in range(2)}) == 4


def test_an_epoch_deals_the_examples_of_a_bucket_anew_and_shuffles_its_batches():
    one = plan(BucketedPlan, normal_lengths(300), 64)
    together = [{frozenset(np.concatenate(batch)) for batch in epoch(one, number)} for number in range(2)]
    assert len(together[0] & together[1]) < one.steps_per_epoch / 4
    shapes = [[one.shape(step) for step in steps(one, number)] for number in range(2)]
    assert shapes[0] != shapes[1]
    assert sorted(shapes[0]) == sorted(shapes[1])


@BOTH
def test_any_step_is_known_without_the_ones_before(kind):
    lengths = normal_lengths(300)
    one, other = plan(kind, lengths, 64), plan(kind, lengths, 64)
    last = 3 * one.steps_per_epoch + 1
    for step in range(last):
        one.rows(step)
    assert one.shape(last) == other.shape(last)
    for ours, theirs in zip(one.rows(last), other.rows(last), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_summary():
    lengths = np.array([[8, 4]] * 30 + [[3, 2]] * 60)
    assert plan(PackedPlan, lengths, 16, 40).summary == "4 rows of 16 and 10 pieces a step"
    assert plan(BucketedPlan, lengths, 16, 40).summary == "10 to 20 rows of 2 to 8 pieces a step (shapes: 2)"


@given(st.lists(st.integers(1, 700), max_size=60), st.integers(1, 500))
def test_buckets_leave_nothing_out(lengths, batch_tokens):
    shapes, seen = {}, []
    for examples, length, rows in buckets(np.array(lengths, int), batch_tokens):
        assert len(examples) <= rows
        assert rows == 1 or rows * length <= batch_tokens
        assert all(lengths[example] <= length for example in examples)
        assert shapes.setdefault(length, rows) == rows
        seen += list(examples)
    assert sorted(seen) == list(range(len(lengths)))


def test_bucket():
    assert [bucket(length) for length in (1, 16, 17, 32, 33, 300)] == [16, 16, 32, 32, 64, 512]
