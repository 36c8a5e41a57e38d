"""The epoch plan: nothing lost, nothing twice, nothing too long, the same again for the same seed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer.data.plan import PackedPlan, bucket, buckets

LENGTHS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=200)


def plan(lengths, row_length=30, batch_tokens=90, seed=0):
    source, target = np.array(lengths).T
    return PackedPlan(source, target, row_length, batch_tokens, seed)


def epoch(one, number=0):
    first = number * one.steps_per_epoch
    return [one.rows(step) for step in range(first, first + one.steps_per_epoch)]


@settings(deadline=None, max_examples=100)
@given(LENGTHS, st.integers(0, 3))
def test_an_epoch_shows_each_pair_that_fits_once(lengths, seed):
    fitting = [number for number, pair in enumerate(lengths) if max(pair) <= 30]
    if not fitting:
        with pytest.raises(ValueError, match="no pair fits into rows of 30 pieces"):
            plan(lengths)
        return
    one = plan(lengths, seed=seed)
    assert one.dropped == len(lengths) - len(fitting)
    for number in range(2):
        batches = epoch(one, number)
        shown = [example for batch in batches for row in batch for example in row]
        assert sorted(shown) == fitting
        for batch in batches:
            assert 0 < len(batch) <= one.num_rows
            for row in batch:
                source, target = np.array(lengths)[row].sum(axis=0)
                assert source <= one.source_length <= 30
                assert target <= one.target_length <= 30


def normal_lengths(count, seed=0):
    rng = np.random.default_rng(seed)
    source = np.clip(rng.lognormal(2.6, 0.4, count), 2, 60).astype(int)
    return np.stack([source, np.clip(source + rng.integers(-3, 4, count), 2, 60)], axis=1)


def test_rows_are_nearly_full_and_batches_hold_what_was_asked_for():
    lengths = normal_lengths(5_000)
    one = plan(lengths, row_length=64, batch_tokens=2_048)
    slots = one.steps_per_epoch * one.num_rows
    assert lengths[:, 0].sum() / (slots * one.source_length) > 0.93
    assert lengths[:, 1].sum() / (slots * one.target_length) > 0.93
    tokens = [sum(lengths[row, 1].sum() for row in batch) for batch in epoch(one)]
    assert np.mean(tokens) == pytest.approx(2_048, rel=0.03)
    assert min(tokens) > 0.8 * 2_048


def test_the_shorter_language_gets_shorter_rows():
    lengths = normal_lengths(1_000) * [2, 1]
    one = plan(lengths, row_length=128)
    assert one.source_length == 128
    assert one.target_length < 80


def test_order_depends_on_seed_and_epoch_alone():
    lengths = normal_lengths(300)

    def order(seed, number):
        return [
            example
            for batch in epoch(plan(lengths, 64, seed=seed), number)
            for row in batch
            for example in row
        ]

    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(seed, number)) for seed in range(2) for number in range(2)}) == 4


def test_any_step_is_known_without_the_ones_before():
    lengths = normal_lengths(300)
    one, other = plan(lengths, 64), plan(lengths, 64)
    last = 3 * one.steps_per_epoch + 1
    for step in range(last):
        one.rows(step)
    for ours, theirs in zip(one.rows(last), other.rows(last), strict=True):
        np.testing.assert_array_equal(ours, theirs)


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
