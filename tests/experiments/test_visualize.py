"""Figures of a run: learning curve and attention."""

import shutil
from pathlib import Path

import pytest

from experiments import plots
from tests.support.commands import call, refuse

pytestmark = pytest.mark.xdist_group("translate")


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory) -> Path:
    """A copy of the trained run, to draw into."""
    return shutil.copytree(trained, tmp_path_factory.mktemp("runs") / "run")


def test_the_figures_are_written_and_named(run):
    done = call("visualize", f"--workdir={run}", "--sentence=one; two")
    names = ["learning_curve.png", "attention.png"]
    assert done.stdout.split() == [str(run / "figures" / name) for name in names]
    for name in names:
        assert (run / "figures" / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sentence=one", "--layer=2"], "--layer is 2; it must be 1 to 1"),
        ([f"--sentence={'one; ' * 60}"], "--sentence has "),
    ],
)
def test_a_wrong_sentence_or_layer_is_one_line(run, flags, message):
    assert refuse("visualize", f"--workdir={run}", *flags).startswith(message)


def test_a_run_without_measurements_is_refused(run, tmp_path):
    shutil.copy(run / "config.json", tmp_path)
    assert (
        refuse("visualize", f"--workdir={tmp_path}") == f"{tmp_path} has no measurements yet; train it first"
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
