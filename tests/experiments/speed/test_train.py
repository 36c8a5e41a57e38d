"""The benchmark of training, on a model of no size."""

import contextlib
import importlib.util

import pytest

from experiments.speed import train
from experiments.speed.train import Interval, Trainer, benchmark
from experiments.speed.workload import Shape
from tests.tiny import tiny_config
from transformer.config import UserError

SMALL = Shape(tiny_config(), mean_length=5, row_length=16, batch_tokens=64)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(train, "PAIRS", 200)
    monkeypatch.setattr(train.matmul_rate, "__defaults__", (64, 2))  # [64, 64], twice


def test_figures_agree_with_each_other(monkeypatch):
    turns = []

    @contextlib.contextmanager
    def peer(name):
        assert name == "small"
        yield lambda steps: turns.append(steps) or Interval(steps, seconds=steps * 1.0, tokens=steps * 10)

    monkeypatch.setitem(train.PEERS, "clockwork", peer)
    found = benchmark("small", SMALL, ["clockwork"], repeats=3, seconds=2.0)
    assert turns == [2, 2, 2, 2, 2]  # warming up, timing, three rounds of two seconds
    slowest, fastest = found["spread"]
    assert 0 < slowest <= found["tokens_per_second"] <= fastest
    assert found["peers"]["clockwork"]["tokens_per_second"] == 10
    assert slowest / 10 <= found["peers"]["clockwork"]["ratio"] <= fastest / 10
    assert 0 <= found["padding"] < 0.5
    assert 0 <= found["waiting_for_data"] < 1
    useful_flops = found["utilisation"] * found["matmul_flops_per_second"]
    slots = found["step_seconds"] * found["tokens_per_second"] / (1 - found["padding"])
    assert useful_flops / found["tokens_per_second"] == pytest.approx(
        found["flops_per_step"] / slots, rel=0.3
    )


def test_steps_are_trained_on_as_many_tokens_as_asked():
    trainer = Trainer(SMALL)
    interval = trainer(20)
    assert interval.steps == 20
    assert interval.tokens / 20 == pytest.approx(64, rel=0.1)
    assert interval.tokens <= 20 * trainer.slots


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="PyTorch is there")
def test_a_peer_that_is_not_installed_is_one_line():
    with pytest.raises(UserError, match="--peer=torch needs PyTorch: pip install"), train.torch_peer("tiny"):
        pass
