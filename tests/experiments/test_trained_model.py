"""Loading of trained models."""

import shutil

from experiments.run_folder import Run
from experiments.trained_model import load_trained
from tests.support.errors import refused
from transformer.config import ExperimentConfig
from transformer.tasks import resolve
from transformer.training.checkpoints import Checkpoints


def test_a_run_without_a_checkpoint_is_refused(tmp_path):
    run = Run(tmp_path)
    run.begin(resolve(ExperimentConfig()))
    assert refused(load_trained, run) == f"{tmp_path} has no checkpoint yet; train the run first"


def test_the_trained_model_is_the_mean_of_the_last_checkpoints(trained):
    run = Run(trained)
    last, mean = load_trained(run), load_trained(run, {"decode.average_last": 2})
    assert (last.steps, mean.steps) == ([300], [150, 300])
    assert last.params_sha256 == run.result["params_sha256"] != mean.params_sha256
    assert last.model.trained_lengths is not None


def test_a_missing_vocabulary_is_refused(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "copy")
    (folder / "tokenizer.model").unlink()
    assert "tokenizer.model is missing" in refused(load_trained, Run(folder))


def test_checkpoints_are_closed_when_the_run_cannot_be_loaded(trained, tmp_path, monkeypatch):
    folder = shutil.copytree(trained, tmp_path / "copy")
    (folder / "tokenizer.model").unlink()
    closed = []
    monkeypatch.setattr(Checkpoints, "close", lambda self: closed.append(self))
    refused(load_trained, Run(folder))
    assert len(closed) == 1


def test_a_run_whose_training_is_not_complete_is_loaded_with_a_warning(trained, tmp_path, caplog):
    folder = shutil.copytree(trained, tmp_path / "copy")
    load_trained(Run(folder))
    assert not caplog.records
    Run(folder).write_result(status="running")
    step, last = load_trained(Run(folder)).steps[-1], Run(folder).config.train.steps
    warning = f"warning: the training of {folder} is not complete: step {step} of {last}"
    assert [record.message for record in caplog.records] == [warning]
