"""The benchmark of training at several sentence lengths, on tiny models."""

import dataclasses

import numpy as np
import pytest

from experiments import plots
from experiments.speed.lengths import FixedLengthTraining, benchmark_lengths, full_batch
from tests.support.commands import refuse
from tests.support.tiny import tiny_config
from transformer.config import EOS, DataConfig, ExperimentConfig, UserError

CONFIG = ExperimentConfig(model=tiny_config(num_layers=1), data=DataConfig(vocab_size=13))


def test_a_batch_has_no_padding():
    batch = full_batch(3, 5, 13)
    for side in (batch.source, batch.target):
        assert side.tokens.shape == (3, 5)
        assert (side.tokens[:, -1] == EOS).all()
        assert (side.tokens[:, :-1] > EOS + 1).all()
        np.testing.assert_array_equal(side.segment_ids, [[1] * 5, [2] * 5, [3] * 5])
        np.testing.assert_array_equal(side.positions, [list(range(5))] * 3)


@pytest.mark.slow
def test_each_config_is_timed_at_each_length():
    configs = {"first": CONFIG, "second": CONFIG}
    results = benchmark_lengths(configs, [4], batch_tokens=16, repeats=2, turn_seconds=0.01)
    assert list(results) == ["first", "second"]
    for by_length in results.values():
        slowest, fastest = by_length[4]["spread"]
        assert 0 < slowest <= by_length[4]["tokens_per_second"] <= fastest
    assert plots.speed_by_length(results, "title").axes[0].get_legend() is not None


def test_a_length_beyond_the_positions_of_a_model_is_refused():
    learned = ExperimentConfig(model=tiny_config(positions="learned"), data=DataConfig(vocab_size=13))
    with pytest.raises(UserError, match="--lengths has 18, but the model accepts at most 17 tokens"):
        FixedLengthTraining(learned, 18, 36)


def test_a_sweep_of_another_task_is_refused():
    images = dataclasses.replace(CONFIG, task="image_classification")
    with pytest.raises(UserError, match="--sweep has task=image_classification; give a sweep of translation"):
        FixedLengthTraining(images, 4, 16)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["lengths", "--lengths=16,many"], "--lengths has 'many'; a length must be a whole number from 2 to"),
        (["lengths", "--lengths=5000"], "--lengths has '5000'; a length must be a whole number from 2 to"),
        ([], "missing subcommand; choose one of: train, decode, lengths"),
        (["train", "decode"], "unexpected argument 'decode'; see --help"),
        (["train", "--shape=huge"], "--shape is 'huge'; it must be one of: base, big, gpt, tiny"),
        (["train", "--peer=fairseq"], "with --shape=tiny, --peer is 'fairseq'; it must be one of: torch"),
        (
            ["train", "--shape=base", "--peer=transformers"],
            "with --shape=base, --peer is 'transformers'; it must be one of: torch",
        ),
        (
            ["train", "--shape=gpt", "--peer=torch"],
            "with --shape=gpt, --peer is 'torch'; it must be one of: transformers",
        ),
        (["decode", "--shape=gpt"], "--shape is 'gpt'; it must be one of: base, big, tiny"),
        (["decode", "--shape=huge"], "--shape is 'huge'; it must be one of: base, big, tiny"),
        (["decode", "--peer=fairseq"], "--peer is 'fairseq'; it must be one of: ctranslate2, transformers"),
    ],
)
def test_wrong_flags_give_a_one_line_error(flags, message):
    assert refuse("benchmark", *flags).startswith(message)


def test_a_figure_in_a_missing_folder_is_refused_before_timing():
    line = refuse("benchmark", "lengths", "--figure=/nowhere/speed.png")
    assert line == "--figure=/nowhere/speed.png: there is no folder /nowhere; create it first"
