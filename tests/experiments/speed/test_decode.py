"""The benchmark of translation, on a tiny model. Tests of other toolkits need the `peers` extra."""

import contextlib

import numpy as np
import pytest

from experiments.speed import decode
from experiments.speed.decode import OurTranslation, agreement, benchmark, random_sources, untrained
from experiments.speed.peer import PeerProcess
from tests.support.tiny import tiny_config
from transformer.config import EOS, UserError

SMALL = tiny_config(d_model=24, d_k=None, d_v=None)  # both peers support this shape


@pytest.fixture
def few_sentences(monkeypatch):
    sizes = {"VOCAB_SIZE": 40, "NUM_SENTENCES": 6, "NUM_TOKENS": 5, "MAX_LENGTH": 20}
    for name, value in sizes.items():
        monkeypatch.setattr(decode, name, value)


def test_random_sources_have_the_described_lengths():
    sources = random_sources(decode.NUM_SENTENCES)
    lengths = np.array([len(source) for source in sources])
    assert len(sources) == 128
    assert lengths.mean() == pytest.approx(15, rel=0.1)
    assert lengths.min() == 5
    assert 30 < lengths.max() <= 48
    assert all(source[-1] == EOS and min(source[:-1]) > 3 and max(source) < 8_000 for source in sources)


class Clockwork(contextlib.AbstractContextManager):
    """Fake peer that claims to translate all sentences in 0.03 seconds."""

    settings, log_prob_difference = "clockwork", 0.0

    def __init__(self, name, trained, sources):
        self.outputs = [[4, 5, 6, 7, 8]] * len(sources)

    def turn(self, times):
        TURNS.append(times)
        return 0.03 * times

    def __exit__(self, *_):
        pass


TURNS = []


@pytest.mark.slow
def test_the_reported_figures_are_consistent(few_sentences, monkeypatch):
    monkeypatch.setattr(decode, "DecodingPeer", Clockwork)
    figures = benchmark(SMALL, ["ctranslate2"], repeats=3, turn_seconds=0.06)
    assert TURNS == [1, 2, 2, 2]  # one translation to estimate its time, three rounds of two translations
    slowest, fastest = figures["spread"]
    assert 0 < slowest <= figures["tokens_per_second"] <= fastest
    assert figures["peers"] == {
        "ctranslate2": pytest.approx(1_000)
    }  # 6 sentences of 5 tokens in 0.03 seconds
    against = figures["against"]["ctranslate2"]
    assert slowest / 1_001 <= against["ratio"] <= fastest / 999
    assert against["spread"] == pytest.approx([1_000, 1_000])
    assert (against["identical"], against["settings"]) == (0, "clockwork")
    assert against["score_difference"] < 0
    assert figures["compile_seconds"] > 0


@pytest.mark.slow
def test_agreement_distinguishes_ties_from_differences(few_sentences):
    """All outputs have the requested length."""
    trained, sources = untrained(SMALL), random_sources(decode.NUM_SENTENCES)
    table = trained.params["embedding"]["table"]
    trained.params["embedding"]["table"] = table.at[4].set(table[5])  # tokens 4 and 5 are equally probable
    outputs = OurTranslation(trained, sources)()
    assert len(outputs) == len(sources) == 6
    assert all(len(output) == 5 and min(output) > EOS for output in outputs)
    outputs[:2] = [[4, 9, 4, 9, 4], [10, 11, 12, 13, 14]]
    same = agreement(trained, sources, outputs, outputs)
    assert same == {"identical": 1, "tied": 0, "score_difference": 0}
    peer_outputs = [[5, 9, 4, 9, 5], [14, 13, 12, 11, 10], *outputs[2:]]
    figures = agreement(trained, sources, outputs, peer_outputs)
    assert (figures["identical"], figures["tied"]) == (4 / 6, 1 / 6)
    swapped = agreement(trained, sources, peer_outputs, outputs)
    assert figures["score_difference"] == pytest.approx(-swapped["score_difference"])
    assert abs(figures["score_difference"]) > decode.TIED


def test_a_peer_process_that_dies_gives_an_error():
    with pytest.raises(RuntimeError, match=r"experiments\.nothing ended with status"):
        PeerProcess("experiments.nothing", {})


@pytest.mark.slow
@pytest.mark.parametrize("name", decode.PEERS)
def test_a_peer_finds_the_same_outputs(few_sentences, name):
    for package in decode.PEERS[name].packages:
        pytest.importorskip(package)
    figures = benchmark(SMALL, [name], repeats=1, turn_seconds=0.01)
    against = figures["against"][name]
    assert against["identical"] + against["tied"] == 1
    assert against["log_prob_difference"] < 1e-4
    assert against["ratio"] == pytest.approx(figures["tokens_per_second"] / figures["peers"][name])


def test_a_missing_package_gives_a_one_line_error(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        UserError,
        match=r"--peer=transformers needs the package transformers; run pip install -e '.\[peers\]'",
    ):
        decode.PEERS["transformers"].require("--peer=transformers")
