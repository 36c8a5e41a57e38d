"""The benchmark of an accelerator, on tiny models."""

import dataclasses

import pytest

from experiments.speed import accelerator
from experiments.speed.workload import translation
from tests.support.tiny import tiny_config

CONFIG = translation(tiny_config(num_layers=1, d_v=6), mean_length=5, row_length=16, batch_tokens=64).config
SCALE = dataclasses.replace(accelerator.SMALL, product=64, lengths=(8,), seconds=0.01)


@pytest.mark.slow
def test_each_part_is_measured_and_a_failure_does_not_end_the_rest(monkeypatch):
    def fail(*_):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory\nand more")

    monkeypatch.setattr(accelerator, "benchmark_lengths", fail)
    workload = accelerator.Workload({"tiny": CONFIG}, CONFIG, {"tiny": CONFIG}, CONFIG)
    results = dict(accelerator.measure(workload, SCALE, peers=()))
    assert results["lengths"] == {"error": "RESOURCE_EXHAUSTED: out of memory"}
    training, runs = results["training of tiny"], results["runs in one program"]
    assert training["tokens_per_second"] * training["step_seconds"] == pytest.approx(SCALE.batch_tokens)
    assert training["hours_for_100000_steps"] == pytest.approx(training["step_seconds"] * 100_000 / 3_600)
    assert training["utilization"] > 0
    assert runs["speedup"] == pytest.approx(2 * runs["step_seconds_alone"] / runs["step_seconds_together"])
    assert results["translation of 8 sentences"]["tokens_per_second"] > 0
