"""Windows of documents: every token once per epoch, in full rows, after the token before it."""

import numpy as np
import pytest

from transformer.config import BOS
from transformer.data.splits import Side, Split
from transformer.data.windows import WindowBatches, WindowPlan, assemble_windows, evaluation_windows

LENGTHS = np.array([3, 40, 1, 17, 9, 25, 2])
ROW = 8


def documents(lengths=LENGTHS):
    """Documents whose tokens are all different: 4, 5, 6, ..."""
    offsets = np.cumsum([0, *lengths])
    return Split((Side(np.arange(offsets[-1]) + 4, offsets),), np.ones(len(lengths), int))


def plan(lengths=LENGTHS, batch_tokens=24, seed=3):
    return WindowPlan(lengths, ROW, batch_tokens, seed)


def epoch_rows(plan, epoch):
    first = epoch * plan.steps_per_epoch
    return [row for step in range(first, first + plan.steps_per_epoch) for row in plan.rows(step)]


@pytest.mark.parametrize(
    "lengths", [LENGTHS, np.array([200]), np.array([5]), np.array([1, 1, 1]), np.full(9, ROW)]
)
def test_an_epoch_has_every_token_once_in_full_rows(lengths):
    for epoch in range(5):
        rows = epoch_rows(plan(lengths), epoch)
        tokens = [(document, i) for row in rows for document, start, stop in row for i in range(start, stop)]
        assert sorted(tokens) == [(document, i) for document, n in enumerate(lengths) for i in range(n)]
        sizes = [sum(stop - start for _, start, stop in row) for row in rows]
        assert sorted(sizes, reverse=True)[:-1] == [ROW] * (len(rows) - 1)


def test_the_windows_differ_between_epochs_and_seeds_only():
    rows = epoch_rows(plan(), 0)
    assert epoch_rows(plan(), 0) == rows
    assert epoch_rows(plan(), 1) != rows
    assert epoch_rows(plan(seed=4), 0) != rows
    resumed = plan()
    assert resumed.rows(7) == plan().rows(7)  # an epoch is planned without those before it


def test_the_windows_of_one_long_document_move():
    starts = {row[0].start % ROW for epoch in range(20) for row in epoch_rows(plan(np.array([200])), epoch)}
    assert len(starts) == ROW


def test_a_batch_predicts_each_token_from_the_token_before_it():
    split, byte_lengths = documents(), np.arange(4 + LENGTHS.sum())
    batch = assemble_windows(split, byte_lengths, plan().rows(0), 4, ROW)
    is_token = batch.inputs.segment_ids != 0
    starts = set(split.target.offsets + 4)
    for row in range(4):
        for place in np.flatnonzero(is_token[row]):
            label = batch.labels[row, place]
            expected = BOS if label in starts else label - 1
            assert batch.inputs.tokens[row, place] == expected
        assert batch.bytes[row] == batch.labels[row][is_token[row]].sum()
    assert (batch.labels[~is_token] == 0).all()
    assert (batch.inputs.tokens[~is_token] == 0).all()


def test_the_windows_of_a_batch_are_segments_with_positions_from_0():
    split, windows = documents(), plan().rows(0)
    batch = assemble_windows(split, np.ones(200, int), windows, 3, ROW)
    ids = [split.target.offsets[window.document] + window.start + 1 for row in windows for window in row]
    assert len(set(ids)) == len(ids)
    for row, expected in enumerate(windows):
        sizes = [stop - start for _, start, stop in expected]
        positions = np.concatenate([np.arange(size) for size in sizes])
        np.testing.assert_array_equal(batch.inputs.positions[row, : sum(sizes)], positions)
        row_ids = [split.target.offsets[window.document] + window.start + 1 for window in expected]
        np.testing.assert_array_equal(batch.inputs.segment_ids[row, : sum(sizes)], np.repeat(row_ids, sizes))


def test_processes_share_the_rows_of_a_batch():
    split, lengths = documents(), np.ones(200, int)
    whole = WindowBatches(split, lengths, plan(), num_steps=5)
    parts = [WindowBatches(split, lengths, plan(), 5, process, 2) for process in (0, 1)]
    assert len(whole) == 5
    for step in range(5):
        rows = sorted(tuple(row) for row in whole[step].labels if row.any())
        assert rows == sorted(tuple(row) for part in parts for row in part[step].labels if row.any())


def test_evaluation_has_every_token_once_in_order():
    rows = evaluation_windows(LENGTHS, ROW)
    tokens = [(document, i) for row in rows for document, start, stop in row for i in range(start, stop)]
    assert tokens == [(document, i) for document, n in enumerate(LENGTHS) for i in range(n)]
    assert all(sum(stop - start for _, start, stop in row) == ROW for row in rows[:-1])
