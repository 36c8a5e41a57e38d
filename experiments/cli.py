"""Command line: defines and parses flags, prints help, and runs a command.

A command is a module with

    define_flags(flags)     defines the command's flags on an `absl.flags.FlagValues`
    main(flags)             runs the command and returns an exit status; None means 0
    SUBCOMMANDS             optional: names of subcommands; `main` gets the chosen name as a second argument

`run` runs a command and ends the process with the command's exit status. `call` returns the exit status;
tests use `call`.
"""

import dataclasses
import difflib
import os
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from types import ModuleType

from absl import flags as absl_flags
from absl.flags import FlagValues

from experiments.config_changes import read_changes
from experiments.config_files import load_config
from experiments.process import exit_status, only_our_log_lines, set_up_process
from transformer.config import ExperimentConfig, UserError, flatten, to_dict
from transformer.fidelity import is_read
from transformer.files import is_address

HELP_WIDTH = 100
# Flags whose values are paths, in any command.
PATH_FLAGS = {
    *("config", "sweep", "workdir", "init_from", "root", "compare", "ensemble", "input", "output"),
    *("prefix", "targets", "image", "attention", "source", "target", "figure", "out"),
}
REPEATED, REQUIRED = "repeat this option to specify a list of values", "other than None"  # absl's words
HELP = {"--help", "-help", "-h", "--help=true"}
SECTIONS = [field.name for field in dataclasses.fields(ExperimentConfig)]
ALLOWED_TEXT = {"an integer": "a whole number", "": "true or false"}  # absl's words for a type, and ours


def run(module: ModuleType) -> None:
    """Runs a command, then ends this process with the command's exit status."""
    set_up_process()
    absl_flags.FLAGS.mark_as_parsed()  # Grain reads absl's global flags
    sys.exit(call(module, sys.argv[1:]))


def call(module: ModuleType, arguments: Sequence[str]) -> int:
    """Runs a command and returns its exit status.

    An error that the user can mend is printed as one line on standard error. Any other exception is a bug:
    `call` raises the exception, and the process ends with status 1.

    Args:
      module: the command.
      arguments: the words that follow the command's name on the command line.
    """
    if HELP & set(arguments):
        print(_help(module))
        return 0
    with only_our_log_lines():
        return exit_status(lambda: _main(module, arguments))


def _main(module: ModuleType, arguments: Sequence[str]) -> int | None:
    flags, words = _parse(module, arguments)
    return module.main(flags, *words)


def define_config(flags: FlagValues, required: bool = False) -> None:
    """Defines the flag `--config` and the arguments `--config.FIELD=VALUE`.

    The function `config` reads them.
    """
    absl_flags.DEFINE_string(
        "config",
        None,
        "Config file; a colon and arguments may follow. --config.FIELD=VALUE changes a field of the config.",
        flag_values=flags,
        required=required,
    )
    # Each argument --config.FIELD=VALUE becomes a value of this flag.
    absl_flags.DEFINE_multi_string(
        "config_field", [], "FIELD=VALUE; write --config.FIELD=VALUE instead.", flag_values=flags
    )


def config(flags: FlagValues) -> ExperimentConfig | None:
    """Returns the checked config that `--config` names; if the flag is missing, returns None.

    Raises:
      UserError: the config cannot be loaded, or a value in the config is wrong.
    """
    from transformer.tasks import resolve

    changes = read_changes(flags.config_field, "config")
    if flags.config is None:
        for key in changes:
            raise UserError(
                f"--config.{key} needs --config; add --config=FILE, or give --workdir alone to resume a run"
            )
        return None
    return resolve(load_config(flags.config, changes))


def unread_fields(flags: FlagValues, config: ExperimentConfig) -> list[str]:
    """Returns the fields of the arguments --config.FIELD=VALUE that have no effect in a config."""
    return [key for key in read_changes(flags.config_field, "config") if not is_read(key, config)]


def define_workdir(flags: FlagValues, required: bool = True) -> None:
    """Defines the flag `--workdir`."""
    absl_flags.DEFINE_string("workdir", None, "Run folder.", flag_values=flags, required=required)


def define_changes(flags: FlagValues) -> None:
    """Defines the flag `--set` of the commands that use a trained model. The flag may be repeated."""
    absl_flags.DEFINE_multi_string(
        "set",
        [],
        "Changes a field of the run's config for this call only, for example --set=decode.beam_size=8. Only "
        "model.overflow, model.fused_attention, model.dtype and the fields of decode can change. May be "
        "given several times.",
        flag_values=flags,
    )


def _define(module: ModuleType) -> FlagValues:
    flags = FlagValues()
    module.define_flags(flags)
    return flags


def _help(module: ModuleType) -> str:
    flags = _define(module)
    fields = ""
    if "config" in flags:
        delattr(flags, "config_field")
        defaults = flatten(to_dict(ExperimentConfig())).items()
        lines = "".join(f"\n  {key}={value}" for key, value in defaults)
        fields = f"\n\nfields for --config.FIELD=VALUE, with the values of the paper's base model:{lines}"
    described = "\n".join(_flag_help(flags[name]) for name in flags)
    return f"{module.__doc__}\nflags:\n{described}{fields}"


