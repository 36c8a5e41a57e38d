"""The texts of the benchmarks, which are the same for this library and for other toolkits."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from experiments.speed.workload import (
    SHAPES,
    documents,
    length_sorted_batches,
    sentence_pairs,
    window_batches,
)
from tests.support.commands import ROOT

TRANSLATION = [name for name, shape in SHAPES.items() if shape.config.task == "translation"]


@pytest.mark.parametrize("name", TRANSLATION)
def test_no_sentence_repeats_and_batches_have_the_requested_tokens(name):
    shape = dataclasses.replace(SHAPES[name], num_texts=2_000)
    row_length, batch_tokens = shape.config.data.row_length, shape.config.train.batch_tokens
    source, target = sentence_pairs(shape)
    pairs = {(s.tobytes(), t.tobytes()) for s, t in zip(source, target, strict=True)}
    batched = []
    for batch in length_sorted_batches(shape):
        assert (batch[1] != 0).sum() == pytest.approx(batch_tokens, abs=row_length)
        batched += [tuple(row[row != 0].tobytes() for row in pair) for pair in zip(*batch, strict=True)]
    assert len(set(batched)) == len(batched)
    assert set(batched) <= pairs
    assert sum(len(t) for _, t in batched) / 4 > sum(map(len, target)) - 2 * batch_tokens


@pytest.mark.parametrize("name", TRANSLATION)
def test_sentences_have_the_described_lengths(name):
    shape = SHAPES[name]
    for sentences in sentence_pairs(shape):
        lengths = np.array([len(tokens) for tokens in sentences])
        assert lengths.mean() == pytest.approx(shape.mean_length, rel=0.05)
        assert lengths.max() <= shape.config.data.row_length
        assert all(tokens[-1] == 2 and (tokens[:-1] > 3).all() for tokens in sentences[:100])


def test_the_batches_of_a_peer_hold_the_documents_in_full_rows():
    """Each input is the token before its label; the first batch begins with BOS."""
    shape = dataclasses.replace(SHAPES["gpt"], num_texts=20)
    texts = np.concatenate(documents(shape))
    inputs, labels = (np.stack(side) for side in zip(*window_batches(shape), strict=True))
    assert inputs.shape == labels.shape == (len(texts) // 768, 12, 64)
    np.testing.assert_array_equal(labels.ravel(), texts[: labels.size])
    np.testing.assert_array_equal(inputs.ravel(), [1, *texts[: labels.size - 1]])


def test_documents_have_the_described_lengths():
    shape = SHAPES["gpt"]
    texts = documents(shape)
    assert np.mean([len(tokens) for tokens in texts]) == pytest.approx(shape.mean_length, rel=0.05)
    assert all(tokens[-1] == 2 and tokens[:-1].min() > 3 and tokens.max() < 69 for tokens in texts)


def test_texts_are_made_without_jax():
    """A peer's process must not load our framework."""
    code = "import sys, experiments.process, experiments.speed.workload; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
