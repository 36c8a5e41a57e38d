"""What README shows is run as written."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()


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


def test_commands_and_files_exist():
    root = Path(__file__).parent.parent
    for verb in set(re.findall(r"python -m experiments\.(\w+)", README)):
        assert (root / "experiments" / f"{verb}.py").is_file(), verb
    for path in set(
        re.findall(r"(?:configs|docs|tests|transformer|experiments)/[\w/]+\.(?:py|png|md|json)", README)
    ):
        assert (root / path).is_file(), path
