"""The sentences of the benchmarks, which are the same for this library and for other toolkits."""

import subprocess
import sys

import numpy as np
import pytest

from experiments.speed.workload import SHAPES, length_sorted_batches, sentence_pairs
from tests.support.commands import ROOT


@pytest.mark.parametrize("name", SHAPES)
def test_no_sentence_repeats_and_batches_have_the_requested_tokens(name):
    shape = SHAPES[name]
    source, target = sentence_pairs(shape, 2_000)
    pairs = {(s.tobytes(), t.tobytes()) for s, t in zip(source, target, strict=True)}
    batched = []
    for batch in length_sorted_batches(shape, 2_000):
        assert (batch[1] != 0).sum() == pytest.approx(shape.batch_tokens, abs=shape.row_length)
        batched += [tuple(row[row != 0].tobytes() for row in pair) for pair in zip(*batch, strict=True)]
    assert len(set(batched)) == len(batched)
    assert set(batched) <= pairs
    assert sum(len(t) for _, t in batched) / 4 > sum(map(len, target)) - 2 * shape.batch_tokens


@pytest.mark.parametrize("name", SHAPES)
def test_sentences_have_the_described_lengths(name):
    shape = SHAPES[name]
    for sentences in sentence_pairs(shape, 20_000):
        lengths = np.array([len(tokens) for tokens in sentences])
        assert lengths.mean() == pytest.approx(shape.mean_length, rel=0.05)
        assert lengths.max() <= shape.row_length
        assert all(tokens[-1] == 2 and (tokens[:-1] > 3).all() for tokens in sentences[:100])


@pytest.mark.parametrize("name", SHAPES)
def test_the_config_of_a_shape_has_its_model_and_batches(name):
    config = SHAPES[name].config
    assert config.model == SHAPES[name].model
    assert (config.train.batch_tokens, config.data.vocab_size) == (4_096, 10_000)


def test_sentences_are_made_without_jax():
    """A peer's process must not load our framework."""
    code = "import sys, experiments.cli, experiments.speed.workload; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
