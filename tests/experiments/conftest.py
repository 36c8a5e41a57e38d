"""Fixtures for the tests of commands, which share one trained run."""

import sys
from pathlib import Path

import pytest

from experiments import plots
from experiments.study import local_runs, plan
from experiments.study.queue import Ended
from experiments.study.sweep import Sweep
from tests.support.commands import ROOT, SMOKE, TEXT, call
from tests.support.studies import DEMO, RATES
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


@pytest.fixture
def study_flags(tmp_path, data_dir) -> tuple[str, ...]:
    """Flags of a study of two runs, with the same array shapes as the `trained` fixture."""
    (tmp_path / "rates.py").write_text(RATES)
    changes = {
        "data.data_dir": data_dir,
        "data.options.lists": 60,
        "decode.batch_tokens": 4096,
        "decode.beam_size": 2,
        "train.parallelism": "single",
    }
    sets = [f"--set={key}={value}" for key, value in changes.items()]
    return (f"--sweep={tmp_path}/rates.py", f"--root={tmp_path}/study", "--seeds=1", *sets)


@pytest.fixture
def in_this_process(monkeypatch):
    """Runs the jobs of a study in this process; `run_jobs` is tested in test_queue.py."""

    def run_jobs(jobs, *_):
        for job in jobs:
            job.begin()
            for _, _, module, *arguments in job.commands:
                done = call(module.removeprefix("experiments."), *arguments, status=None)
                print(done.stderr, file=sys.stderr)
                if done.status:
                    break
            yield Ended(job, done.status, 1.0)

    monkeypatch.setattr(local_runs, "run_jobs", run_jobs)
