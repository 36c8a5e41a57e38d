"""The process of a command: set-up, exit statuses, standard streams."""

import errno
import os
import platform
import subprocess
import sys

import jax
import pytest

from experiments.process import INTERRUPTED, USAGE, exit_status, set_up_jax
from tests.support.commands import ROOT, environment
from tests.support.errors import refused
from transformer.config import UserError


def test_a_python_without_the_packages_gives_a_one_line_error():
    command = [sys.executable, "-S", "-m", "experiments.train"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.startswith("error: this Python lacks the packages of the project; run make env, then ")
    assert done.stderr.count("\n") == 1


def test_an_unavailable_platform_gives_a_one_line_error(monkeypatch):
    def devices():
        raise RuntimeError("Unable to initialize backend 'cuda'\nmore")

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(jax, "devices", devices)
    assert refused(set_up_jax) == (
        "JAX cannot use JAX_PLATFORMS='cuda': Unable to initialize backend 'cuda'; "
        "unset JAX_PLATFORMS, or install JAX for that platform"
    )


def test_arrays_are_float32_even_if_jax_enable_x64_is_set():
    jax.config.update("jax_enable_x64", True)
    try:
        set_up_jax()
        assert not jax.config.jax_enable_x64
    finally:
        jax.config.update("jax_enable_x64", False)


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UserError("that is wrong"), USAGE, "error: that is wrong\n"),
        (
            PermissionError(errno.EACCES, "Permission denied", "a/b"),
            USAGE,
            "error: a/b: Permission denied; change the permissions or name another file\n",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", "a/b"),
            USAGE,
            "error: a/b: Read-only file system; change the permissions or name another file\n",
        ),
        (
            OSError(errno.ENAMETOOLONG, "File name too long", "a/b"),
            USAGE,
            "error: a/b: File name too long; name another file\n",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "a/b"),
            USAGE,
            "error: a/b: the disk or quota is full; free some space\n",
        ),
        (KeyboardInterrupt(), INTERRUPTED, ""),
    ],
)
def test_an_error_becomes_an_exit_status(capsys, error, status, message):
    def fail():
        raise error

    assert exit_status(fail) == status
    assert capsys.readouterr().err == message


def test_a_bug_is_raised():
    with pytest.raises(ZeroDivisionError):
        exit_status(lambda: 1 / 0)


def test_a_closed_output_pipe_gives_no_traceback(monkeypatch, capsys):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert exit_status(lambda: print("x" * 100_000, flush=True)) == INTERRUPTED
    assert capsys.readouterr().err == ""


# Prints the number of page faults of the last of four allocations.
PAGE_FAULTS = """
import ctypes, resource, sys, threading
from experiments.process import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
faults = []

def allocate():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = ctypes.c_void_p(libc.malloc(50_000_000))
    libc.memset(block, 1, 50_000_000)
    libc.free(block)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

for _ in range(4):
    thread = threading.Thread(target=allocate)
    thread.start()
    thread.join()
print(faults[-1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc only")
def test_freed_memory_is_reused():
    """50 MB are 12,207 pages. Each setting needs a process, because it lasts until the process ends."""

    def count_faults(setting):
        command = [sys.executable, "-c", PAGE_FAULTS, setting]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert count_faults("keep") < 100 < 10_000 < count_faults("default")


@pytest.mark.parametrize(
    "streams",
    [pytest.param("<&-", marks=pytest.mark.slow), pytest.param(">&-", marks=pytest.mark.slow), "<&- >&-"],
)
def test_a_closed_standard_stream_does_not_stop_a_command(streams):
    command = f"{sys.executable} -m experiments.describe --config=configs/base.py:nope {streams}"
    done = subprocess.run(
        ["sh", "-c", command], cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == USAGE
    assert done.stderr == "error: the config argument is 'nope'; it must be one of: smoke\n"


UNPRINTABLE = """
import sys
from experiments.process import exit_status
from transformer.config import from_dict

sys.exit(exit_status(lambda: from_dict({"model": "wrong"})))
"""


def test_an_error_that_cannot_be_printed_keeps_its_status():
    command = f"{sys.executable} -c '{UNPRINTABLE}' 2>/dev/full"
    assert subprocess.run(["sh", "-c", command], cwd=ROOT, check=False).returncode == USAGE
