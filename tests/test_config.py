"""One place for each default; nothing unknown, nothing of the wrong type, nothing out of range."""

import dataclasses
import json

import pytest

from transformer import config as c


def test_defaults_are_the_papers_base():
    base = c.ExperimentConfig()
    model = base.model
    assert (model.num_layers, model.d_model, model.d_ff, model.num_heads) == (6, 512, 2048, 8)
    assert (model.key_width, model.value_width, model.dropout_rate) == (64, 64, 0.1)
    assert (model.positions, model.norm_placement) == ("sinusoidal", "post")
    optimizer = base.optimizer
    assert (optimizer.beta1, optimizer.beta2, optimizer.epsilon) == (0.9, 0.98, 1e-9)
    assert (optimizer.warmup_steps, optimizer.learning_rate) == (4_000, None)
    assert (base.train.steps, base.train.batch_tokens, base.train.label_smoothing) == (100_000, 25_000, 0.1)
    assert (base.decode.beam_size, base.decode.length_penalty, base.decode.max_extra) == (4, 0.6, 50)


def test_round_trip_through_json():
    config = c.ExperimentConfig(model=c.TransformerConfig(d_k=16), data=c.DataConfig(name="multi30k"))
    assert c.from_dict(json.loads(json.dumps(c.to_dict(config)))) == config
    assert c.from_dict({}) == c.ExperimentConfig()


def test_a_stored_config_without_later_fields_does_what_it_did(monkeypatch):
    """Even where the default has become another one."""
    stored = json.loads(json.dumps(c.to_dict(c.ExperimentConfig())))
    for section, fields in c.ADDED.items():
        for field in fields:
            del stored[section][field]
    config = c.from_stored(stored)
    for section, fields in c.ADDED.items():
        assert {field: getattr(getattr(config, section), field) for field in fields} == fields
    monkeypatch.setitem(c.ADDED["data"], "held_out", 7)
    monkeypatch.setitem(c.ADDED, "optimizer", {"beta1": 0.5})
    assert c.from_stored(stored).data.held_out == 7
    assert c.from_stored(stored | {"data": {"held_out": 3}}).data.held_out == 3
    del stored["optimizer"]
    assert c.from_stored(stored).optimizer.beta1 == 0.5
    with pytest.raises(c.UserError, match="data is 3; it must be a group of fields"):
        c.from_stored({"data": 3})


def test_widths_of_heads():
    model = c.TransformerConfig(d_model=22, num_heads=3, d_k=5, d_v=7)
    assert (model.key_width, model.value_width) == (5, 7)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modle": {}}, "unknown config key modle; the nearest known one is "),
        (
            {"model": {"num_layer": 2}},
            "unknown config key model.num_layer; the nearest known one is model.num_layers",
        ),
        ({"model": {"num_layers": 2.5}}, "model.num_layers is 2.5; it must be of type int"),
        ({"model": {"num_layers": True}}, "model.num_layers is True; it must be of type int"),
        ({"model": {"d_k": "x"}}, "model.d_k is 'x'; it must be of type int or None"),
        ({"model": 3}, "model is 3; it must be a group of fields"),
        ({"model": {"encoder_layers": -1}}, "model.encoder_layers is -1; it must be at least 1"),
        ({"model": {"decoder_layers": 0}}, "model.decoder_layers is 0; it must be at least 1"),
        ({"model": {"max_distance": 0}}, "model.max_distance is 0; it must be at least 1"),
        ({"model": {"num_layers": -1}}, "model.num_layers is -1; it must be at least 1"),
        ({"model": {"dropout_rate": 1.0}}, "model.dropout_rate is 1.0; it must be at least 0 and below 1"),
        ({"model": {"d_model": 100}}, "model.d_model is 100; it must be a multiple of model.num_heads (8)"),
        ({"model": {"dtype": "int8"}}, "model.dtype is 'int8'; it must be float32 or bfloat16"),
        ({"data": {"target": "en"}}, "data.target is 'en'; it must be another language than data.source"),
        ({"data": {"held_out": -1}}, "data.held_out is -1; it must be at least 0"),
        ({"data": {"min_characters": -1}}, "data.min_characters is -1; it must be at least 0"),
        ({"data": {"max_characters": 0}}, "data.max_characters is 0; it must be at least 1"),
        ({"data": {"max_ratio": 0.5}}, "data.max_ratio is 0.5; it must be at least 1"),
        ({"data": {"tokenizer": "wp"}}, "data.tokenizer is 'wp'; it must be bpe, unigram or char"),
        ({"optimizer": {"learning_rate": 0.0}}, "optimizer.learning_rate is 0.0; it must be above 0"),
        ({"train": {"steps": 0}}, "train.steps is 0; it must be at least 1"),
        (
            {"decode": {"average_last": 11}},
            "decode.average_last is 11; it must be at most train.keep_last (10)",
        ),
        ({"decode": {"max_source": 1}}, "decode.max_source is 1; it must be at least 2"),
        ({"model": {"max_positions": 1}}, "model.max_positions is 1; it must be at least 2"),
        ({"decode": {"length_penalty": -1}}, "decode.length_penalty is -1.0; it must be at least 0"),
        (
            {"decode": {"min_length": 9, "max_length": 8}},
            "decode.max_length is 8; it must be at least decode.min_length (9)",
        ),
        ({"decode": {"top_k": 5}}, "decode.top_k is 5; it must be left alone without decode.sampling"),
        ({"decode": {"temperature": 0}}, "decode.temperature is 0.0; it must be above 0"),
        ({"decode": {"top_p": 1.5}}, "decode.top_p is 1.5; it must be above 0 and at most 1"),
        ({"decode": {"top_k": 0}}, "decode.top_k is 0; it must be at least 1"),
    ],
)
def test_bad_values_are_one_clear_line(values, message):
    with pytest.raises(c.UserError) as error:
        c.from_dict(values)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_every_section_is_frozen():
    for field in dataclasses.fields(c.ExperimentConfig):
        section = getattr(c.ExperimentConfig(), field.name)
        assert section.section == field.name
        with pytest.raises(dataclasses.FrozenInstanceError):
            section.section_field = 1
