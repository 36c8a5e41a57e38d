"""Training that diverges, with and without NaN, and updates that are skipped, on the toy task."""

import dataclasses
import math

import numpy as np
import pytest

from tests.support.observers import Recorder
from tests.support.toy import BATCH_SIZE, NUM_EXAMPLES, Regression, toy_config
from transformer.config import OptimizerConfig
from transformer.json_files import read_json
from transformer.training.divergence import MARGIN, Diverged
from transformer.training.loop import train
from transformer.training.metric_log import read_metrics
from transformer.training.optimizers import OPTIMIZERS

LEARNED_NOTHING = 12.0  # the variance of y


class Poisoned(Regression):
    """The toy task, but the target of training example 11 is NaN."""

    def batch(self, numbers):
        batch = super().batch(numbers)
        if len(numbers) == BATCH_SIZE:
            batch["y"] = np.where(batch["number"] == 12, np.nan, batch["y"]).astype(np.float32)
        return batch


class Hopeless(Regression):
    """The toy task, but the targets of all training examples are NaN."""

    def batch(self, numbers):
        batch = super().batch(numbers)
        return batch | {"y": batch["y"] * np.float32("nan")} if len(numbers) == BATCH_SIZE else batch


def config_of(train=None, **optimizer):
    options = {"warmup_steps": 5, "learning_rate": 0.1} | optimizer
    return dataclasses.replace(toy_config(**train or {}), optimizer=OptimizerConfig(**options))


def run(config, folder, task_type=Regression, uniform_loss=None, stop_after=None):
    folder.mkdir(exist_ok=True)
    task, recorder = task_type(config), Recorder(stop_after)
    task.uniform_loss = uniform_loss
    return train(config, task, folder, recorder, recorder.should_stop)


def diverges(*arguments, **options) -> str:
    with pytest.raises(Diverged) as error:
        run(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("log_every", [1, 20])
def test_a_loss_that_is_not_finite_is_reported_with_its_step_and_its_examples(tmp_path, log_every):
    line = diverges(config_of({"log_every": log_every}), tmp_path, Poisoned)
    assert line == (
        "training diverged: the loss of step 2 is nan, and its gradient norm is nan "
        f"({tmp_path}/diverged.json lists its examples); delete {tmp_path} or name another --workdir, and start "
        "with a lower --config.optimizer.learning_rate or a --config.optimizer.warmup_steps above 5"
    )
    stored = read_json(tmp_path / "diverged.json")
    assert stored == {"step": 2, "loss": None, "gradient_norm": None, "examples": list(range(8, 16))}


def test_an_infinite_gradient_of_a_finite_loss_is_divergence(tmp_path):
    line = diverges(config_of(name="sgd", learning_rate=1e15, warmup_steps=1), tmp_path)
    step = read_json(tmp_path / "diverged.json")["step"]
    assert f"the loss of step {step} is " in line
    assert all(math.isfinite(record["gradient_norm"]) for record in read_metrics(tmp_path))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_large_finite_loss_is_divergence(tmp_path, name):
    optimizer = {"name": name, "learning_rate": 1e3, "warmup_steps": 1}
    if name == "sgd":
        optimizer |= {"learning_rate": 10.0, "beta1": 0.0}
    config = config_of({"steps": 10, "validate_every": 10}, **optimizer)
    line = diverges(config, tmp_path, uniform_loss=LEARNED_NOTHING)
    assert line.startswith("training diverged: the validation loss of step 10 is ")
    assert ", compared with 12.0000 for a model that has learned nothing; delete " in line


def test_a_large_finite_loss_is_only_a_warning_if_on_divergence_is_warn(tmp_path, caplog):
    config = config_of({"on_divergence": "warn"}, learning_rate=1e3, warmup_steps=1)
    with caplog.at_level("WARNING", "transformer"):
        assert run(config, tmp_path, uniform_loss=LEARNED_NOTHING).finished
    assert "warning: training diverged: the validation loss of step 8 is " in caplog.text


def test_losses_before_the_end_of_the_warm_up_are_not_compared(tmp_path):
    """The loss of step 8 is above the limit, but the loss of the last step, 24, is below it."""
    config = config_of({"steps": 24, "validate_every": 8}, learning_rate=0.3, warmup_steps=20)
    assert run(config, tmp_path / "free").finished
    by_step = {
        record["step"]: record["loss"]
        for record in read_metrics(tmp_path / "free")
        if record["kind"] == "validation"
    }
    limit = (by_step[8] + by_step[24]) / 2 - MARGIN
    assert by_step[24] < limit + MARGIN < by_step[8]
    assert run(config, tmp_path / "limited", uniform_loss=limit).finished
    short = config_of({"steps": 24, "validate_every": 8}, learning_rate=0.3, warmup_steps=8)
    assert "step 8 is" in diverges(short, tmp_path / "short", uniform_loss=-MARGIN)


@pytest.mark.parametrize(("name", "accumulation"), [*((name, 1) for name in OPTIMIZERS), ("adam", 2)])
def test_an_update_with_a_gradient_that_is_not_finite_is_skipped(tmp_path, name, accumulation):
    config = config_of({"accumulation": accumulation}, name=name, skip_nonfinite=1)
    outcome = run(config, tmp_path, Poisoned)
    assert outcome.finished
    records = [record for record in read_metrics(tmp_path) if record["kind"] == "train"]
    skipped = [record["step"] for record in records if record.get("skipped")]
    assert skipped == [2, 7, 12, 17]  # once per epoch
    assert "loss" not in records[1]
    applied = [record for record in records if "skipped" not in record]
    assert [record["learning_rate"] for record in applied[:3]] == pytest.approx([0.02, 0.04, 0.06])
    assert outcome.units_seen == 16 * BATCH_SIZE


def test_a_skipped_update_does_not_poison_the_means_of_an_interval(tmp_path):
    run(config_of({"log_every": 5}, skip_nonfinite=1), tmp_path, Poisoned)
    records = [record for record in read_metrics(tmp_path) if record["kind"] == "train"]
    assert all(math.isfinite(record["loss"]) for record in records)
    assert [record["skipped"] for record in records if "skipped" in record] == [1] * 4


def test_a_resumed_run_skips_the_same_updates(tmp_path):
    config = config_of(skip_nonfinite=1)
    whole = run(config, tmp_path / "whole", Poisoned)
    run(config, tmp_path / "parts", Poisoned, stop_after=9)
    assert run(config, tmp_path / "parts", Poisoned) == whole


def test_too_many_skipped_updates_in_a_row_are_divergence(tmp_path):
    assert "the loss of step 4 is nan" in diverges(config_of(skip_nonfinite=3), tmp_path, Hopeless)
    assert len(read_json(tmp_path / "diverged.json")["examples"]) == BATCH_SIZE < NUM_EXAMPLES
