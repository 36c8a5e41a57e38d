"""The command line that all commands share: flags, help, messages."""

from types import ModuleType

import pytest
from absl import flags as absl_flags

from experiments import cli
from experiments.process import USAGE
from tests.support.commands import ROOT


@pytest.fixture
def command():
    """A command with flags of every type, which prints the value of --runs."""
    module = ModuleType("command", "Does nothing.")

    def define_flags(flags):
        cli.define_config(flags)
        cli.define_workdir(flags)
        absl_flags.DEFINE_integer("runs", 1, "Number of runs.", lower_bound=1, flag_values=flags)
        absl_flags.DEFINE_integer("layer", 1, "Number of a layer.", flag_values=flags)
        absl_flags.DEFINE_float("seconds", 1.0, "Duration.", flag_values=flags)
        absl_flags.DEFINE_bool("json", False, "Print JSON.", flag_values=flags)

    module.define_flags = define_flags
    module.main = lambda flags: print(flags.runs)
    return module


@pytest.fixture
def refused(capsys, monkeypatch):
    """A function that calls a command with wrong arguments and returns the one-line error."""
    monkeypatch.chdir(ROOT)

    def refused(module, *arguments):
        assert cli.call(module, arguments) == USAGE
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        return line.removeprefix("error: ")

    return refused


def test_a_command_gets_its_flags(command, capsys):
    assert cli.call(command, ["--workdir=runs/a", "--runs", "3"]) == 0
    assert capsys.readouterr().out == "3\n"


def test_a_path_may_begin_with_the_home_folder(command, capsys, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    command.main = lambda flags: print(flags.workdir)
    assert cli.call(command, ["--workdir=~/runs/a"]) == 0
    assert capsys.readouterr().out == "/home/ada/runs/a\n"


def test_two_calls_do_not_share_flags(command, capsys):
    cli.call(command, ["--workdir=runs/a", "--runs=3"])
    cli.call(command, ["--workdir=runs/a"])
    assert capsys.readouterr().out == "3\n1\n"


@pytest.mark.parametrize("flag", ["--help", "-help", "-h", "--help=true"])
def test_help_describes_the_command_its_flags_and_the_fields(command, capsys, flag):
    assert cli.call(command, [flag]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Does nothing.")
    assert "\n  --workdir: Run folder. Required.\n" in printed
    assert "\n  --runs: Number of runs. Default: 1.\n" in printed
    assert "\n  model.positions=sinusoidal\n" in printed
    assert "config_field" not in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--workdir is missing; add --workdir=VALUE"),
        (["--workdir"], "--workdir has no value; write --workdir=VALUE"),
        (["--runs=0"], "--runs is '0'; it must be a positive integer"),
        (["--layer=2.5"], "--layer is '2.5'; it must be a whole number"),
        (["--seconds=long"], "--seconds is 'long'; it must be a number"),
        (["--json=maybe"], "--json is 'maybe'; it must be true or false"),
        (["--workdri=a"], "unknown flag --workdri; did you mean --workdir?"),
        (
            ["--colour=red"],
            "unknown flag --colour; choose one of: --config, --workdir, --runs, --layer, --seconds, --json",
        ),
        (["--workdir=a", "oops"], "unexpected argument 'oops'; see --help"),
        (
            ["configs/base.py:smoke", "--workdir=a"],
            "unexpected argument 'configs/base.py:smoke'; write --config=configs/base.py:smoke",
        ),
        (["--set=decode.seed=3"], "unknown flag --set; write --config.decode.seed=3 for this command"),
        (["--workdir=gs://bucket/run"], "--workdir is 'gs://bucket/run'; it must be a path on this machine"),
        (["--workdir="], "--workdir is empty; name a file or a folder"),
        (
            ["--workdir=~nobody-here/a"],
            "--workdir is '~nobody-here/a', but there is no such user; write ./~ for a name with a tilde",
        ),
        (["--model.positions=rope"], "unknown flag --model.positions; write --config.model.positions=VALUE"),
        (["--config.train.seed"], "--config.train.seed has no value; write --config.train.seed=VALUE"),
        (
            ["--config.train.diagnostics", "--workdir=a"],
            "--config.train.diagnostics has no value; write --config.train.diagnostics=VALUE",
        ),
    ],
)
def test_wrong_arguments_give_a_one_line_error(command, refused, arguments, message):
    assert refused(command, *arguments) == message


def test_a_command_for_trained_runs_suggests_set_instead_of_config(refused):
    module = ModuleType("command")
    module.define_flags = cli.define_changes
    message = "unknown flag --config.decode.seed; write --set=decode.seed=3 for this command"
    assert refused(module, "--config.decode.seed=3") == message
    assert refused(module, "--config.decode.seed", "3") == message
    assert refused(module, "--decode.seed=3") == "unknown flag --decode.seed; write --set=decode.seed=VALUE"


def test_a_subcommand_is_passed_to_main(capsys, refused):
    module = ModuleType("command")
    module.SUBCOMMANDS = ("train", "decode")
    module.define_flags = lambda flags: None
    module.main = lambda flags, subcommand: print(subcommand)
    assert cli.call(module, ["decode"]) == 0
    assert capsys.readouterr().out == "decode\n"
    assert refused(module) == "missing subcommand; choose one of: train, decode"
    assert refused(module, "test") == "unknown subcommand 'test'; choose one of: train, decode"
    assert refused(module, "train", "decode") == "unexpected argument 'decode'; see --help"


def test_config_flags_change_fields_of_the_config_file(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    configs = []
    command.main = lambda flags: configs.append(cli.config(flags))
    changes = ["--config.model.d_ff=96", "--config.train.patience", "3", "--config.data.options.lists=50"]
    assert cli.call(command, ["--workdir=a", "--config=configs/number_words.py:smoke", *changes]) == 0
    assert cli.call(command, ["--workdir=a"]) == 0
    config, missing = configs
    assert (config.model.d_ff, config.train.patience, config.data.options["lists"]) == (96, 3, 50)
    assert missing is None


def test_config_flags_need_a_config_file(command, refused):
    command.main = cli.config
    line = refused(command, "--workdir=a", "--config.train.steps=3")
    assert (
        line
        == "--config.train.steps needs --config; add --config=FILE, or give --workdir alone to resume a run"
    )
