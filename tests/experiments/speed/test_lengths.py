"""The benchmark of sentence lengths, on models of no size."""

import numpy as np
import pytest

from experiments import plots
from experiments.speed.lengths import Trainer, batch, benchmark_lengths
from tests.tiny import tiny_config
from transformer.config import EOS, DataConfig, ExperimentConfig, UserError

CONFIGS = {
    kind: ExperimentConfig(tiny_config(kind=kind, num_layers=1), DataConfig(vocab_size=13))
    for kind in ("transformer", "recurrent_attention")
}


def test_every_slot_is_a_piece():
    found = batch(3, 5, 13)
    for side in (found.source, found.target):
        assert side.tokens.shape == (3, 5)
        assert (side.tokens[:, -1] == EOS).all()
        assert (side.tokens[:, :-1] > EOS + 1).all()
        np.testing.assert_array_equal(side.segments, [[1] * 5, [2] * 5, [3] * 5])
        np.testing.assert_array_equal(side.positions, [list(range(5))] * 3)


def test_each_config_is_timed_at_each_length():
    found = benchmark_lengths(CONFIGS, [4], batch_tokens=16, repeats=2, seconds=0.01)
    assert set(found) == set(CONFIGS)
    for row in found.values():
        slowest, fastest = row[4]["spread"]
        assert 0 < slowest <= row[4]["tokens_per_second"] <= fastest
    assert plots.speed_by_length(found, "title").axes[0].get_legend() is not None


def test_a_length_that_a_model_cannot_place_is_refused():
    learned = ExperimentConfig(tiny_config(positions="learned"), DataConfig(vocab_size=13))
    with pytest.raises(UserError, match="--lengths has 18; the model places at most 17 pieces"):
        Trainer(learned, 18, 36)
