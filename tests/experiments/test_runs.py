"""A run's folder."""

import dataclasses
import json

import pytest

from experiments import entry
from experiments.runs import Run, changed
from transformer.config import ADDED, ExperimentConfig, TrainConfig, UserError, to_dict


def test_a_run_from_before_a_field_was_there_does_what_it_did(tmp_path, monkeypatch):
    stored = to_dict(ExperimentConfig())
    del stored["data"]["held_out"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert Run(tmp_path).config == ExperimentConfig()
    monkeypatch.setitem(ADDED["data"], "held_out", 7)  # the default is 0
    assert Run(tmp_path).config.data.held_out == 7


def test_what_may_change_after_training():
    config = ExperimentConfig(train=TrainConfig(keep_last=3))
    given = ["decode.beam_size=1", "model.dtype=bfloat16", "model.overflow=null", "decode.beam_size=2"]
    changes = entry.changes([*given, "decode.length_penalty=1", "decode.sampling=True"])
    assert changes == {
        "decode.beam_size": 2,
        "model.dtype": "bfloat16",
        "model.overflow": None,
        "decode.length_penalty": 1,
        "decode.sampling": True,
    }
    assert changed(config, changes) == dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, dtype="bfloat16"),
        decode=dataclasses.replace(config.decode, beam_size=2, length_penalty=1.0, sampling=True),
    )
    assert changed(config, {}) == config


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "model.d_ff",
            7,
            "^model.d_ff: only decode.\\*, model.overflow and model.dtype can be changed after training$",
        ),
        ("data.name", "x", "^data.name: only decode"),
        ("decode", 7, "^unknown config key decode; the nearest"),
        (
            "decode.bean_size",
            7,
            "^unknown config key decode.bean_size; the nearest known one is decode.beam_size$",
        ),
        ("decode.beam_size", 0, "^decode.beam_size is 0; it must be at least 1$"),
        ("decode.average_last", 11, "^decode.average_last is 11; it must be at most train.keep_last"),
        ("model.dtype", "float16", "^model.dtype is 'float16'; it must be float32 or bfloat16$"),
    ],
)
def test_what_may_not(key, value, message):
    with pytest.raises(UserError, match=message):
        changed(ExperimentConfig(), {key: value})
