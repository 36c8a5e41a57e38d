"""Run folders: config and result."""

import dataclasses
from pathlib import Path

import pytest

from experiments import run_folder
from experiments.config_changes import with_changes
from experiments.machine import processor
from experiments.run_folder import Run, distinct_runs
from tests.support.commands import refuse
from tests.support.errors import refused
from transformer.config import (
    DataConfig,
    ExperimentConfig,
    TrainConfig,
    UserError,
    from_dict,
    result_hash,
    to_dict,
)
from transformer.tasks import resolve


@pytest.fixture
def config() -> ExperimentConfig:
    return resolve(ExperimentConfig(train=TrainConfig(keep_last=3)))


def test_a_run_stores_its_config(config, tmp_path):
    run = Run(tmp_path / "new" / "run")
    assert run.begin(config) == config
    assert run.config == config
    assert run.begin(None) == config


def test_a_new_config_replaces_the_stored_one_until_training_starts(config, tmp_path, monkeypatch):
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=7))
    run = Run(tmp_path)
    run.begin(config)
    assert run.begin(longer) == run.config == longer
    monkeypatch.setattr(Run, "identity", {"config": result_hash(longer)})  # training has started
    assert run.begin(longer) == longer
    difference = "train.steps is 7 there, 100000 here"
    message = f"{tmp_path} has a run with another config: {difference}; name another --workdir"
    assert refused(run.begin, config) == message


def test_a_folder_that_cannot_be_a_run_is_refused(config, tmp_path):
    (tmp_path / "file").touch()
    assert refused(Run, tmp_path / "file") == f"{tmp_path}/file is not a folder; name a run folder"
    assert refused(Run(tmp_path / "file" / "run").begin, config).startswith(
        f"cannot create {tmp_path}/file/run"
    )
    message = refused(lambda: Run(tmp_path).config)
    assert (
        message
        == f"{tmp_path} is not a run: config.json is missing; start a run with python -m experiments.train --config=FILE --workdir={tmp_path}"
    )
    begun(config, tmp_path / "demo")
    assert refused(lambda: Run(tmp_path).config) == (
        f"{tmp_path} is a folder of runs, not a run; name one of them, such as {tmp_path / 'demo'}"
    )
    (tmp_path / "config.json").write_text("{")
    assert "config.json cannot be read" in refused(lambda: Run(tmp_path).config)


def test_a_result_is_written_without_git(config, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    run = begun(config, tmp_path / "run")
    run.write_result(status="running")
    assert run.result["git_revision"] is None


def begun(config, folder) -> Run:
    run = Run(folder)
    run.begin(config)
    return run


def test_a_config_without_read_permission_gives_a_one_line_error(tmp_path, monkeypatch):
    """The test raises the error itself, since root may read every file."""

    def deny(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_file", deny)
    line = refuse("visualize", f"--workdir={tmp_path}")
    assert line.startswith(f"{tmp_path}/config.json: Permission denied")


def test_only_one_process_at_a_time_may_train_a_run(config, tmp_path):
    run = begun(config, tmp_path)
    with run.locked():
        assert "is in use by another process" in refused(run.locked().__enter__)
    with run.locked():
        pass


@pytest.mark.parametrize(
    ("is_new", "started", "is_left"), [(True, False, False), (True, True, True), (False, False, True)]
)
def test_a_refused_start_removes_the_folders_that_it_made(config, tmp_path, is_new, started, is_left):
    run = Run(tmp_path / "runs" / "a")
    if not is_new:
        run.folder.mkdir(parents=True)

    def start():
        with run.locked():
            run.begin(config)
            run.write_result(status="running")
            (run.folder / "checkpoints").mkdir()
            if started:
                (run.folder / "metrics.jsonl").touch()
            raise UserError("no data")

    assert refused(start) == "no data"
    assert list(tmp_path.iterdir()) == ([tmp_path / "runs"] if is_left else [])
    assert (run.folder / "config.json").is_file() == is_left


def test_a_result_records_library_versions_and_the_device(config, tmp_path):
    run = begun(config, tmp_path)
    assert run.result == {}
    run.write_result(status="preempted", step=3)
    assert (run.result["status"], run.result["step"]) == ("preempted", 3)
    assert set(run.result["versions"]) >= {"jax", "flax", "optax", "sacrebleu"}
    assert run.result["device"] == processor()


def test_commands_on_trained_runs_refuse_a_folder_that_is_not_a_run():
    commands = (("train",), ("evaluate",), ("translate", "--input=/dev/null"), ("visualize",))
    for command in commands:
        line = refuse(*command, "--workdir=/nowhere")
        assert line.startswith("/nowhere is not a run: config.json is missing"), command


def test_fields_that_do_not_affect_the_result_may_change_after_training_has_started(tmp_path, monkeypatch):
    data = DataConfig(name="multi30k", options={"manual_dir": "here"})
    config = resolve(ExperimentConfig(data=data))
    run = begun(config, tmp_path)
    monkeypatch.setattr(Run, "identity", {"config": run.config_hash})
    changes = {"train.log_every": 7, "data.data_dir": "/x", "data.options.manual_dir": "there"}
    moved = from_dict(with_changes(to_dict(config), changes))
    assert run.begin(moved) == run.config == moved
    other_text = from_dict(with_changes(to_dict(moved), {"data.options.text": "lc.norm.tok"}))
    assert "has a run with another config: data.options.text is " in refused(run.begin, other_text)
    assert run.config == moved


def test_a_run_that_is_named_twice_is_refused(tmp_path):
    names = [str(tmp_path / "run"), str(tmp_path / "other"), f"{tmp_path}/other/../run"]
    assert [run.folder for run in distinct_runs(names[:2])] == [tmp_path / "run", tmp_path / "other"]
    assert refused(distinct_runs, names) == f"{names[2]} is named twice; name each run once"


def test_a_command_outside_the_checkout_says_where_to_run(tmp_path, monkeypatch):
    root = tmp_path / "checkout"
    (root / "runs" / "demo").mkdir(parents=True)
    (root / "runs" / "demo" / "config.json").write_text("{}")
    monkeypatch.setattr(run_folder, "ROOT", root)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=f"there is no run runs/demo in the current folder; run the command in {root}"
    ):
        _ = Run("runs/demo").config
