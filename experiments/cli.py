"""Command line: flags, exit statuses, and one-line errors that a user can mend.

A command is a module with

    define_flags(flags)     defines its flags on an `absl.flags.FlagValues`
    main(flags)             runs it and returns an exit status; None is 0
    SUBCOMMANDS             optional: names, one of which is given to `main` as its second argument

`run` runs a command as the process; `call` runs it in the current process, which tests do.
"""

import contextlib
import ctypes
import difflib
import logging
import os
import platform
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from absl import flags as absl_flags
from absl import logging as absl_logging
from absl.flags import FlagValues

from experiments.config_files import load_config, read_changes
from transformer.config import ExperimentConfig, UserError
from transformer.files import is_full

USAGE, PREEMPTED, INTERRUPTED = 2, 75, 130
ALLOWED_TEXT = {"an integer": "a whole number", "": "true or false"}  # by the parser's own description


def run(module: ModuleType) -> None:
    """Runs a command as this process, and exits with its status."""
    keep_freed_memory()
    absl_flags.FLAGS.mark_as_parsed()  # Grain reads them
    sys.unraisablehook = _report_unraisable
    sys.exit(call(module, sys.argv[1:]))


def call(module: ModuleType, arguments: Sequence[str]) -> int:
    """Runs a command and returns its exit status.

    Errors that a user can mend are printed on standard error in one line. Any other exception is a bug and
    is raised; the process then ends with status 1.

    Args:
      module: the command.
      arguments: the words after its name.
    """
    if "--help" in arguments:
        print(_help(module))
        return 0
    with _our_log_lines():
        try:
            flags, words = _parse(module, arguments)
            return module.main(flags, *words) or 0
        except UserError as error:
            return _refuse(error)
        except PermissionError as error:
            return _refuse(f"{error.filename}: {error.strerror}; change its permissions or name another file")
        except BrokenPipeError:  # the reader of our output has ended
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except OSError as error:
            if not is_full(error):
                raise
            return _refuse(f"{error.filename or 'writing'}: the disk or quota is full; free some space")
        except KeyboardInterrupt:
            return INTERRUPTED


def define_config(flags: FlagValues, required: bool = False) -> None:
    """Defines `--config` and `--config.FIELD=VALUE`; see `config`."""
    absl_flags.DEFINE_string(
        "config",
        None,
        "Config file, with its arguments after a colon. --config.FIELD=VALUE changes a field of it.",
        flag_values=flags,
        required=required,
    )
    # Arguments --config.FIELD=VALUE become values of this flag.
    absl_flags.DEFINE_multi_string(
        "config_field", [], "FIELD=VALUE, as --config.FIELD=VALUE.", flag_values=flags
    )


def config(flags: FlagValues) -> ExperimentConfig | None:
    """Returns the checked config of `--config`; None where the flag was not given.

    Raises:
      UserError: the config cannot be loaded or is wrong.
    """
    from transformer.tasks import resolve

    changes = read_changes(flags.config_field, "config")
    if flags.config is None:
        for key in changes:
            raise UserError(f"--config.{key} needs --config; a run resumes with its own config.json")
        return None
    return resolve(load_config(flags.config, changes))


def define_workdir(flags: FlagValues) -> None:
    """Defines the required flag `--workdir`."""
    absl_flags.DEFINE_string("workdir", None, "Run folder.", flag_values=flags, required=True)


def define_changes(flags: FlagValues) -> None:
    """Defines the repeated `--set` flag of the commands that use a trained model."""
    absl_flags.DEFINE_multi_string(
        "set",
        [],
        "Changes a field of the run's config for this call, as in --set=decode.beam_size=8: any field of "
        "decode, model.overflow or model.dtype. May be given several times.",
        flag_values=flags,
    )


def use_compilation_cache() -> None:
    """Keeps compiled programs on disk for later processes, unless a folder for them is configured already."""
    import jax

    if jax.config.jax_compilation_cache_dir is None:
        # One folder per machine: programs for one CPU may not run on another.
        folder = Path.home() / ".cache" / "transformer" / "xla" / platform.node()
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


