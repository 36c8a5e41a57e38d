"""What README shows is run as written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_python_blocks_run(code, capsys):
    scope = {}
    exec(code, scope)
    assert scope["logits"].shape == (1, scope["target"].shape[1], scope["tokenizer"].vocab_size)
    assert len(capsys.readouterr().out.strip().split("\n")) == 1


def test_the_library_use_is_ten_lines():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    statements = [line for line in code.split("\n") if line and not line.startswith(("import", "from"))]
    assert len(statements) <= 10


@pytest.mark.slow
def test_own_text_is_trained_on_line_by_line(tmp_path):
    """In a folder that has the checkout's code, and runs/ of its own."""
    block = README.split("### Your own text")[1]
    first, *lines = re.findall(r"^    (.+)$", block.split("Without `:smoke`")[0], re.MULTILINE)
    assert first.endswith(" && mkdir -p runs/text")
    for folder in ("configs", "experiments", "transformer"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "runs" / "text").mkdir(parents=True)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    kept = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    for line in lines:
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=tmp_path,
            env={**kept, "PATH": path, "TFDS_DATA_DIR": str(tmp_path / "data")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, line + done.stderr
        if "experiments.train" in line:
            said = re.findall(r"^    runs/text/pairs.tsv: (.*?)\n    (.*)$", block, re.MULTILINE)[0]
            assert " ".join(said) in done.stderr
    assert "exact_match" in done.stdout


def test_commands_and_files_exist():
    for verb in set(re.findall(r"python -m experiments\.(\w+)", README)):
        assert (ROOT / "experiments" / f"{verb}.py").is_file(), verb
    for path in set(
        re.findall(r"(?:configs|docs|tests|transformer|experiments)/[\w/]+\.(?:py|png|md|json)", README)
    ):
        assert (ROOT / path).is_file(), path
