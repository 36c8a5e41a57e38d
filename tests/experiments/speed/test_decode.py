"""The benchmark of decoding, on models of no size. Its peers need the `peers` extra; skipped without."""

import contextlib
import subprocess
import sys

import numpy as np
import pytest

from experiments.speed import decode, peer
from experiments.speed.decode import agreement, benchmark, ours, sentences, untrained
from tests.experiments.test_commands import ROOT, environment
from tests.tiny import tiny_config
from transformer.config import EOS, UserError

SMALL = tiny_config(d_model=24, d_k=None, d_v=None)  # both peers hold it


@pytest.fixture
def few(monkeypatch):
    for name, value in {"VOCAB": 40, "SENTENCES": 6, "PIECES": 5, "LONGEST": 20}.items():
        monkeypatch.setattr(decode, name, value)


def test_sentences_are_as_described():
    found = sentences()
    lengths = np.array([len(source) for source in found])
    assert len(found) == 128
    assert lengths.mean() == pytest.approx(15, rel=0.1)
    assert lengths.min() == 5
    assert 30 < lengths.max() <= 48
    assert all(source[-1] == EOS and min(source[:-1]) > 3 and max(source) < 8_000 for source in found)


def test_every_output_has_as_many_pieces_as_asked(few):
    sources = sentences()
    outputs = ours(untrained(SMALL), sources)()
    assert len(outputs) == len(sources) == 6
    assert all(len(output) == 5 and min(output) > EOS for output in outputs)


def test_figures_agree_with_each_other(few, monkeypatch):
    turns = []

    @contextlib.contextmanager
    def clockwork(name, trained, sources):
        outputs = [[4, 5, 6, 7, 8]] * len(sources)
        answer = {"outputs": outputs, "settings": name}
        yield decode.Peer(lambda times: turns.append(times) or 3.0 * times, answer, ROOT)

    monkeypatch.setattr(decode, "start", clockwork)
    monkeypatch.setattr(decode, "difference", lambda trained, form, folder: 0.0)
    found = benchmark(SMALL, ["ctranslate2"], repeats=3, turn=6.0)
    assert turns == [1, 2, 2, 2]  # timing, three rounds of two seconds
    slowest, fastest = found["spread"]
    assert 0 < slowest <= found["tokens_per_second"] <= fastest
    assert found["peers"] == {"ctranslate2": 10}  # 6 sentences of 5 pieces in 3 seconds
    against = found["against"]["ctranslate2"]
    assert slowest / 10 <= against["ratio"] <= fastest / 10
    assert against["spread"] == [10, 10]
    assert (against["identical"], against["settings"]) == (0, "ctranslate2")
    assert against["score_difference"] < 0
    assert found["compile_seconds"] > 0


def test_agreement_tells_what_differs_from_what_is_tied(few):
    trained, sources = untrained(SMALL), sentences()
    table = trained.params["embedding"]["table"]
    trained.params["embedding"]["table"] = table.at[4].set(table[5])  # 4 and 5 cannot be told apart
    own = ours(trained, sources)()
    own[:2] = [[4, 9, 4, 9, 4], [10, 11, 12, 13, 14]]
    same = agreement(trained, sources, own, own)
    assert same == {"identical": 1, "tied": 0, "score_difference": 0}
    theirs = [[5, 9, 4, 9, 5], [14, 13, 12, 11, 10], *own[2:]]
    found = agreement(trained, sources, own, theirs)
    assert (found["identical"], found["tied"]) == (4 / 6, 1 / 6)
    back = agreement(trained, sources, theirs, own)
    assert found["score_difference"] == pytest.approx(-back["score_difference"])
    assert abs(found["score_difference"]) > decode.TIED


def test_a_peer_that_dies_is_not_waited_for():
    with pytest.raises(RuntimeError, match="ended with status"), peer.child("experiments.nothing", {}):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("name", decode.PEERS)
def test_a_peer_finds_what_ours_finds(few, name):
    for package in decode.PEERS[name].packages:
        pytest.importorskip(package)
    found = benchmark(SMALL, [name], repeats=1, turn=0.01)
    against = found["against"][name]
    assert against["identical"] + against["tied"] == 1
    assert against["log_prob_difference"] < 1e-4
    assert against["ratio"] == pytest.approx(found["tokens_per_second"] / found["peers"][name])


@pytest.mark.parametrize(
    ("flag", "line"),
    [
        ("--peer=fairseq", "error: --peer is 'fairseq'; it must be one of: ctranslate2, transformers"),
        ("--shape=huge", "error: --shape is 'huge'; it must be one of: base, tiny"),
    ],
)
def test_what_it_does_not_know_is_one_line(data_dir, flag, line):
    command = [sys.executable, "-m", "experiments.benchmark", "decode", flag]
    done = subprocess.run(command, cwd=ROOT, env=environment(data_dir), capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (2, line)


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"--peer=transformers needs transformers: pip install -e '.\[peers\]'"
    ):
        decode.PEERS["transformers"].require("--peer=transformers")