class StopSignal:
    """A context in which the first SIGTERM or Ctrl-C only asks for a stop; the second ends the process.

    Calling the object returns whether a stop was asked for.
    """

    def __init__(self, message: str):
        """Prints `message` on standard error when the first signal arrives."""
        self._message = message
        self._received = False

    def __enter__(self) -> "StopSignal":
        numbers = (signal.SIGTERM, signal.SIGINT)
        self._previous = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        return self._received

    def _handle(self, number, _) -> None:
        self._received = True
        signal.signal(number, signal.SIG_DFL)
        print(self._message, file=sys.stderr, flush=True)


def keep_freed_memory() -> None:
    """Makes glibc reuse freed memory instead of returning it to the system.

    XLA on CPU allocates the memory of a step again at each step. By default glibc maps and unmaps such large
    blocks, and the system clears every page each time. Does nothing with another C library.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-8, 1)  # M_ARENA_MAX: all threads share one heap
        mallopt(-4, 0)  # M_MMAP_MAX: no block is mapped separately
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: nothing is returned


def _define(module: ModuleType) -> FlagValues:
    flags = FlagValues()
    module.define_flags(flags)
    return flags


def _help(module: ModuleType) -> str:
    flags = _define(module)
    described = flags.get_help(include_special_flags=False)
    return f"{module.__doc__}\nflags:\n{described}"


def _parse(module: ModuleType, arguments: Sequence[str]) -> tuple[FlagValues, list[str]]:
    """Returns the flags, and the subcommand where the command has some.

    Raises:
      UserError: arguments that the command does not accept.
    """
    flags = _define(module)
    try:
        words = flags(["", *_config_fields(flags, arguments)])[1:]
    except absl_flags.UnrecognizedFlagError as error:
        near = difflib.get_close_matches(error.flagname, list(flags), n=1, cutoff=0.7)
        advice = f"did you mean --{near[0]}?" if near else "see --help"
        raise UserError(f"unknown flag --{error.flagname}; {advice}") from None
    except absl_flags.Error as error:
        raise UserError(_flag_message(flags, str(error))) from None
    subcommands = getattr(module, "SUBCOMMANDS", ())
    if subcommands and (not words or words[0] not in subcommands):
        raise UserError(f"missing subcommand; choose one of: {', '.join(subcommands)}")
    for word in words[1 if subcommands else 0 :]:
        flag = "--config=" if "config" in flags and word.partition(":")[0].endswith(".py") else ""
        raise UserError(f"unexpected argument {word!r}; {f'write {flag}{word}' if flag else 'see --help'}")
    return flags, words


def _config_fields(flags: FlagValues, arguments: Sequence[str]) -> Iterator[str]:
    """Replaces --config.FIELD=VALUE; refuses it, or --set, where the command has only the other one."""
    arguments = iter(arguments)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        name = name.lstrip("-") if argument.startswith("-") else ""
        if not (name.startswith("config.") or name == "set"):
            yield argument
            continue
        if not equals:
            value = next(arguments, "")
        if name == "set":
            if "set" not in flags and "config" in flags:
                raise UserError(f"unknown flag --set; here it is --config.{value}")
            yield f"--set={value}"
        else:
            change = f"{name.removeprefix('config.')}={value}"
            if "config" not in flags:
                raise UserError(
                    f"unknown flag --{name}"
                    + (f"; here it is --set={change}" if "set" in flags else "; see --help")
                )
            yield f"--config_field={change}"


def _flag_message(flags: FlagValues, text: str) -> str:
    """Rewrites a message of absl."""
    if missing := re.fullmatch(r"flag --(\w+)=None: .* must have a value other than None\.", text):
        return f"--{missing[1]} is missing; see --help"
    if missing := re.fullmatch(r"Missing value for flag --(\w+).*", text):
        return f"--{missing[1]} has no value; write --{missing[1]}=VALUE"
    if wrong := re.match(r"flag --(\w+)=(.*?): ", text):
        allowed = flags[wrong[1]].parser.syntactic_help
        return f"--{wrong[1]} is {wrong[2]!r}; it must be {ALLOWED_TEXT.get(allowed, allowed)}"
    return text.split("\n")[0]


def _refuse(error: UserError | str) -> int:
    print(f"error: {error}", file=sys.stderr)
    return USAGE


@contextlib.contextmanager
def _our_log_lines() -> Iterator[None]:
    """Shows the log lines of this project only.

    What stops a library raises an exception; Orbax also logs it, from every thread.
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
    """Leaves out follow-up errors of Orbax's threads after a failed write, which is raised elsewhere."""
    if "Event loop is closed" not in str(event.exc_value):
        sys.__unraisablehook__(event)
