"""Runs commands in the process of the test, or in real processes."""

import contextlib
import importlib
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax

from experiments import cli
from experiments.process import USAGE

ROOT = Path(__file__).parent.parent.parent
# Flags of a run that trains in seconds. The run uses one device, however many the test process has, and few
# array shapes, since each shape is compiled.
SMOKE = (
    "--config=configs/number_words.py:smoke",
    "--config.train.parallelism=single",
    "--config.data.options.lists=60",
    "--config.decode.batch_tokens=4096",
)
# Flags of a run on text in the current folder.
TEXT = (
    f"--config={ROOT}/configs/text.py:smoke",
    "--config.data.data_dir=data",
    "--config.data.options.train=pairs.tsv",
    "--config.data.vocab_size=60",
    "--config.train.parallelism=single",
    "--config.train.steps=4",
    "--config.train.validate_every=2",
)


class Done(NamedTuple):
    """The exit status and the output of a command."""

    status: int
    stdout: str
    stderr: str


def call(
    name: str, *arguments: str | Path, status: int | None = 0, stdin: bytes = b"", cwd: Path = ROOT
) -> Done:
    """Runs a command in this process.

    Args:
      name: module of the command in `experiments`.
      arguments: arguments of the command.
      status: expected exit status; None accepts any.
      stdin: content of standard input.
      cwd: current folder.
    """
    module = importlib.import_module(f"experiments.{name}")
    streams = {stream: io.TextIOWrapper(io.BytesIO(), "utf-8") for stream in ("stdout", "stderr")}
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as source,
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(streams["stdout"]),
        contextlib.redirect_stderr(streams["stderr"]),
    ):
        source.buffer.write(stdin)
        source.seek(0)
        terminal, sys.stdin = sys.stdin, source
        try:
            ended = cli.call(module, list(map(str, arguments)))
        finally:
            sys.stdin = terminal
    for stream in streams.values():
        stream.flush()
    done = Done(ended, *(stream.buffer.getvalue().decode() for stream in streams.values()))
    assert status in (done.status, None), done.stderr
    return done


def refuse(name: str, *arguments: str | Path, **options) -> str:
    """Runs a command that must refuse its arguments. Returns its one-line error without "error: "."""
    done = call(name, *arguments, status=USAGE, **options)
    *before, line = done.stderr.splitlines()
    assert line.startswith("error: "), done.stderr
    assert not any("error" in text.lower() for text in before), done.stderr
    return line.removeprefix("error: ")


@contextlib.contextmanager
def start(name: str, *arguments: str | Path, **options) -> Iterator[subprocess.Popen]:
    """Runs a command in a real process, whose standard streams are pipes. Kills the process at the end."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    command = [sys.executable, "-m", f"experiments.{name}", *map(str, arguments)]
    with subprocess.Popen(command, **{"cwd": ROOT, "env": environment(), **pipes, **options}) as process:
        try:
            yield process
        finally:
            process.kill()


def environment() -> dict[str, str]:
    """The environment of a real process, with one device and the compiled programs of this session.

    Other flags of XLA than those of this process would be other programs.
    """
    changes = {
        "XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=1",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "PYTHONPATH": str(ROOT),
    }
    return os.environ | changes
