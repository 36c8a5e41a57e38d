"""Signals that ask a command to stop: saved state, exit status, and time until the end."""

import contextlib
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments import cli, train, translate
from experiments.run_folder import Run
from experiments.stop_signal import PREEMPTED, StopSignal
from tests.support.commands import ROOT, call, refuse, start
from transformer.training.metric_log import MetricsWriter


def test_the_first_signal_requests_a_stop_and_the_handlers_are_restored(capsys):
    before = signal.getsignal(signal.SIGINT)
    with StopSignal("stopping") as should_stop:
        assert not should_stop()
        signal.raise_signal(signal.SIGINT)
        assert should_stop()
        signal.raise_signal(signal.SIGINT)  # the same signal once more, as a scheduler may send it
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) == before
    assert capsys.readouterr().err == "stopping\n"


def test_a_second_signal_after_a_second_ends_the_process():
    code = """
import signal, time
from experiments.stop_signal import StopSignal
with StopSignal("stopping"):
    signal.raise_signal(signal.SIGTERM)
    time.sleep(1.1)
    signal.raise_signal(signal.SIGTERM)
    print("still here")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, b"")


def test_a_closed_terminal_requests_a_stop_and_takes_no_more_output():
    code = """
import signal
from experiments.stop_signal import StopSignal
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
with StopSignal("stopping") as should_stop:
    print("ready", flush=True)
    signal.raise_signal(signal.SIGHUP)
    print("lost", flush=True)
    assert should_stop()
"""
    terminal, stream = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, stdout=stream, stderr=stream, check=False, timeout=60
    )
    assert (done.returncode, os.read(terminal, 1_000)) == (0, b"ready\r\n")
    os.close(stream)
    os.close(terminal)


def test_an_ignored_hang_up_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal("stopping") as should_stop:
            signal.raise_signal(signal.SIGHUP)
            assert not should_stop()
    finally:
        signal.signal(signal.SIGHUP, before)


def run_python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )


# The main thread is in a C function, as during a compilation by XLA, so Python calls no signal handler.
STUCK = """
import ctypes, os, signal, threading, time
from experiments.stop_signal import StopSignal
libc = ctypes.CDLL(None)
with StopSignal("stopping", 1.0) as should_stop:
    {before}
    threading.Timer(0.5, os.kill, (os.getpid(), signal.{name})).start()
    started = time.monotonic()
    while time.monotonic() < started + 20:
        libc.usleep(20_000_000)
    print("still here")
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"])
def test_a_signal_before_the_first_step_ends_the_process_at_once(name):
    started = time.monotonic()
    done = run_python(
        f"import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n{STUCK.format(before='', name=name)}"
    )
    assert time.monotonic() - started < 10
    assert (done.returncode, done.stdout) == (PREEMPTED, "")
    assert "ended without saving: nothing to save since the last checkpoint" in done.stderr


def test_a_stop_does_not_wait_for_a_step_that_takes_too_long():
    done = run_python(STUCK.format(before="assert not should_stop()", name="SIGTERM"))
    assert (done.returncode, done.stdout) == (PREEMPTED, "")
    assert "ended without saving: the current step takes too long" in done.stderr


def test_saving_may_take_longer_than_the_time_limit():
    code = """
import signal, time
from experiments.stop_signal import StopSignal
with StopSignal("stopping", 0.5) as should_stop:
    assert not should_stop()
    signal.raise_signal(signal.SIGUSR1)
    assert should_stop()
    time.sleep(1.5)
time.sleep(1)
print("saved")
"""
    assert run_python(code).stdout == "saved\n"


@pytest.fixture(scope="module")
def endless(smoke) -> tuple[str, ...]:
    """Flags of a run that only a signal ends."""
    return (*smoke, "--config.train.steps=100000", "--config.train.validate_every=50000")


def children(pid: int) -> list[int]:
    files = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for file in files for child in file.read_text().split()]


def wait_for_line(process: subprocess.Popen, text: str) -> None:
    while text not in (line := process.stdout.readline()):
        assert line, "the process has ended"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_end_with_a_killed_parent_and_leave_no_shared_memory(endless, tmp_path):
    memory = set(os.listdir("/dev/shm"))
    flags = (*endless, "--config.data.workers=2", f"--workdir={tmp_path}/run")
    with start("train", *flags, text=True, stderr=subprocess.STDOUT) as process:
        wait_for_line(process, "step 10 ")
        workers = children(process.pid)
        assert len(workers) == 3  # two workers, and the process that tracks shared memory
        process.kill()
    end = time.monotonic() + 30
    while any(Path(f"/proc/{worker}").exists() for worker in workers) or set(os.listdir("/dev/shm")) - memory:
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow  # test_interruptions.py sends signals at random instants
def test_an_interrupt_of_the_whole_group_saves_and_prints_no_traceback(endless, tmp_path):
    """Ctrl-C also reaches the workers, but the parent process still needs their batches."""
    flags = (*endless, "--config.data.workers=1", f"--workdir={tmp_path}/run")
    with start("train", *flags, text=True, stderr=subprocess.STDOUT, start_new_session=True) as process:
        wait_for_line(process, "step 10 ")
        os.killpg(process.pid, signal.SIGINT)
        output = process.stdout.read()
        assert process.wait(timeout=60) == PREEMPTED
    assert "Traceback" not in output
    assert Run(tmp_path / "run").result["status"] == "preempted"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_interrupt_while_python_loads_packages_prints_no_traceback(smoke, tmp_path):
    with start("train", *smoke, f"--workdir={tmp_path}/run") as process:
        while b"numpy" not in Path(f"/proc/{process.pid}/maps").read_bytes():  # jax takes longer
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == -signal.SIGINT
        assert process.stderr.read() == b""


@contextlib.contextmanager
def closed_output() -> Iterator[None]:
    """Standard output is a pipe whose reader has ended."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as pipe, contextlib.redirect_stdout(pipe):
        yield


def test_a_closed_output_saves_the_run(smoke, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    with closed_output():
        assert cli.call(train, [*smoke, f"--workdir={tmp_path}/run"]) == PREEMPTED
    assert "Traceback" not in capsys.readouterr().err
    result = Run(tmp_path / "run").result
    assert result["status"] == "preempted"
    assert 5 < result["step"] < 10  # the first line, that of step 5, is printed during a later step


def test_translate_ends_normally_if_its_output_is_closed(trained, tmp_path, capsys):
    (tmp_path / "in").write_text("one\n")
    with closed_output():
        assert cli.call(translate, [f"--workdir={trained}", f"--input={tmp_path}/in"]) == 0
    assert capsys.readouterr().err == ""


def test_a_run_folder_that_is_deleted_is_noticed(smoke, tmp_path, monkeypatch):
    flush = MetricsWriter.flush

    def delete(writer):
        (tmp_path / "run" / "metrics.jsonl").unlink()
        flush(writer)

    monkeypatch.setattr(MetricsWriter, "flush", delete)
    flags = ("--config.train.steps=6", "--config.train.validate_every=2")
    line = refuse("train", *smoke, *flags, f"--workdir={tmp_path}/run")
    assert line == f"{tmp_path}/run was deleted during the training; start the training again"


def test_a_new_attempt_removes_the_traceback_of_an_earlier_one(smoke, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(train, "train", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            call("train", *smoke, f"--workdir={tmp_path}")
    assert (tmp_path / "error.txt").exists()

    def refuse_data(*_, **__):
        raise train.UserError("no data")

    monkeypatch.setattr(train, "open_task", refuse_data)
    assert refuse("train", f"--workdir={tmp_path}") == "no data"
    assert not (tmp_path / "error.txt").exists()
