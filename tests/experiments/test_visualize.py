"""The `visualize` command: the learning curve and the attention of a run."""

import shutil
from pathlib import Path

import pytest

from experiments import plots
from experiments.run_folder import Run, Trained
from experiments.speed.decode import NumberTokenizer
from tests.support.commands import call, refuse
from tests.support.tiny import VOCAB, random_params, tiny_config
from transformer.config import ExperimentConfig
from transformer.decoding.translator import Hypothesis, Translator
from transformer.model import build_model


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory) -> Path:
    """A copy of the trained run, to which figures are added."""
    return shutil.copytree(trained, tmp_path_factory.mktemp("runs") / "run")


def test_the_figures_are_written_and_their_paths_are_printed(run):
    done = call("visualize", f"--workdir={run}", "--sentence=one; two")
    names = ["learning_curve.png", "attention.png"]
    assert done.stdout.split() == [str(run / "figures" / name) for name in names]
    for name in names:
        assert (run / "figures" / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sentence=one", "--layer=2"], "--layer is 2; it must be from 1 to 1"),
        ([f"--sentence={'one; ' * 60}"], "--sentence has "),
        (["--sentence="], "--sentence is empty; give a sentence to translate"),
        (["--sentence= "], "--sentence is empty; give a sentence to translate"),
    ],
)
def test_a_wrong_sentence_or_layer_gives_a_one_line_error_and_no_figure(trained, flags, message):
    assert refuse("visualize", f"--workdir={trained}", *flags).startswith(message)
    assert not (trained / "figures").exists()


def test_a_run_without_measurements_is_refused(run, tmp_path):
    shutil.copy(run / "config.json", tmp_path)
    assert (
        refuse("visualize", f"--workdir={tmp_path}")
        == f"{tmp_path} has no measurements yet; train the run first"
    )


def test_the_learning_curve_has_a_line_per_kind_of_record():
    records = [
        {"kind": kind, "step": step, "perplexity": 100 / step}
        for step in (10, 20)
        for kind in ("train", "validation")
    ]
    (axes,) = plots.learning_curve(records, "title").axes
    assert [line.get_label() for line in axes.lines] == ["train", "validation"]
    assert [list(line.get_ydata()) for line in axes.lines] == [[10, 5], [10, 5]]


def test_a_translation_that_fills_the_last_position_is_drawn_without_eos(run, monkeypatch):
    model = build_model(tiny_config(positions="learned"), VOCAB)
    trained = Trained(ExperimentConfig(), NumberTokenizer(VOCAB), model, random_params(model), [0])
    longest = " ".join(["5"] * model.max_lengths.target)
    monkeypatch.setattr(Run, "load", lambda self, task: trained)
    cut = [Hypothesis(longest, -1.0, ended=False)]
    monkeypatch.setattr(Translator, "hypotheses", lambda self, sentences: [cut])
    drawn, attention_map = [], plots.attention_map

    def record_map(weights, source, target, title):
        drawn.append(target)
        return attention_map(weights, source, target, title)

    monkeypatch.setattr(plots, "attention_map", record_map)
    call("visualize", f"--workdir={run}", "--sentence=4")
    assert drawn == [["5"] * model.max_lengths.target]
