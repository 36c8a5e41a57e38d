"""The contents of batches, and batches of sentences of similar length for evaluation and search."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.support.splits import split_of
from transformer.data.batching import assemble, bucket, evaluation_batches, length_batches, pad_rows

SPLIT = split_of(
    sources=[[5, 6, 2], [7, 2], [8, 9, 10, 2]], targets=[[11, 2], [12, 13, 2], [14, 2]], characters=[3, 5, 7]
)


def test_assemble_packs_the_pairs_of_a_row_one_after_another():
    batch = assemble(SPLIT, [np.array([2, 1]), np.array([0])], num_rows=3, source_length=7, target_length=5)
    source, target = batch.source, batch.target
    np.testing.assert_array_equal(source.tokens, [[8, 9, 10, 2, 7, 2, 0], [5, 6, 2, 0, 0, 0, 0], [0] * 7])
    np.testing.assert_array_equal(source.segment_ids, [[3, 3, 3, 3, 2, 2, 0], [1, 1, 1, 0, 0, 0, 0], [0] * 7])
    np.testing.assert_array_equal(source.positions, [[0, 1, 2, 3, 0, 1, 0], [0, 1, 2, 0, 0, 0, 0], [0] * 7])
    np.testing.assert_array_equal(target.tokens, [[14, 2, 12, 13, 2], [11, 2, 0, 0, 0], [0] * 5])
    np.testing.assert_array_equal(target.segment_ids, [[3, 3, 2, 2, 2], [1, 1, 0, 0, 0], [0] * 5])
    np.testing.assert_array_equal(target.positions, [[0, 1, 0, 1, 2], [0, 1, 0, 0, 0], [0] * 5])
    np.testing.assert_array_equal(batch.characters, [12, 3, 0])


def test_evaluation_batches_have_every_pair_once_in_a_row_of_its_own():
    batches = list(evaluation_batches(SPLIT, 32))
    assert len(batches) == 2
    for batch in batches:
        for side in (batch.source, batch.target):
            assert side.tokens.shape[1] == 16
            assert all(len(set(row) - {0}) <= 1 for row in side.segment_ids)
    shown = np.concatenate([batch.target.segment_ids[:, 0] for batch in batches])
    assert sorted(shown[shown > 0]) == [1, 2, 3]
    assert sum(int(batch.characters.sum()) for batch in batches) == 15


@given(st.lists(st.integers(1, 700), max_size=200), st.sampled_from([1, 16, 100, 1_024]))
def test_length_batches_contain_every_sentence_and_have_few_shapes(lengths, max_tokens):
    num_rows, members = {}, []
    for batch in length_batches(np.array(lengths, int), max_tokens):
        batch_lengths = [lengths[member] for member in batch.members]
        assert max(batch_lengths) <= batch.length < max(17, 1.5 * max(batch_lengths) + 1)
        assert len(batch_lengths) <= batch.num_rows
        assert batch.num_rows * batch.length <= max(max_tokens, batch.length)
        num_rows.setdefault(batch.length, []).append(batch.num_rows)
        members += batch.members.tolist()
    assert sorted(members) == list(range(len(lengths)))
    in_order = [lengths[member] for member in members]
    assert in_order == sorted(lengths, reverse=True)
    for rows in num_rows.values():
        assert len(set(rows[:-1])) <= 1  # only the last batch of a length may have fewer rows


def test_bucket_rounds_a_length_up_to_a_power_of_two():
    assert [bucket(length) for length in (1, 16, 17, 32, 33, 300)] == [16, 16, 32, 32, 64, 512]


def test_pad_rows_pads_to_the_longest_row_or_to_a_given_shape():
    lists = [[5, 2], np.array([6, 7, 2])]
    np.testing.assert_array_equal(pad_rows(lists), [[5, 2, 0], [6, 7, 2]])
    np.testing.assert_array_equal(
        pad_rows(lists, length=4, num_rows=3), [[5, 2, 0, 0], [6, 7, 2, 0], [0] * 4]
    )