def _flag_help(flag: absl_flags.Flag) -> str:
    text = " ".join(flag.help.replace(REPEATED, "").split()).rstrip(";")
    if any(REQUIRED in validator.message for validator in flag.validators):
        text += " Required."
    elif flag.value not in (None, False, [], ""):
        text += " Default: " + flag.default_as_str.strip("'") + "."
    line = f"--{flag.name}: {text}"
    return textwrap.fill(line, HELP_WIDTH, initial_indent="  ", subsequent_indent="      ")


def _parse(module: ModuleType, arguments: Sequence[str]) -> tuple[FlagValues, list[str]]:
    """Returns the flags and the other words: the subcommand, or none if the command has no subcommands.

    Raises:
      UserError: an argument is wrong or missing.
    """
    flags = _define(module)
    try:
        words = flags(["", *_config_fields(flags, arguments)])[1:]
    except absl_flags.UnrecognizedFlagError as error:
        names = [name for name in flags if name != "config_field"]
        near = difflib.get_close_matches(error.flagname, names, n=1, cutoff=0.7)
        if near:
            advice = f"did you mean --{near[0]}?"
        else:
            advice = f"choose one of: {', '.join(f'--{name}' for name in names)}"
        if error.flagname.partition(".")[0] in SECTIONS:
            for name, prefix in (("config", "--config."), ("set", "--set=")):
                if name in flags:
                    advice = f"write {prefix}{error.flagname}=VALUE"
                    break
        raise UserError(f"unknown flag --{error.flagname}; {advice}") from None
    except absl_flags.Error as error:
        raise UserError(_flag_message(flags, str(error))) from None
    for name in PATH_FLAGS & set(flags):
        if flags[name].value not in (None, []) or flags[name].present:
            flags[name].value = _local_path(name, flags[name].value)
    subcommands = getattr(module, "SUBCOMMANDS", ())
    if subcommands and (not words or words[0] not in subcommands):
        problem = f"unknown subcommand {words[0]!r}" if words else "missing subcommand"
        raise UserError(f"{problem}; choose one of: {', '.join(subcommands)}")
    for word in words[1 if subcommands else 0 :]:
        flag = "--config=" if "config" in flags and word.partition(":")[0].endswith(".py") else ""
        raise UserError(f"unexpected argument {word!r}; {f'write {flag}{word}' if flag else 'see --help'}")
    return flags, words


def _local_path(name: str, value: str | list[str]) -> str | list[str]:
    """Returns the value of a flag that names files, with the home folder instead of `~`.

    Raises:
      UserError: the value is empty or an address, or names the home folder of an unknown user.
    """
    if isinstance(value, list) and value:
        return [_local_path(name, item) for item in value]
    if not value:
        raise UserError(f"--{name} is empty; name a file or a folder")
    if is_address(value):
        raise UserError(f"--{name} is {value!r}; it must be a path on this machine")
    path = os.path.expanduser(value)
    if path.startswith("~"):
        raise UserError(
            f"--{name} is {value!r}, but there is no such user; write ./~ for a name with a tilde"
        )
    return path


def _config_fields(flags: FlagValues, arguments: Sequence[str]) -> Iterator[str]:
    """Replaces each argument --config.FIELD=VALUE with --config_field=FIELD=VALUE.

    Raises:
      UserError: an argument has no value, or the command does not accept --config.FIELD or --set.
    """
    arguments = iter(arguments)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        name = name.lstrip("-") if argument.startswith("-") else ""
        if not (name.startswith("config.") or name == "set"):
            yield argument
            continue
        if not equals:
            value = next(arguments, "")
            if not value or value.startswith("--"):
                raise UserError(f"--{name} has no value; write --{name}=VALUE")
        if name == "set":
            if "set" not in flags and "config" in flags:
                raise UserError(f"unknown flag --set; write --config.{value} for this command")
            yield f"--set={value}"
        else:
            change = f"{name.removeprefix('config.')}={value}"
            if "config" not in flags:
                raise UserError(
                    f"unknown flag --{name}"
                    + (f"; write --set={change} for this command" if "set" in flags else "; see --help")
                )
            yield f"--config_field={change}"


def _flag_message(flags: FlagValues, text: str) -> str:
    """Rewords an error message of absl."""
    if missing := re.fullmatch(r"flag --(\w+)=None: .* must have a value other than None\.", text):
        return f"--{missing[1]} is missing; add --{missing[1]}=VALUE"
    if missing := re.fullmatch(r"Missing value for flag --(\w+).*", text):
        return f"--{missing[1]} has no value; write --{missing[1]}=VALUE"
    if wrong := re.match(r"flag --(\w+)=(.*?): ", text):
        parser = flags[wrong[1]].parser
        allowed = ALLOWED_TEXT.get(parser.syntactic_help, parser.syntactic_help)
        if values := getattr(parser, "enum_values", None):
            allowed = f"one of: {', '.join(values)}"
        return f"--{wrong[1]} is {wrong[2]!r}; it must be {allowed}"
    return text.split("\n")[0]
