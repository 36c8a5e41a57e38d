"""The training loop on a toy task: resumed runs, records, early stopping, and refused configs."""

import contextlib
import dataclasses
import json
import math
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import jax
import numpy as np
import pytest

from experiments.progress import record_line
from tests.support.observers import Recorder
from tests.support.toy import WIDTH, Regression, toy_config
from transformer.config import OptimizerConfig, UserError
from transformer.training.checkpoints import Checkpoints
from transformer.training.digests import digest
from transformer.training.loop import train
from transformer.training.metric_log import Meter, MetricsWriter, read_metrics
from transformer.training.session import Outcome, Patience
from transformer.training.train_step import StepInfo
from transformer.training.utilization import PEAK_FLOPS


def run(config, folder, stop_after=None):
    """Trains on the toy task; returns the outcome, and the records that this call wrote."""
    folder.mkdir(exist_ok=True)
    recorder = Recorder(stop_after)
    return train(config, Regression(config), folder, recorder, recorder.should_stop), recorder.records


def losses(folder):
    return [record["loss"] for record in read_metrics(folder)]


class Run(NamedTuple):
    """A finished run."""

    folder: Path
    outcome: Outcome
    records: list[dict]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of `toy_config()`. Tests only read it."""
    folder = tmp_path_factory.mktemp("whole")
    return Run(folder, *run(toy_config(), folder))


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped")
    run(toy_config(), folder, stop_after=8)
    return folder


@pytest.fixture
def stopped(stopped_run, tmp_path):
    """The folder of a run of `toy_config()` that was stopped after step 8."""
    return shutil.copytree(stopped_run, tmp_path / "stopped")


def test_a_resumed_run_equals_an_uninterrupted_run_bit_for_bit(tmp_path, whole):
    """The tests of checkpoints restore the state of every optimizer."""
    config = toy_config()
    first, _ = run(config, tmp_path / "parts", stop_after=5)
    second, _ = run(config, tmp_path / "parts", stop_after=13)
    third, records = run(config, tmp_path / "parts")
    assert [(outcome.step, outcome.finished) for outcome in (first, second, third)] == [
        (5, False),
        (13, False),
        (20, True),
    ]
    assert records[0]["step"] == 14
    assert third == whole.outcome
    assert losses(tmp_path / "parts") == losses(whole.folder)
    assert run(config, tmp_path / "parts") == (third, [])


def test_a_damaged_checkpoint_loses_only_the_steps_since_the_previous_checkpoint(tmp_path, whole):
    run(toy_config(), tmp_path / "parts", stop_after=13)
    newest = tmp_path / "parts" / "checkpoints" / "13"
    for path in [path for path in newest.rglob("*") if path.is_file()]:
        path.write_bytes(b"damaged")
    outcome, records = run(toy_config(), tmp_path / "parts")
    assert records[0]["step"] == 9
    assert outcome == whole.outcome
    assert losses(tmp_path / "parts") == losses(whole.folder)


def test_diagnostics_are_recorded_and_change_no_weights(tmp_path, whole, monkeypatch):
    monkeypatch.setattr(Regression, "diagnostics", lambda task, params: {"bias": float(params["bias"].sum())})
    outcome, records = run(toy_config(diagnostics=True), tmp_path / "run")
    assert outcome.params_sha256 == whole.outcome.params_sha256
    for record, plain_record in zip(records, whole.records, strict=True):
        if record["kind"] == "train":
            layers = (record["gradient_norm.dense.kernel"], record["gradient_norm.bias"])
            assert record["gradient_norm"] == pytest.approx(math.hypot(*layers))
            assert {"gradient_norm.bias", "bias"} <= record.keys() - plain_record.keys()


def test_a_record_is_fetched_while_the_devices_compute_the_next_step(tmp_path):
    config, events = toy_config(steps=4, validate_every=3), []
    (tmp_path / "run").mkdir()
    observer = SimpleNamespace(
        step=lambda step: events.append(f"step {step}"),
        record=lambda record: events.append(f"{record['kind']} {record['step']}"),
    )
    train(config, Regression(config), tmp_path / "run", observer)
    assert events == [
        *("step 1", "step 2", "train 1", "step 3", "train 2", "train 3", "validation 3"),
        *("step 4", "train 4", "validation 4"),
    ]


def test_the_utilization_is_recorded_if_the_peak_of_the_device_is_known(tmp_path, whole, monkeypatch):
    """The toy model multiplies [8, 3] by [3, 1], forward and twice backward."""
    assert not any("utilization" in record for record in whole.records)
    monkeypatch.setitem(PEAK_FLOPS, "cpu", 1e9)
    _, records = run(toy_config(steps=4, log_every=2), tmp_path / "known")
    for record in records[0], records[1]:
        flops_per_example = record["utilization"] * 1e9 * jax.device_count() / record["tokens_per_second"]
        assert flops_per_example == pytest.approx(3 * 2 * WIDTH)
    assert "% of peak" in record_line(records[0])


def test_a_new_batch_shape_is_logged_because_it_compiles_the_update_again(tmp_path, monkeypatch, caplog):
    batches = Regression.batches

    def shorter(task, first_step):
        for number, batch in enumerate(batches(task, first_step)):
            yield jax.tree.map(lambda x: x[:4], batch) if number in (2, 3) else batch

    monkeypatch.setattr(Regression, "batches", shorter)
    with caplog.at_level("INFO"):
        run(toy_config(steps=6), tmp_path / "run")
    messages = [message for message in caplog.messages if "compiling" in message]
    assert messages == ["step 3: compiling the update again, for a batch of 4, 4x3"]


def test_a_run_that_was_killed_repeats_the_steps_since_its_checkpoint(stopped, whole):
    """After kill -9, metrics.jsonl is ahead of the last checkpoint and may end with an incomplete line."""
    with contextlib.closing(MetricsWriter(stopped, step=8)) as writer:
        writer.write({"step": 9, "kind": "train", "loss": 99.0})
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "ki')
    run(toy_config(), stopped)
    assert losses(stopped) == losses(whole.folder)


def test_patience_ends_a_run_that_no_longer_learns(tmp_path):
    """The weights do not change. The first validation is the best, and the run ends after three more."""
    config = dataclasses.replace(
        toy_config(validate_every=2, patience=3), optimizer=OptimizerConfig(learning_rate=1e-30)
    )
    whole, _ = run(config, tmp_path / "whole")
    assert (whole.step, whole.finished) == (8, True)
    first, _ = run(config, tmp_path / "parts", stop_after=5)
    assert (first.step, first.finished) == (5, False)
    assert run(config, tmp_path / "parts")[0] == whole
    assert run(config, tmp_path / "parts") == (whole, [])


def test_an_improvement_resets_the_patience_counter():
    patience = Patience(2)
    for value, exhausted in ((3.0, False), (3.0, False), (2.9, False), (2.95, False), (2.9, True)):
        patience.update(value)
        assert patience.is_exhausted is exhausted


def test_training_and_validation_are_recorded(whole):
    records = read_metrics(whole.folder)
    assert records == whole.records
    validations = [record for record in records if record["kind"] == "validation"]
    assert [record["step"] for record in validations] == [8, 16, 20]
    assert validations[-1]["loss"] < validations[0]["loss"]
    training = [record for record in records if record["kind"] == "train"]
    assert [record["step"] for record in training] == list(range(1, 21))
    assert training[-1]["tokens_seen"] == whole.outcome.units_seen == 20 * 8
    assert training[9]["epoch"] == 2.0
    for name in ("learning_rate", "gradient_norm"):
        assert all(record[name] >= 0 for record in training), name
    for name in ("tokens_per_second", "seconds_left"):
        assert name not in training[0]  # the time of the first step includes compilation
        assert all(record[name] >= 0 for record in training[1:]), name
    assert list((whole.folder / "tensorboard").iterdir())
    assert Checkpoints(whole.folder / "checkpoints").steps == [16, 20]


def test_the_speed_and_the_time_left_leave_the_first_step_out(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    meter = Meter(Regression(toy_config()), num_steps=10, first_step=0, units_seen=0)
    records = []
    for step, now[0] in enumerate([100.0, 102.0, 104.0, 106.0], start=1):  # compiles for 100 seconds
        info = StepInfo(gradient_norm=1.0, learning_rate=0.1, skipped=False, layer_norms={})
        meter.add({"loss": np.array(1.0), "count": np.array(8.0)}, info, flops=1)
        if step >= 3:
            records.append(meter.record(step))
    assert [record["tokens_per_second"] for record in records] == [4.0, 4.0]
    assert [record["seconds_left"] for record in records] == [14.0, 12.0]
    assert "4 tokens/s  0:14 left" in record_line(records[0])


def test_a_record_covers_the_steps_since_the_last_one(tmp_path, whole):
    _, records = run(toy_config(log_every=5), tmp_path / "run")
    per_step, fifth = (
        [record for record in records if record["kind"] == "train"] for records in (whole.records, records)
    )
    per_step = [record["loss"] for record in per_step]
    assert [record["step"] for record in fifth] == [5, 8, 10, 15, 16, 20]
    assert fifth[0]["loss"] == pytest.approx(sum(per_step[:5]) / 5)
    assert fifth[1]["loss"] == pytest.approx(sum(per_step[5:8]) / 3)


@pytest.mark.parametrize("parallelism", ["pmap", "mesh"])
def test_losses_do_not_depend_on_the_number_of_devices(tmp_path, whole, parallelism):
    """There are eight virtual devices. Dropout is on. Only the order of float32 sums changes the losses."""
    run(toy_config(parallelism=parallelism), tmp_path / "several")
    assert losses(tmp_path / "several") == pytest.approx(losses(whole.folder), rel=1e-4)


def test_a_record_has_the_share_of_time_spent_waiting_for_data(tmp_path, monkeypatch):
    batches = Regression.batches

    def slow_batches(task, first_step):
        for batch in batches(task, first_step):
            time.sleep(0.05)
            yield batch

    monkeypatch.setattr(Regression, "batches", slow_batches)
    run(toy_config(log_every=5, validate_every=20), tmp_path)
    first, second = (record for record in read_metrics(tmp_path)[:2])
    assert 0.5 < first["waiting_for_data"] < 1
    assert 0.5 < second["waiting_for_data"] < 1
    assert "of the time waiting for data)" in record_line(second)


def test_checkpoints_store_the_identity_and_the_metadata_of_the_task(whole):
    files = (whole.folder / "checkpoints" / "20" / "metadata").rglob("*")
    metadata = json.loads(next(path for path in files if path.is_file()).read_text())
    assert metadata["identity"] == Regression(toy_config()).identity
    assert metadata["task"] == {"width": 3}
    assert sorted(metadata["digests"]) == ["opt_state", "params"]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"train": {"steps": 30}}, "config"),
        ({"optimizer": {"learning_rate": 0.2}}, "config"),
        ({"data": {"options": {"slope": 3.0}}}, "config"),
    ],
)
def test_a_different_config_is_refused(stopped, change, name):
    config = toy_config()
    ((section, values),) = change.items()
    changed = dataclasses.replace(
        config, **{section: dataclasses.replace(getattr(config, section), **values)}
    )
    with pytest.raises(
        UserError,
        match=rf"{name} changed after .* was trained \(from .* to .*\); restore the original",
    ):
        run(changed, stopped)


def test_different_data_is_refused(stopped):
    config = toy_config()
    task = Regression(config)
    task.identity = task.identity | {"data": "slope 3"}
    with pytest.raises(UserError, match=r"data changed after .* was trained \(from slope 2.0 to slope 3\)"):
        train(config, task, stopped, Recorder())


def test_a_field_that_changes_no_result_may_differ(stopped):
    outcome, _ = run(toy_config(log_every=7, parallelism="mesh", fsdp=2), stopped)
    assert outcome.finished


def test_a_different_optimizer_is_refused_as_a_different_config(stopped):
    """The identity is compared before the state is read, so that no intact checkpoint is called damaged."""
    options = OptimizerConfig(name="sgd", warmup_steps=5, learning_rate=0.1)
    with pytest.raises(UserError, match="config changed after .* was trained"):
        run(dataclasses.replace(toy_config(), optimizer=options), stopped)


class Interrupter(Recorder):
    """Interrupts the run after the first step."""

    def step(self, step):
        raise KeyboardInterrupt


def test_a_run_begins_with_the_given_weights_and_resumes_without_them(tmp_path, whole, stopped):
    config = toy_config()
    weights = jax.tree.map(lambda x: np.full(x.shape, 0.5, x.dtype), Regression(config).init(0))
    for name, observer in (("uninterrupted", Recorder()), ("parts", Interrupter())):
        with contextlib.suppress(KeyboardInterrupt):
            train(config, Regression(config), tmp_path / name, observer, initial_weights=weights)
    with contextlib.closing(Checkpoints(tmp_path / "parts" / "checkpoints")) as checkpoints:
        assert checkpoints.steps == [0]
        assert digest(checkpoints.params(0, weights)[0]) == digest(weights)
    uninterrupted, parts = (run(config, tmp_path / name)[0] for name in ("uninterrupted", "parts"))
    assert parts == uninterrupted
    assert parts.identity == {**Regression(config).identity, "initial weights": digest(weights)}
    assert parts.params_sha256 != whole.outcome.params_sha256
    with pytest.raises(UserError, match=r"initial weights changed after .* was trained \(from None to "):
        train(config, Regression(config), stopped, Recorder(), initial_weights=weights)


@pytest.mark.parametrize(
    ("weights", "name", "shapes"),
    [
        ({"dense": {"kernel": np.zeros((4, 1))}, "bias": np.zeros(1)}, "dense.kernel", "(4, 1), but must be (3, 1)"),
        ({"dense": {"kernel": np.zeros((3, 1))}}, "bias", "missing, but must be (1,)"),
        ({"dense": {"kernel": np.zeros((3, 1))}, "bias": np.zeros(1), "scale": np.zeros(2)}, "scale", "(2,), but must be missing"),
    ],
)  # fmt: skip
def test_initial_weights_of_another_model_are_refused(tmp_path, weights, name, shapes):
    config = toy_config()
    with pytest.raises(UserError) as error:
        train(config, Regression(config), tmp_path, Recorder(), initial_weights=weights)
    assert str(error.value) == (
        f"the initial weights do not fit the model: the shape of {name} is {shapes}; set the fields of model as in that run, and use data of the same format"
    )
