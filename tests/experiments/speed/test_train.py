"""The benchmark of training, on a tiny model."""

import contextlib
import importlib.util

import pytest

from experiments.speed import train
from experiments.speed.train import Interval, PackedTraining, TorchTraining, benchmark
from experiments.speed.workload import Shape
from tests.support.tiny import tiny_config
from transformer.config import UserError

SMALL = Shape(tiny_config(num_layers=1), mean_length=5, row_length=16, batch_tokens=64)


@pytest.fixture(autouse=True)
def few_sentences(monkeypatch):
    monkeypatch.setattr(train, "NUM_PAIRS", 200)
    monkeypatch.setattr(train.matmul_rate, "__defaults__", (64, 2))  # matrices [64, 64], multiplied twice


class Clockwork(contextlib.AbstractContextManager):
    """Fake peer that claims 100 steps per second, each with 10 tokens."""

    def __init__(self, shape):
        self.shape, self.turns = shape, []

    def turn(self, steps):
        self.turns.append(steps)
        return Interval(steps, seconds=steps * 0.01, tokens=steps * 10)

    def __exit__(self, *_):
        pass


@pytest.mark.slow
def test_the_reported_figures_are_consistent(monkeypatch):
    peer = Clockwork("small")
    monkeypatch.setitem(train.PEERS, "clockwork", lambda shape: peer if shape == peer.shape else None)
    figures = benchmark("small", SMALL, ["clockwork"], repeats=3, turn_seconds=0.02)
    assert peer.turns == [2, 2, 2, 2, 2]  # warm-up, timing, three rounds of two steps
    slowest, fastest = figures["spread"]
    assert 0 < slowest <= figures["tokens_per_second"] <= fastest
    assert figures["peers"]["clockwork"]["tokens_per_second"] == pytest.approx(1_000)
    assert slowest / 1_001 <= figures["peers"]["clockwork"]["ratio"] <= fastest / 999
    assert 0 <= figures["padding"] < 0.5
    assert 0 <= figures["waiting_for_data"] < 1
    useful_flops = figures["utilization"] * figures["matmul_flops_per_second"]
    slots = figures["step_seconds"] * figures["tokens_per_second"] / (1 - figures["padding"])
    flops_per_slot = figures["flops_per_step"] / slots
    assert useful_flops / figures["tokens_per_second"] == pytest.approx(flops_per_slot, rel=0.3)


@pytest.mark.slow
def test_a_turn_reports_its_steps_and_their_tokens():
    training = PackedTraining(SMALL)
    interval = training.turn(20)
    assert interval.steps == 20
    assert interval.tokens / 20 == pytest.approx(64, rel=0.1)
    assert interval.tokens <= 20 * training.slots


def test_a_missing_peer_gives_a_one_line_error(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="--peer=torch needs the package torch; run pip install"):
        TorchTraining("tiny")


@pytest.mark.slow
def test_pytorch_is_timed_in_a_separate_process():
    pytest.importorskip("torch")
    with TorchTraining("tiny") as peer:
        interval = peer.turn(1)
    assert interval.steps == 1
    assert interval.seconds > 0
    assert interval.tokens == pytest.approx(4_096, rel=0.05)
