"""Runs that are trained in one program: equal to runs that are trained alone, and independent."""

import dataclasses
import os
import shutil

import jax
import pytest
from jax.sharding import NamedSharding

from tests.support.observers import Recorder
from tests.support.toy import Regression, toy_config
from transformer.config import UserError
from transformer.training import vectorized
from transformer.training.divergence import Diverged
from transformer.training.loop import train
from transformer.training.metric_log import read_metrics
from transformer.training.session import Session
from transformer.training.vectorized import group_key, train_vectorized


def config(seed=0, learning_rate=0.1, dropout_rate=0.1, **train_fields):
    options = toy_config(seed=seed, **train_fields)
    return dataclasses.replace(
        options,
        optimizer=dataclasses.replace(options.optimizer, learning_rate=learning_rate),
        model=dataclasses.replace(options.model, dropout_rate=dropout_rate),
    )


CONFIGS = (config(0), config(1, learning_rate=0.3), config(2, dropout_rate=0.4))


def train_alone(options, folder):
    folder.mkdir(exist_ok=True, parents=True)
    return train(options, Regression(options), folder, Recorder())


def train_all(configs, folder, stop_after=None):
    """Trains runs together in folders 0, 1, ...; returns their results."""
    recorder, sessions = Recorder(stop_after), []
    for number, options in enumerate(configs):
        place = folder / str(number)
        place.mkdir(exist_ok=True, parents=True)
        sessions.append(Session(options, Regression(options), place, recorder))
    return train_vectorized(sessions, recorder.should_stop)


def assert_same_records(folder, other_folder):
    """A batched product rounds differently from a single one: by 1e-7 per step, which 20 steps amplify."""
    records, expected = read_metrics(folder), read_metrics(other_folder)
    assert [(record["kind"], record["step"]) for record in records] == [
        (record["kind"], record["step"]) for record in expected
    ]
    for record, reference in zip(records, expected, strict=True):
        assert record["loss"] == pytest.approx(reference["loss"], rel=1e-4)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folders and outcomes of runs that are trained alone."""
    root = tmp_path_factory.mktemp("alone")
    return root, [train_alone(options, root / str(n)) for n, options in enumerate(CONFIGS)]


def test_each_run_equals_the_run_alone(alone, tmp_path):
    folder, expected = alone
    results = train_all(CONFIGS, tmp_path)
    for number, (result, outcome) in enumerate(zip(results, expected, strict=True)):
        assert (result.step, result.finished, result.units_seen) == (20, True, outcome.units_seen)
        assert result.identity == outcome.identity
        assert_same_records(tmp_path / str(number), folder / str(number))
        assert os.listdir(tmp_path / str(number) / "checkpoints") == os.listdir(
            folder / str(number) / "checkpoints"
        )


def test_runs_that_were_stopped_resume(alone, tmp_path):
    first = train_all(CONFIGS[:2], tmp_path, stop_after=5)
    assert {(result.step, result.finished) for result in first} == {(5, False)}
    train_all(CONFIGS[:2], tmp_path)
    for number in range(2):
        # The stop added no validation, and its record is that of every fifth step.
        assert_same_records(tmp_path / str(number), alone[0] / str(number))


def test_a_run_that_was_further_waits_for_the_others(alone, tmp_path):
    """After kill -9, the last checkpoints may be of different steps. The second run is finished."""
    recorder = Recorder(stop_after=10)
    place = tmp_path / "0"
    place.mkdir()
    train(CONFIGS[0], Regression(CONFIGS[0]), place, recorder, recorder.should_stop)
    shutil.copytree(alone[0] / "1", tmp_path / "1")
    results = train_all(CONFIGS, tmp_path)
    assert results[1] == alone[1][1]
    for number in range(len(CONFIGS)):
        assert_same_records(tmp_path / str(number), alone[0] / str(number))


def test_a_run_that_diverges_stops_no_other(alone, tmp_path):
    results = train_all((CONFIGS[0], config(learning_rate=1e30)), tmp_path)
    assert isinstance(results[1], Diverged)
    assert (tmp_path / "1" / "diverged.json").exists()
    assert results[0].finished
    assert_same_records(tmp_path / "0", alone[0] / "0")


def test_a_run_resumes_although_another_one_of_its_group_has_ended(alone, tmp_path):
    """The first run diverges at an earlier step than the one from which the second run resumes."""
    diverging, place = config(learning_rate=1e30), tmp_path / "1"
    recorder = Recorder(stop_after=10)
    place.mkdir()
    train(CONFIGS[0], Regression(CONFIGS[0]), place, recorder, recorder.should_stop)
    results = train_all((diverging, CONFIGS[0]), tmp_path)
    assert isinstance(results[0], Diverged)
    assert (results[1].step, results[1].finished) == (20, True)
    assert_same_records(place, alone[0] / "0")


def test_a_run_that_no_longer_learns_ends_early_and_stops_no_other(tmp_path):
    """The weights of the second run do not change."""
    patient = {"steps": 10, "validate_every": 2, "patience": 3}
    configs = (config(**patient), config(learning_rate=1e-30, **patient))
    results = train_all(configs, tmp_path / "together")
    expected = [train_alone(options, tmp_path / f"alone{n}") for n, options in enumerate(configs)]
    assert [(result.step, result.finished) for result in results] == [
        (outcome.step, outcome.finished) for outcome in expected
    ]
    assert results[1].step == 8
    assert results[1].validation["loss"] == pytest.approx(expected[1].validation["loss"])


def test_diagnostics_are_those_of_each_run(tmp_path, monkeypatch):
    monkeypatch.setattr(Regression, "diagnostics", lambda task, params: {"bias": float(params["bias"].sum())})
    configs = [config(seed, steps=2, diagnostics=True) for seed in (0, 1)]
    train_all(configs, tmp_path)
    for number, options in enumerate(configs):
        train_alone(options, tmp_path / f"alone{number}")
        record, expected = (read_metrics(tmp_path / name)[1] for name in (str(number), f"alone{number}"))
        assert record["bias"] == pytest.approx(expected["bias"], rel=1e-4)


def test_the_runs_are_split_over_the_devices(tmp_path, monkeypatch):
    """There are eight devices. Two runs are placed on two of them."""
    num_devices, device_put = [], jax.device_put

    def record(tree, sharding):
        if isinstance(sharding, NamedSharding):
            num_devices.append(len(sharding.device_set))
        return device_put(tree, sharding)

    monkeypatch.setattr(vectorized.jax, "device_put", record)
    train_all([config(seed, steps=1) for seed in range(2)], tmp_path)
    assert num_devices[-1] == 2


def test_batches_of_different_shapes_are_refused(tmp_path, monkeypatch):
    batches = Regression.batches

    def by_seed(task, first_step):
        for batch in batches(task, first_step):
            yield jax.tree.map(lambda x: x[: 4 + task.config.train.seed], batch)

    monkeypatch.setattr(Regression, "batches", by_seed)
    with pytest.raises(UserError, match="have different shapes.*train each run by itself"):
        train_all(CONFIGS, tmp_path)


def test_runs_are_grouped_by_everything_but_traced_values():
    assert len({group_key(options) for options in CONFIGS}) == 1
    different = [
        config(steps=21),
        config(on_divergence="warn"),
        dataclasses.replace(CONFIGS[0], task="other"),
    ]
    assert len({group_key(options) for options in (CONFIGS[0], *different)}) == 4
