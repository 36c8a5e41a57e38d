"""The command that builds data ahead of time."""

import contextlib
import importlib.util
import io
import re
import sys

import pytest

from experiments.progress import preparing
from tests.experiments.test_commands import SMOKE, refuse, run  # noqa: F401

NEEDS = "error: preparing wmt14_translate/de-en needs TensorFlow: pip install -e '.[prepare]'"


def test_prepares_once(run, tmp_path):  # noqa: F811
    arguments = (SMOKE, f"--config.data.data_dir={tmp_path}")
    first = run("prepare", *arguments)
    assert "learning 300 bpe pieces" in first.stderr
    second = run("prepare", *arguments, "--config.data.row_length=30")
    assert second.stderr == ""
    (line,) = second.stdout.strip().split("\n")
    folder = tmp_path / "number_words" / "en-de.200" / "1.0.0"
    dropped = int(re.search(r"training drops (\d+) ", line).group(1))
    assert 0 < dropped < 200
    assert line == (
        f"number_words/en-de.200/1.0.0 is prepared in {folder}: pairs: test 200, validation 200, test_long 200, "
        f"train 200; training drops {dropped} longer than data.row_length (30); 300 pieces"
    )
    expected = line.replace(f"drops {dropped} ", "drops 0 ").replace("(30)", "(64)")
    assert first.stdout.strip() == expected


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is not None, reason="would download WMT")
def test_wmt14_needs_tensorflow_once(run, tmp_path):  # noqa: F811
    arguments = ("--config=configs/wmt14.py", f"--config.data.data_dir={tmp_path}")
    assert refuse(run, "prepare", *arguments) == NEEDS
    assert refuse(run, "train", *arguments, f"--workdir={tmp_path}/run") == NEEDS


def test_bars_leave_stdout_alone(monkeypatch, capsys):
    """The first call comes while TFDS's printing is held back."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with preparing() as tell:
        with contextlib.redirect_stdout(io.StringIO()):
            tell("writing train", 0, None)
        tell("writing train", 5, 5)
    print("prepared")
    said = capsys.readouterr()
    assert said.out == "prepared\n"
    assert "writing train" in said.err
