"""Fixtures for the tests of commands, which share one trained run."""

from pathlib import Path

import pytest

from experiments import plots
from experiments.study import plan
from experiments.study.sweep import Sweep
from tests.support.commands import ROOT, SMOKE, TEXT, call
from tests.support.studies import DEMO
from tests.support.text_files import write_pairs
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


@pytest.fixture(scope="session")
def text_run(session_folder) -> Path:
    """A folder with text, its prepared data, and a run that was trained and evaluated on the text.

    Tests must not write into the folder. All stored paths are relative to it, so that it can be copied.
    """
    folder = session_folder / "text"
    with lock(session_folder / "text.lock", wait=True):
        if not (folder / "run/eval/test.json").exists():
            folder.mkdir()
            write_pairs(folder / "pairs.tsv")
            call("train", *TEXT, "--workdir=run", cwd=folder)
            call("evaluate", "--workdir=run", cwd=folder)
    return folder


@pytest.fixture
def without_costs(monkeypatch):
    """Leaves out of a launch the costs of the training and the figures of the report, which take seconds."""
    costs = {"parameters": 1, "flops_per_step": 1.0, "memory_bytes": {"total": 1}}
    monkeypatch.setattr(plan, "describe", lambda config: costs)
    monkeypatch.setattr(plots, "png", lambda figure: b"")


@pytest.fixture
def sweep(monkeypatch) -> Sweep:
    """A study of two variants."""
    monkeypatch.chdir(ROOT)
    return DEMO
