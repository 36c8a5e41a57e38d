"""Fixtures for the tests of commands, which share one trained run."""

from pathlib import Path

import pytest

from experiments.study.sweep import Sweep
from tests.support.commands import ROOT, SMOKE, call
from transformer.files import lock


@pytest.fixture(scope="session")
def smoke(data_dir) -> tuple[str, ...]:
    """Flags of a run that trains in seconds."""
    return (*SMOKE, f"--config.data.data_dir={data_dir}")


@pytest.fixture(scope="session")
def trained(session_folder, smoke) -> Path:
    """A run of 300 steps, after which different words have different translations.

    Tests must not write into the folder.
    """
    folder = session_folder / "trained"
    changes = {
        "optimizer.learning_rate": 1e-2,
        "train.steps": 300,
        "train.validate_every": 150,
        "train.log_every": 50,
        "decode.beam_size": 2,
        "decode.length_penalty": 1.0,
        "decode.max_source_length": 64,
    }
    flags = [f"--config.{field}={value}" for field, value in changes.items()]
    with lock(session_folder / "trained.lock", wait=True):
        if not (folder / "result.json").exists():
            call("train", *smoke, *flags, f"--workdir={folder}")
    return folder


@pytest.fixture
def sweep(monkeypatch) -> Sweep:
    """A study of two variants."""
    monkeypatch.chdir(ROOT)
    return Sweep(
        name="demo",
        config="configs/number_words.py",
        variants={"base": {}, "deep": {"model.num_layers": 3}},
        splits=("test", "test_long"),
        metrics=("exact_match", "bleu"),
        question="Does depth help?",
        baseline="base",
        primary=("exact_match", "test"),
        tune={},
        equal=None,
    )
