"""A run's folder."""

import json

from experiments.runs import Run
from transformer.config import ADDED, ExperimentConfig, to_dict


def test_a_run_from_before_a_field_was_there_does_what_it_did(tmp_path, monkeypatch):
    stored = to_dict(ExperimentConfig())
    del stored["data"]["held_out"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert Run(tmp_path).config == ExperimentConfig()
    monkeypatch.setitem(ADDED["data"], "held_out", 7)  # the default is 0
    assert Run(tmp_path).config.data.held_out == 7
