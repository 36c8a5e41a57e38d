"""Changes of config fields: as text, in a config, and after training."""

import dataclasses

import pytest

from experiments.config_changes import (
    SEARCH_FIELDS,
    changed_after_training,
    check_read,
    converted,
    read_changes,
    with_changes,
)
from tests.support.errors import refused
from transformer.config import ExperimentConfig, TrainConfig
from transformer.tasks import resolve


@pytest.fixture
def config() -> ExperimentConfig:
    return resolve(ExperimentConfig(train=TrainConfig(keep_last=3)))


@pytest.mark.parametrize(
    ("texts", "changes"),
    [
        (["decode.beam_size=1", "decode.beam_size=2"], {"decode.beam_size": 2}),
        (["model.dtype=bfloat16"], {"model.dtype": "bfloat16"}),
        (["model.overflow=null"], {"model.overflow": None}),
        (["decode.max_output_length=None"], {"decode.max_output_length": None}),
        (["decode.length_penalty=1"], {"decode.length_penalty": 1.0}),
        (["decode.sampling=True"], {"decode.sampling": True}),
        (["data.options.train=a=b.tsv"], {"data.options.train": "a=b.tsv"}),
    ],
)
def test_changes_have_the_type_of_their_field(texts, changes):
    assert read_changes(texts, "set") == changes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("decode.beam_size", "--set=decode.beam_size has no value; write --set=KEY=VALUE"),
        ("decode.beam_size=2.5", "decode.beam_size is '2.5'; it must be a whole number"),
        ("decode.beam_size=none", "decode.beam_size is 'none'; it must be a whole number"),
        ("decode.sampling=maybe", "decode.sampling is 'maybe'; it must be true or false"),
        ("decode.bean_size=7", "unknown config key decode.bean_size; did you mean decode.beam_size?"),
        ("steps=3", "unknown config key steps; did you mean train.steps?"),
        ("wibble=3", "unknown config key wibble; docs/family.md and `experiments.describe` list the fields"),
    ],
)
def test_a_wrong_change_gives_a_one_line_error(text, message):
    assert refused(read_changes, [text], "set") == message


def test_changes_do_not_modify_the_original():
    values = {"model": {"d_ff": 1}, "data": {"options": {}}}
    changed = with_changes(values, {"model.d_ff": 2, "data.options.lists": 3, "train.steps": 4})
    assert changed == {"model": {"d_ff": 2}, "data": {"options": {"lists": 3}}, "train": {"steps": 4}}
    assert values == {"model": {"d_ff": 1}, "data": {"options": {}}}


def test_an_unknown_key_is_refused():
    assert refused(with_changes, {}, {"model.num_layer": 3}) == (
        "unknown config key model.num_layer; did you mean model.num_layers?"
    )


def test_search_settings_dtype_and_overflow_may_change_after_training(config):
    changes = {
        "decode.beam_size": 2,
        "decode.length_penalty": 1,
        "model.dtype": "bfloat16",
        "model.overflow": None,
    }
    assert changed_after_training(config, changes) == dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, dtype="bfloat16"),
        decode=dataclasses.replace(config.decode, beam_size=2, length_penalty=1.0),
    )
    assert converted(config, changes)["decode.length_penalty"] == 1.0
    assert changed_after_training(config, {}) == config


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.d_ff", 7, "model.d_ff cannot change after training; only decode.*, model.overflow, model.fused_attention and model.dtype can"),
        ("data.name", "x", "data.name cannot change after training; only decode.*, model.overflow, model.fused_attention and model.dtype can"),
        ("decode", 7, "decode is a group of fields; name one of its fields, such as decode.beam_size"),
        ("decode.bean_size", 7, "unknown config key decode.bean_size; did you mean decode.beam_size?"),
        ("decode.beam_size", 0, "decode.beam_size is 0; it must be at least 1"),
        ("decode.average_last", 4, "decode.average_last is 4; it must be at most train.keep_last (3)"),
        ("model.dtype", "float16", "model.dtype is 'float16'; it must be float32 or bfloat16"),
    ],
)  # fmt: skip
def test_other_changes_after_training_are_refused(config, key, value, message):
    assert refused(changed_after_training, config, {key: value}) == message


def test_changes_without_an_effect_are_refused(config):
    recurrent = dataclasses.replace(config, model=dataclasses.replace(config.model, kind="recurrent"))
    scores = {"decode.average_last": 2, "decode.batch_tokens": 9, "decode.max_source_length": 9}
    check_read({"decode.beam_size": 2, **scores}, [config])
    check_read(scores, [config], ignored=SEARCH_FIELDS)
    check_read({"model.overflow": "clamp"}, [recurrent, config])  # one member of an ensemble reads it
    for key, configs, ignored in (
        ("model.overflow", [recurrent], ()),
        ("decode.temperature", [config], ()),
        ("decode.beam_size", [config], SEARCH_FIELDS),
    ):
        message = f"--set changes {key}, which has no effect in this call; leave it out"
        assert refused(check_read, {key: None}, configs, ignored) == message
