"""README and docs/: the code and the commands in them run as written, and the files that they name exist."""

import os
import re
import subprocess
import sys

import pytest

from tests.support.commands import ROOT

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]
(CODE,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.slow
def test_the_python_code_runs(capsys):
    scope = {}
    exec(CODE, scope)
    target = scope["target"]
    assert scope["logits"].shape == (1, target.tokens.shape[1], scope["tokenizer"].vocab_size)
    assert len(capsys.readouterr().out.strip().split("\n")) == 1


def test_the_python_code_is_short():
    statements = [line for line in CODE.split("\n") if line and not line.startswith(("import", "from"))]
    assert len(statements) <= 10


@pytest.mark.slow
def test_the_commands_for_your_own_text_run_line_by_line(tmp_path):
    """Runs the commands in a folder that has links to the code and an empty `runs/`."""
    section = (ROOT / "docs" / "data.md").read_text().split("## Your own text")[1]
    first, *lines = re.findall(r"^    (.+)$", section.split("Without `:smoke`")[0], re.MULTILINE)
    assert first.endswith(" && mkdir -p runs/text")
    for folder in ("configs", "experiments", "transformer"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "runs" / "text").mkdir(parents=True)
    changes = {
        "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
        "TFDS_DATA_DIR": str(tmp_path / "data"),
    }
    env = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"} | changes
    for line in lines:
        done = subprocess.run(
            ["bash", "-c", line], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, line + done.stderr
        if "experiments.train" in line:
            report = re.findall(r"^    runs/text/pairs.tsv: (.*?)\n    (.*)$", section, re.MULTILINE)[0]
            assert " ".join(report) in done.stderr
    assert "exact_match" in done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_commands_and_files_of_a_page_exist(page):
    text = page.read_text()
    for command in set(re.findall(r"python -m experiments\.(\w+)", text)):
        assert (ROOT / "experiments" / f"{command}.py").is_file(), command
    pattern = r"(?:configs|docs|tests|transformer|experiments)/[\w/]+\.(?:py|png|md|json)"
    for path in set(re.findall(pattern, text)):
        assert (ROOT / path).is_file(), path
    packages = "|".join(path.name for path in (ROOT / "transformer").iterdir())
    for path in set(re.findall(rf"`((?:{packages})/[\w/]+\.py)`", text)):  # relative to the library
        assert (ROOT / "transformer" / path).is_file(), path
