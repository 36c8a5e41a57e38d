"""The `prepare` command, which prepares data before training."""

import contextlib
import importlib.util
import io
import re
import sys

import pytest

from experiments.progress import preparing
from tests.support.commands import call, refuse


def test_data_is_prepared_once(smoke, tmp_path):
    flags = (*smoke, f"--config.data.data_dir={tmp_path}")
    first = call("prepare", *flags)
    assert "learning 300 bpe tokens" in first.stderr
    second = call("prepare", *flags, "--config.data.row_length=30")
    assert second.stderr == ""
    (line,) = second.stdout.strip().split("\n")
    folder = tmp_path / "number_words" / "en-de.60" / "2.0.0"
    dropped = int(re.search(r"training drops (\d+) pairs ", line).group(1))
    assert 0 < dropped < 60
    assert line == (
        f"number_words/en-de.60/2.0.0 is prepared in {folder}: pairs: test 60, validation 60, test_long 60, "
        f"train 60; training drops {dropped} pairs longer than data.row_length (30); vocabulary: 300 tokens"
    )
    assert first.stdout.strip() == line.replace(f"drops {dropped} ", "drops 0 ").replace("(30)", "(64)")


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is not None, reason="would download WMT")
def test_the_preparation_of_wmt14_needs_tensorflow(tmp_path):
    flags = ("--config=configs/wmt14.py", f"--config.data.data_dir={tmp_path}")
    message = "preparing wmt14_translate/de-en needs TensorFlow: pip install -e '.[prepare]'"
    assert refuse("prepare", *flags) == message
    assert refuse("train", *flags, f"--workdir={tmp_path}/run") == message
    assert not (tmp_path / "run").exists()


def test_progress_bars_do_not_write_to_standard_output(monkeypatch, capsys):
    """The first report comes while standard output is redirected, as it is during the preparation by TFDS."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with preparing() as progress:
        with contextlib.redirect_stdout(io.StringIO()):
            progress("writing train", "pairs", 0, None)
        progress("writing train", "pairs", 5, 5)
    print("prepared")
    captured = capsys.readouterr()
    assert captured.out == "prepared\n"
    assert "writing train" in captured.err
