"""The `visualize` command: the learning curve and the attention of a run."""

import shutil
from pathlib import Path

import pytest

from experiments.attention_views import view_sentences
from experiments.speed.decode import NumberTokenizer
from experiments.trained_model import Trained
from experiments.visualize import folder_name
from tests.support.commands import call, refuse
from tests.support.tiny import VOCAB, random_params, tiny_config
from transformer.config import ExperimentConfig
from transformer.decoding.translator import Hypothesis, Translator
from transformer.model import build_model


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory) -> Path:
    """A copy of the trained run, to which figures are added."""
    return shutil.copytree(trained, tmp_path_factory.mktemp("runs") / "run")


def test_the_translation_and_the_paths_of_all_figures_are_printed(run):
    translation, *paths = call("visualize", f"--workdir={run}", "--sentence=one; two").stdout.splitlines()
    assert translation
    figures = run / "figures"
    (folder,) = (path for path in figures.iterdir() if path.is_dir())
    assert folder.name.startswith("one_two-")
    names = [
        *("learning_curve", "positions_encoder_table", "positions_encoder_similarity"),
        *("positions_decoder_table", "positions_decoder_similarity"),
        *(f"{folder.name}/attention_{kind}_layer1" for kind in ("encoder", "decoder", "cross")),
        f"{folder.name}/masks",
    ]
    assert paths == [f"{figures}/{name}.png" for name in names]
    assert all(Path(path).read_bytes().startswith(b"\x89PNG") for path in paths)


def test_several_runs_share_a_figure_in_the_formats_asked_for(run, trained):
    """The folder of a variant of a grid may have a comma in its name."""
    run = shutil.copytree(run, run.parent / "post_norm,warmup_steps=1")
    done = call("visualize", f"--workdir={run}", f"--workdir={trained}", "--format=svg,svg")
    path = run / "figures" / "learning_curves.svg"
    assert done.stdout.split() == [str(path)]
    svg = path.read_text()
    for text in (f"{run}, train", f"{trained}, validation", "perplexity per token"):
        assert text in svg


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([f"--sentence={'one; ' * 60}"], "--sentence has "),
        (["--sentence="], "--sentence is empty; give a text"),
        (["--sentence=one", "--sentence= "], "--sentence is empty; give a text"),
        (["--page"], "--page needs --sentence; add --sentence=TEXT or remove --page"),
        (["--page", "--image=a.png"], "--page and --image cannot be used together; remove one of them"),
        (["--page", "--sentence=a", "--format=svg"], "--page and --format cannot be used together; "),
        (["--format=gif"], "--format is 'gif'; it must be one or more of: png, svg"),
        (["--format="], "--format is ''; it must be one or more of: png, svg"),
        (["--workdir="], "--workdir is empty; name a file or a folder"),
    ],
)
def test_wrong_flags_give_a_one_line_error_and_no_figure(trained, flags, message):
    assert refuse("visualize", f"--workdir={trained}", *flags).startswith(message)
    assert not (trained / "figures").exists()


def test_a_sentence_needs_one_run(trained):
    assert (
        refuse("visualize", f"--workdir={trained}", f"--workdir={trained}", "--sentence=one")
        == "--sentence needs one run, but --workdir has 2; name one"
    )


def test_different_sentences_have_different_folders():
    texts = ["one; two", "one, two", "漢字 " * 60, "../../x", "/", "\ud800"]
    names = [folder_name(text) for text in texts]
    assert len(set(names)) == len(texts)
    assert all(len(name.encode()) < 250 and "/" not in name and not name.startswith(".") for name in names)


def test_a_run_without_measurements_is_refused(run, tmp_path):
    shutil.copy(run / "config.json", tmp_path)
    assert (
        refuse("visualize", f"--workdir={tmp_path}")
        == f"{tmp_path} has no measurements yet; train the run first"
    )


def test_a_file_or_a_folder_in_the_place_of_a_result_is_named(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("figures"))
    (copy / "figures").touch()
    line = refuse("visualize", f"--workdir={copy}")
    assert line == f"{copy}/figures cannot be a folder; rename the file in its place"
    (copy / "figures").unlink()
    (copy / "figures/learning_curve.png").mkdir(parents=True)
    line = refuse("visualize", f"--workdir={copy}")
    assert line == f"{copy}/figures/learning_curve.png is a folder; rename it"


def test_a_translation_that_fills_the_last_position_is_drawn_without_eos(monkeypatch):
    model = build_model(tiny_config(positions="learned"), VOCAB)
    trained = Trained(ExperimentConfig(), NumberTokenizer(VOCAB), model, random_params(model), [0])
    longest = " ".join(["5"] * model.max_lengths.target)
    cut = [Hypothesis(longest, -1.0, ended=False)]
    monkeypatch.setattr(Translator, "hypotheses", lambda self, sentences: [cut])
    (sentence,) = view_sentences(trained, ["4"])
    views = {view.kind: view for view in sentence.views}
    assert views["cross"].queries == ["5"] * model.max_lengths.target
    assert views["decoder"].keys == ["1", *["5"] * (model.max_lengths.target - 1)]  # 1 is BOS
