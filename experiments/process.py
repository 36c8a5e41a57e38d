"""Process of a command: set-up, log lines, and the exit status with a one-line error that a user can mend."""

import contextlib
import ctypes
import errno
import logging
import os
import platform
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import logging as absl_logging

from transformer.config import UserError
from transformer.files import is_full

NAME_ERRORS = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR)
PERMISSION_ERRORS = (errno.EACCES, errno.EPERM, errno.EROFS)
USAGE, INTERRUPTED = UserError.exit_status, 130


def set_up_process() -> None:
    """Prepares this process to run a command."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # see `experiments/__init__.py`
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _use_utf8()
    keep_freed_memory()
    sys.unraisablehook = _report_unraisable


def _use_utf8() -> None:
    """Makes Python use UTF-8 for file names, arguments, files and standard streams.

    If the locale has another encoding, restarts the process in Python's UTF-8 mode.
    """
    if sys.getfilesystemencoding() != "utf-8":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    for stream in (sys.stdin, sys.stdout, sys.stderr):  # PYTHONIOENCODING may name another encoding
        stream.reconfigure(encoding="utf-8", errors="backslashreplace" if stream is sys.stderr else "replace")


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


def _report_unraisable(event) -> None:
    """Hides errors that Orbax's threads report after a failed write. The write itself raises an exception."""
    if "Event loop is closed" not in str(event.exc_value):
        sys.__unraisablehook__(event)


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


@contextlib.contextmanager
def only_our_log_lines() -> Iterator[None]:
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


def _refuse(error: UserError | str, status: int = USAGE) -> int:
    with contextlib.suppress(OSError):  # standard error cannot be written
        print(f"error: {error}", file=sys.stderr, flush=True)
    return status


def discard_output() -> None:
    """Discards all further standard output. Called when the process that reads the output has ended."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
