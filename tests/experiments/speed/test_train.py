"""The benchmark of training, on a tiny model."""

import contextlib
import dataclasses
import importlib.util
from typing import ClassVar

import jax
import pytest

from experiments.speed import train
from experiments.speed.train import PEERS, Interval, PeerTraining, Training, benchmark
from experiments.speed.workload import SHAPES, Shape, translation
from tests.support.tiny import VOCAB, tiny_config
from transformer.config import DataConfig, UserError
from transformer.model import build_model, parameter_shapes

PAIRS = dataclasses.replace(
    translation(tiny_config(num_layers=1), mean_length=5, row_length=16, batch_tokens=64), num_texts=200
)
DOCUMENTS = Shape(
    dataclasses.replace(
        PAIRS.config,
        task="language_modeling",
        model=tiny_config(num_layers=1, kind="decoder_only"),
        data=DataConfig(vocab_size=VOCAB, row_length=16),
    ),
    mean_length=20,
    num_texts=50,
)


@pytest.fixture(autouse=True)
def small_products(monkeypatch):
    monkeypatch.setattr(train.matmul_rate, "__defaults__", (64, 2))  # matrices [64, 64], multiplied twice


class Clockwork(contextlib.AbstractContextManager):
    """Fake peer that claims 100 steps per second, each with 10 tokens."""

    turns: ClassVar[list[int]] = []

    def __init__(self, peer, module, shape):
        assert (peer, module, shape) == ("torch", "experiments.speed.torch_train", "small")
        self.turns.clear()

    def turn(self, steps):
        self.turns.append(steps)
        return Interval(steps, seconds=steps * 0.01, tokens=steps * 10)

    def __exit__(self, *_):
        pass


@pytest.mark.slow
def test_the_reported_figures_are_consistent(monkeypatch):
    monkeypatch.setattr(train, "PeerTraining", Clockwork)
    figures = benchmark("small", PAIRS, ["torch"], repeats=3, turn_seconds=0.02)
    assert Clockwork.turns == [2, 2, 2, 2, 2]  # warm-up, timing, three rounds of two steps
    slowest, fastest = figures["spread"]
    assert 0 < slowest <= figures["tokens_per_second"] <= fastest
    peer = figures["peers"]["torch"]
    assert (peer["tokens_per_second"], peer["step_seconds"]) == pytest.approx((1_000, 0.01))
    assert slowest / 1_001 <= peer["ratio"] <= fastest / 999
    assert 0 <= figures["padding"] < 0.5
    assert 0 <= figures["waiting_for_data"] < 1
    useful_flops = figures["utilization"] * figures["matmul_flops_per_second"]
    slots = figures["step_seconds"] * figures["tokens_per_second"] / (1 - figures["padding"])
    flops_per_slot = figures["flops_per_step"] / slots
    assert useful_flops / figures["tokens_per_second"] == pytest.approx(flops_per_slot, rel=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [PAIRS, DOCUMENTS], ids=["pairs", "documents"])
def test_a_turn_reports_its_steps_and_their_tokens(shape):
    training = Training(shape)
    interval = training.turn(20)
    assert interval.steps == 20
    assert interval.tokens / 20 == pytest.approx(64, rel=0.1)
    assert interval.tokens <= 20 * training.slots


def test_the_flops_of_a_language_model_are_those_of_three_forward_passes():
    """Two FLOPs per weight of a kernel and slot, and two products of attention over whole rows."""
    model = DOCUMENTS.config.model
    shapes = parameter_shapes(build_model(model, VOCAB))
    kernels = sum(x.size for x in jax.tree.leaves(shapes["decoder"]) if x.ndim == 2)
    table = VOCAB * model.d_model
    attention = 16 * model.num_heads * (model.key_width + model.value_width)
    training = Training(DOCUMENTS)
    assert training.flops_per_step == 3 * training.slots * 2 * (kernels + table + attention)


def test_a_missing_peer_gives_a_one_line_error(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else object())
    with pytest.raises(UserError, match="--peer=transformers needs the package torch; run pip install"):
        PeerTraining("transformers", PEERS["language_modeling"]["transformers"], "gpt")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("peer", "shape", "tokens"), [("torch", "tiny", 4_096), ("transformers", "gpt", 12 * 64)]
)
def test_a_peer_is_timed_in_a_separate_process(peer, shape, tokens):
    pytest.importorskip("torch")
    pytest.importorskip(peer)
    with PeerTraining(peer, PEERS[SHAPES[shape].config.task][peer], shape) as training:
        interval = training.turn(1)
    assert interval.steps == 1
    assert interval.seconds > 0
    assert interval.tokens == pytest.approx(tokens, rel=0.05)


@pytest.mark.slow
def test_the_gpt_of_transformers_has_our_parameters_and_biases_in_attention():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from experiments.speed.transformers_train import make_model

    config = SHAPES["gpt"].config
    ours = parameter_shapes(build_model(config.model, config.data.vocab_size))
    biases = config.model.num_layers * 4 * config.model.d_model  # of queries, keys, values and the output
    num_ours = sum(x.size for x in jax.tree.leaves(ours))
    assert sum(x.numel() for x in make_model(config).parameters()) == num_ours + biases
