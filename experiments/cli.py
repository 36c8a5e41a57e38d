"""Command line: flags, exit statuses, and one-line errors that a user can mend.

A command is a module with

    define_flags(flags)     defines the command's flags on an `absl.flags.FlagValues`
    main(flags)             runs the command and returns an exit status; None means 0
    SUBCOMMANDS             optional: names of subcommands; `main` gets the chosen name as a second argument

`run` runs a command and ends the process with the command's exit status. `call` returns the exit status;
tests use `call`.
"""

import contextlib
import ctypes
import dataclasses
import difflib
import errno
import logging
import os
import platform
import re
import signal
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

from absl import flags as absl_flags
from absl import logging as absl_logging
from absl.flags import FlagValues

from experiments.config_changes import read_changes
from experiments.config_files import load_config
from transformer.config import ExperimentConfig, UserError, flatten, to_dict
from transformer.fidelity import is_read
from transformer.files import is_address, is_full

NAME_ERRORS = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR)
PERMISSION_ERRORS = (errno.EACCES, errno.EPERM, errno.EROFS)
USAGE, INTERRUPTED = UserError.exit_status, 130
HELP_WIDTH = 100
# Flags whose values are paths, in any command.
PATH_FLAGS = {
    *(
        "config",
        "sweep",
        "workdir",
        "init_from",
        "root",
        "compare",
        "ensemble",
        "input",
        "output",
        "prefix",
        "targets",
        "image",
    ),
    *("attention", "source", "target", "figure", "out"),
}
REPEATED, REQUIRED = "repeat this option to specify a list of values", "other than None"  # absl's words
HELP = {"--help", "-help", "-h", "--help=true"}
SECTIONS = [field.name for field in dataclasses.fields(ExperimentConfig)]
ALLOWED_TEXT = {"an integer": "a whole number", "": "true or false"}  # absl's words for a type, and ours


def run(module: ModuleType) -> None:
    """Runs a command, then ends this process with the command's exit status."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # see `experiments/__init__.py`
        signal.signal(signal.SIGINT, signal.default_int_handler)
    use_utf8()
    keep_freed_memory()
    absl_flags.FLAGS.mark_as_parsed()  # Grain reads absl's global flags
    sys.unraisablehook = _report_unraisable
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
    with _our_log_lines():
        return exit_status(lambda: _main(module, arguments))


def exit_status(function: Callable[[], int | None]) -> int:
    """Calls a function and returns its exit status. Prints an error that the user can mend as one line."""
    try:
        return function() or 0
    except UserError as error:
        return _refuse(error, error.exit_status)
    except BrokenPipeError:  # the process that reads our output has ended
        discard_output()
        return INTERRUPTED
    except OSError as error:
        if error.errno in PERMISSION_ERRORS + NAME_ERRORS:
            permissions = "change the permissions or " if error.errno in PERMISSION_ERRORS else ""
            advice = f"{permissions}name another file"
            return _refuse(f"{error.filename or 'a file'}: {error.strerror}; {advice}")
        if not is_full(error):
            raise
        return _refuse(f"{error.filename or 'writing'}: the disk or quota is full; free some space")
    except KeyboardInterrupt:
        return INTERRUPTED


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
        "model.overflow, model.dtype and the fields of decode can change. May be given several times.",
        flag_values=flags,
    )


def set_up_jax() -> None:
    """Checks that JAX has a device, and sets options of JAX.

    Arrays are float32, even if the environment sets JAX_ENABLE_X64. Compiled programs are stored for later
    processes, in the cache folder that JAX is configured with or, by default, in ~/.cache/transformer/xla.

    Raises:
      UserError: JAX_PLATFORMS names a platform that is not available.
    """
    import jax

    jax.config.update("jax_enable_x64", False)
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        platforms = os.environ.get("JAX_PLATFORMS", "")
        reason = (str(error).splitlines() or ["no such device"])[0]
        raise UserError(
            f"JAX cannot use JAX_PLATFORMS={platforms!r}: {reason}; "
            "unset JAX_PLATFORMS, or install JAX for that platform"
        ) from None
    with contextlib.suppress(RuntimeError):  # the user has no home folder
        if jax.config.jax_compilation_cache_dir is None:
            # One folder per machine, because a program compiled for one CPU may not run on another CPU.
            folder = Path.home() / ".cache" / "transformer" / "xla" / platform.node()
            jax.config.update("jax_compilation_cache_dir", str(folder))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    warnings.filterwarnings("ignore", ".*persistent compilation cache")  # a folder that cannot be written


def use_utf8() -> None:
    """Makes Python use UTF-8 for file names, arguments, files and standard streams.

    If the locale has another encoding, restarts the process in Python's UTF-8 mode.
    """
    if sys.getfilesystemencoding() != "utf-8":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    for stream in (sys.stdin, sys.stdout, sys.stderr):  # PYTHONIOENCODING may name another encoding
        stream.reconfigure(encoding="utf-8", errors="backslashreplace" if stream is sys.stderr else "replace")


def discard_output() -> None:
    """Discards all further standard output. Called when the process that reads the output has ended."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def keep_freed_memory() -> None:
    """Makes glibc reuse freed memory instead of returning it to the system.

    On CPU, XLA allocates memory when a step begins and frees the memory when the step ends. By default, glibc
    returns such large blocks to the system. At the next step the system must then clear every page again.
    With another C library, the function does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-8, 1)  # M_ARENA_MAX: all threads share one heap
        mallopt(-4, 0)  # M_MMAP_MAX: no block is mapped separately
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: no freed memory is returned


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
        near = difflib.get_close_matches(error.flagname, list(flags), n=1, cutoff=0.7)
        advice = f"did you mean --{near[0]}?" if near else "see --help"
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


def _refuse(error: UserError | str, status: int = USAGE) -> int:
    with contextlib.suppress(OSError):  # standard error cannot be written
        print(f"error: {error}", file=sys.stderr, flush=True)
    return status


@contextlib.contextmanager
def _our_log_lines() -> Iterator[None]:
    """Shows the log lines of this project only.

    Libraries report fatal errors as exceptions, so their log lines add nothing; Orbax logs the same error
    again from every thread.
    """
    absl_logging.set_verbosity(absl_logging.FATAL)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    loggers = [logging.getLogger(name) for name in ("transformer", "experiments")]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
            logger.propagate = True


def _report_unraisable(event) -> None:
    """Hides errors that Orbax's threads report after a failed write. The write itself raises an exception."""
    if "Event loop is closed" not in str(event.exc_value):
        sys.__unraisablehook__(event)
