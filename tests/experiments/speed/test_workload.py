"""What is timed is the same for us and for a peer."""

import numpy as np
import pytest

from experiments.speed.workload import SHAPES, bucketed, sentences


@pytest.mark.parametrize("name", SHAPES)
def test_buckets_hold_the_sentences_once_and_as_many_tokens_as_asked(name):
    shape = SHAPES[name]
    source, target = sentences(shape, 2_000)
    known = {(s.tobytes(), t.tobytes()) for s, t in zip(source, target, strict=True)}
    seen = []
    for batch in bucketed(shape, 2_000):
        assert (batch[1] != 0).sum() == pytest.approx(shape.batch_tokens, abs=shape.row_length)
        seen += [tuple(row[row != 0].tobytes() for row in pair) for pair in zip(*batch, strict=True)]
    assert len(set(seen)) == len(seen)
    assert set(seen) <= known
    assert sum(len(t) for _, t in seen) / 4 > sum(map(len, target)) - 2 * shape.batch_tokens


@pytest.mark.parametrize("name", SHAPES)
def test_lengths_are_as_described(name):
    shape = SHAPES[name]
    for side in sentences(shape, 20_000):
        lengths = np.array([len(one) for one in side])
        assert lengths.mean() == pytest.approx(shape.mean_length, rel=0.05)
        assert lengths.max() <= shape.row_length
        assert all(one[-1] == 2 and (one[:-1] > 3).all() for one in side[:100])
