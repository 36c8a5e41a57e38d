"""What every command shares: flags, exit statuses, one clear line for what a user can mend."""

import ctypes
import functools
import json
import logging
import os
import platform
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags
from absl import logging as absl_logging

from transformer.config import ExperimentConfig, UserError, check_key, from_dict
from transformer.disk import is_full

USAGE, PREEMPTED, INTERRUPTED = 2, 75, 130
_AS_JSON = {"True": "true", "False": "false", "None": "null"}  # as config flags have them


def run(main: Callable[..., int | None], words: Sequence[str] = ()) -> None:
    """Parses flags, runs `main` and exits with its status.

    Exit status: 0 done; 2 bad usage or config; 75 preempted and saved; 1, with a traceback, a bug.

    Args:
      main: the command; it is given the word, where there are `words`.
      words: of which the user types one after the command's name.
    """
    keep_memory()
    app.run(
        lambda argv: sys.exit(_guarded(lambda: main(*argv[1:]))),
        flags_parser=functools.partial(_parse, words=words),
    )


def config_from_flag(value) -> ExperimentConfig | None:
    """The validated config of a `--config` flag; None where the flag was not given."""
    return None if value is None else from_dict(value.to_dict())


def define_changes() -> flags.FlagHolder:
    """The repeated `--set` flag of what uses a trained model; see `changes` and `runs.changed`."""
    return flags.DEFINE_multi_string(
        "set",
        [],
        "Changes a field of the run's config for this call, as in --set=decode.beam_size=8: any of decode.*, "
        "model.overflow and model.dtype; may be given several times",
    )


def changes(texts: Sequence[str], flag: str = "set") -> dict[str, Any]:
    """The KEY=VALUE of a flag; of a key that comes twice, the last one.

    A value is read as JSON, or as Python's True, False or None; what is neither is a string.

    Raises:
      UserError: one has no "=".
    """
    values: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--{flag}={text}: it must be KEY=VALUE")
        try:
            values[key] = json.loads(_AS_JSON.get(value, value))
        except json.JSONDecodeError:
            values[key] = value
    return values


def use_compilation_cache() -> None:
    """Keeps compiled programs on disk, so that the next process of the same shapes starts at once."""
    import jax

    # One folder a machine: programs for one CPU may not run on another.
    default = Path.home() / ".cache" / "transformer" / "xla" / platform.node()
    jax.config.update("jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR", str(default)))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def stop_signal(says: str) -> Callable[[], bool]:
    """A function that says whether to stop: after a first SIGTERM or Ctrl-C; a second one kills.

    Args:
      says: what the user is told at once.
    """
    received = []

    def handle(number, _):
        received.append(number)
        signal.signal(number, signal.SIG_DFL)
        print(says, file=sys.stderr, flush=True)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)
    return lambda: bool(received)


def keep_memory() -> None:
    """Lets a process reuse what it has freed, instead of giving it back to the system.

    XLA on CPU asks malloc for a step's memory anew at each step. By default glibc maps such large blocks and
    unmaps them, and the system fills every page with zeros again. A matter of glibc alone; nothing elsewhere.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-8, 1)  # M_ARENA_MAX: the threads share one heap
        mallopt(-4, 0)  # M_MMAP_MAX: nothing is mapped apart
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: nothing is given back


def _guarded(main):
    _quiet_libraries()
    try:
        return main()
    except UserError as error:
        return _refuse(error)
    except PermissionError as error:
        return _refuse(UserError(f"{error.filename}: {error.strerror}"))
    except BrokenPipeError:  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if not is_full(error):
            raise
        return _refuse(UserError(f"{error.filename or 'writing'}: the disk or quota is full; make room"))
    except KeyboardInterrupt:
        return INTERRUPTED


def _parse(arguments: Sequence[str], words: Sequence[str]) -> list[str]:
    try:
        given = {argument.lstrip("-").partition("=")[0] for argument in arguments if argument[:1] == "-"}
        changes = sorted(name for name in given if name.startswith("config."))
        if changes and "config" not in given:
            raise UserError(f"--{changes[0]} needs --config; a run goes on with its own config.json")
        for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
            name, equals, value = argument.lstrip("-").partition("=")
            if not argument.startswith("-"):
                continue
            if name.startswith("config."):
                check_key(name.removeprefix("config."))
            elif name == "config":
                path = (value if equals else following).partition(":")[0]
                if not Path(path).is_file():
                    raise UserError(f"there is no config file {path!r}")
        left_over = flags.FLAGS(arguments)[1:]
        if words and (not left_over or left_over[0] not in words):
            raise UserError(f"say what, one of: {', '.join(words)}; see --help")
        for unexpected in left_over[1 if words else 0 :]:
            raise UserError(f"unexpected argument {unexpected!r}; see --help")
        return [arguments[0], *left_over]
    except SystemExit:  # --help, which absl ends with status 1
        sys.exit(0)
    except Exception as error:  # a config file is code: whatever it raises here is bad usage
        sys.exit(_refuse(error))


def _refuse(error: BaseException) -> int:
    """Prints the one line; config_flags wraps what a config file raises into a traceback of many."""
    text = str(error).strip()
    wrapped = "Error whilst parsing config file" in text
    line = text.split("\n")[-1 if wrapped else 0].strip().removeprefix("transformer.config.UserError: ")
    if missing := re.fullmatch(r"flag --(\w+)=None: .* must have a value other than None\.", line):
        line = f"--{missing[1]} is missing; see --help"
    if wrong := re.fullmatch(
        r"flag --(?:config\.)?([\w.]+)=(.*): (?:invalid literal|could not convert).*", line
    ):
        line = f"{wrong[1]} is {wrong[2]!r}; it must be a number"
    print(f"error: {line}", file=sys.stderr)
    return USAGE


def _quiet_libraries() -> None:
    """Shows our own log lines. What stops a library is raised; Orbax also logs it, from every thread."""
    absl_logging.set_verbosity(absl_logging.FATAL)
    sys.unraisablehook = _unraisable
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("transformer", "experiments"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False


def _unraisable(what) -> None:
    """Passes over what Orbax's threads run into after a failed write, which is raised elsewhere."""
    if "Event loop is closed" not in str(what.exc_value):
        sys.__unraisablehook__(what)
