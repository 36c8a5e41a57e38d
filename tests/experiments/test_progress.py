"""The progress of long work where standard error is not a terminal."""

import time

import pytest

from experiments.process import only_our_log_lines
from experiments.progress import counting


@pytest.mark.parametrize(
    ("seconds", "line"),
    [(20.0, ""), (40.0, "test: 200 of 1,000 pairs, 5 per second\n")],
)
def test_only_long_work_prints_a_line_on_standard_error(capsys, monkeypatch, seconds, line):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with only_our_log_lines(), counting(1_000, "test", "pairs") as progress:
        now[0] += seconds
        progress(200)
    assert capsys.readouterr() == ("", line)
