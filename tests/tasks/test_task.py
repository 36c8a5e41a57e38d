"""A task defined outside the library, as one class and one registry entry."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.observers import Recorder
from tests.support.toy import Regression, toy_config
from transformer.config import UserError
from transformer.tasks import TASKS, open_task, resolve
from transformer.tasks.task import eval_totals
from transformer.training.loop import train


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(TASKS, "regression", Regression)


def test_a_new_task_is_selected_by_name_trains_and_resumes(tmp_path):
    config = resolve(toy_config())
    task = open_task(config, tmp_path)
    assert isinstance(task, Regression)
    stopped = Recorder(stop_after=7)
    assert not train(config, task, tmp_path, stopped, stopped.should_stop).finished
    outcome = train(config, open_task(config, tmp_path), tmp_path, Recorder())
    assert outcome.finished
    (tmp_path / "whole").mkdir()
    whole = train(config, task, tmp_path / "whole", Recorder())
    assert outcome.params_sha256 == whole.params_sha256


def test_a_new_task_does_not_resume_with_a_different_config(tmp_path):
    config = resolve(toy_config())
    train(config, open_task(config, tmp_path), tmp_path, Recorder())
    changed = dataclasses.replace(config, data=dataclasses.replace(config.data, options={"slope": 3.0}))
    with pytest.raises(UserError, match="config changed after .* was trained"):
        train(changed, open_task(changed, tmp_path), tmp_path, Recorder())


def test_options_of_a_new_task_are_checked():
    config = dataclasses.replace(
        toy_config(), data=dataclasses.replace(toy_config().data, options={"slop": 3.0})
    )
    with pytest.raises(
        UserError, match=r"unknown config key data.options.slop; did you mean data.options.slope\?"
    ):
        resolve(config)


def test_a_new_task_loads_and_scores_a_model_without_opening_a_run(tmp_path):
    config = resolve(toy_config())
    task = open_task(config, tmp_path)
    loaded, test_set = task.load_model(config, tmp_path, {"task": task.metadata}), task.test_set("validation")
    perfect = {"dense": {"kernel": np.full((3, 1), 2.0, np.float32)}, "bias": np.zeros(1, np.float32)}
    assert loaded.tokenizer is None
    losses = [
        Regression.evaluate(config, loaded, params, test_set).scores["loss"]
        for params in (perfect, task.init(0))
    ]
    assert losses[0] == pytest.approx(0, abs=1e-10)
    assert losses[1] > 0.1


def test_totals_are_computed_before_they_are_yielded():
    """JAX returns an array before its value is computed."""

    def slow_loss(params, batch, key, hyperparameters):
        total = jax.lax.fori_loop(0, 100, lambda _, x: jnp.tanh(x), batch).sum()
        return total, {"count": total}

    totals = eval_totals(toy_config(), slow_loss, None, [np.ones((8, 2_000), np.float32)] * 3)
    assert [total["count"].is_ready() for _, total in totals] == [True, True, True]
