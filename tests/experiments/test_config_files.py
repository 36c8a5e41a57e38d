"""Loading of config files and sweep files."""

import pytest

from experiments.config_files import load_config, load_module, load_values
from tests.support.commands import ROOT
from tests.support.errors import refused


@pytest.fixture
def checkout(monkeypatch):
    """Makes the root of the checkout the current folder."""
    monkeypatch.chdir(ROOT)


def test_a_config_file_is_loaded_with_arguments_and_changes(checkout):
    config = load_config("configs/number_words.py:smoke,en-fr", {"model.d_ff": 96, "data.options.lists": "9"})
    assert (config.data.target, config.train.steps, config.model.d_ff) == ("fr", 20, 96)
    assert config.data.options == {"lists": "9"}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("configs/nope.py", "there is no config file 'configs/nope.py'"),
        ("number_words", "there is no config file 'number_words'; did you mean configs/number_words.py?"),
        ("configs/multi30k", "there is no config file 'configs/multi30k'; did you mean configs/multi30k.py?"),
        ("recurence", "there is no config file 'recurence'; did you mean configs/sweeps/recurrence.py?"),
    ],
)
def test_a_missing_file_is_refused_and_a_similar_file_is_suggested(checkout, path, message):
    assert refused(load_values, path) == message


def test_outside_the_checkout_the_error_names_the_folder_of_the_checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = refused(load_module, "configs/base.py", "config")
    assert line == f"there is no config file 'configs/base.py' here; run the command in {ROOT}"


def test_an_error_in_a_config_file_names_the_file(tmp_path):
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "empty.py").touch()
    (tmp_path / "fails.py").write_text("def get_config(argument):\n    return {}['key']\n")
    (tmp_path / "config.txt").touch()
    (tmp_path / "lines.py").write_text("raise ValueError('one\\ntwo')\n")
    (tmp_path / "ends.py").write_text("import sys\nsys.exit()\n")
    assert refused(load_values, str(tmp_path / "lines.py")).endswith("lines.py: ValueError: one two")
    assert "ends.py: SystemExit" in refused(load_values, str(tmp_path / "ends.py"))
    broken = refused(load_values, str(tmp_path / "broken.py"))
    assert broken == f"config file {tmp_path}/broken.py: ZeroDivisionError: division by zero"
    assert "does not define get_config" in refused(load_values, str(tmp_path / "empty.py"))
    assert refused(load_values, str(tmp_path / "fails.py")).endswith("fails.py: KeyError: 'key'")
    assert "is not a Python file" in refused(load_module, str(tmp_path / "config.txt"), "sweep")


def test_a_sweep_file_given_as_a_config_is_refused_with_the_right_command(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("CONFIG = 'configs/base.py'\nVARIANTS = {}\n")
    message = refused(load_values, str(path))
    launch = f"python -m experiments.launch --sweep={path}"
    assert message == f"{path} is a sweep file, not a config file; run {launch}"
