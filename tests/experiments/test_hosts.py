"""Several processes that train one run: equal results, lost processes, signals and refusals."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from absl.flags import FlagValues

from experiments import hosts
from experiments.run_folder import Run
from experiments.trained_model import load_trained
from tests.support.commands import SMOKE, call, environment, refuse, start
from transformer.config import UserError
from transformer.training.metric_log import read_metrics

NUM_PROCESSES, DEVICES = 2, 4
CONFIG = ("--config=configs/number_words.py:smoke", *SMOKE[2:])
LOST = (
    "error: lost another process of this run; run the same command again on all hosts to resume from the "
    "last checkpoint"
)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--process=0"],
            "--process and --processes need the address of process 0; add --coordinator=HOST:PORT",
        ),
        (
            ["--coordinator=auto", "--processes=2"],
            "--process and --processes need the address of process 0; add --coordinator=HOST:PORT",
        ),
        *(
            ([f"--coordinator={address}"], f"--coordinator is '{address}'; it must be HOST:PORT or auto")
            for address in ("a", ":1", "a b:1", "::1:77", "a:0", "a:99999", "1.2.3.4:80:90")
        ),
        (
            ["--coordinator=a:1", "--process=0"],
            "--coordinator=a:1 needs --process=INDEX and --processes=NUMBER; add them",
        ),
        (
            ["--coordinator=a:1", "--process=2", "--processes=2"],
            r"--process is 2; it must be at least 0 and below --processes (2)",
        ),
    ],
)
def test_flags_that_name_no_processes_are_refused(tmp_path, flags, message):
    assert refuse("train", *SMOKE, f"--workdir={tmp_path}/run", *flags) == message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["PMI_SIZE", "WORLD_SIZE"])
def test_a_cluster_that_jax_does_not_know_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setenv(name, "4")
    assert refuse("train", *SMOKE, f"--workdir={tmp_path}/run") == (
        f"{name} is 4, but JAX cannot find the processes of such a cluster; add --coordinator=HOST:PORT, "
        f"--process and --processes, or unset {name}"
    )


def hosts_of(*arguments: str) -> hosts.Hosts | None:
    """The processes that flags describe."""
    flags = FlagValues()
    hosts.define_flags(flags)
    flags(["", *arguments])
    return hosts.from_flags(flags)


@pytest.mark.parametrize(
    ("name", "value"),
    [("SLURM_STEP_NUM_TASKS", "2"), ("OMPI_COMM_WORLD_SIZE", "2"), ("TPU_WORKER_HOSTNAMES", "a,b")],
)
def test_the_processes_of_a_known_cluster_need_no_flags(monkeypatch, name, value):
    assert hosts_of() is None
    monkeypatch.setenv(name, value)
    assert hosts_of() == hosts.Hosts()


@pytest.mark.parametrize(
    ("name", "value"), [("SLURM_STEP_NUM_TASKS", "1"), ("TPU_WORKER_HOSTNAMES", "localhost")]
)
def test_a_cluster_with_one_process_trains_alone(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert hosts_of() is None
    assert hosts_of("--coordinator=a:1", "--process=0", "--processes=1") is None


def test_the_address_may_come_from_the_variable_of_jax(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "a:1")
    assert hosts_of("--process=1", "--processes=2") == hosts.Hosts("a:1", 1, 2)
    with pytest.raises(UserError, match="--coordinator=a:1 needs --process=INDEX"):
        hosts_of()


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


@contextlib.contextmanager
def start_all(
    *arguments: str, folders: list[Path], of_second: Mapping[str, Any] | None = None
) -> Iterator[list[subprocess.Popen]]:
    """Starts the processes of one run, each with its folder and `DEVICES` devices.

    Args:
      arguments: the flags of all processes.
      folders: the run folder of each process.
      of_second: further "flags" of process 1, and its number of "devices".
    """
    coordinator, of_second = f"--coordinator=127.0.0.1:{free_port()}", dict(of_second or {})
    with contextlib.ExitStack() as stack:
        processes = []
        for number, folder in enumerate(folders):
            changes = of_second if number == 1 else {}
            env = environment() | {"JAX_PLATFORMS": "cpu"}
            env["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={changes.get('devices', DEVICES)}"
            flags = (
                coordinator,
                f"--process={number}",
                f"--processes={NUM_PROCESSES}",
                f"--workdir={folder}",
            )
            process = start("train", *arguments, *flags, *changes.get("flags", ()), env=env)
            processes.append(stack.enter_context(process))
        yield processes


def train_jointly(folder: Path, *arguments: str, status: int = 0) -> list[str]:
    """Trains a run with all processes, and returns what each printed on standard error."""
    with start_all(*arguments, folders=[folder] * NUM_PROCESSES) as processes:
        errors = [process.communicate(timeout=300)[1].decode() for process in processes]
        assert [process.returncode for process in processes] == [status] * NUM_PROCESSES, errors
    return errors


def wait_for_step(process: subprocess.Popen, step: int) -> None:
    """Reads the output of a run until a step is logged."""
    for line in process.stdout:
        if line.startswith(b"step %d " % step):
            return
    pytest.fail(process.stderr.read().decode())


def kill_child(process: subprocess.Popen, number: signal.Signals) -> int:
    """Sends a signal to the process that trains, whose parent is `process`; returns its number."""
    (child,) = subprocess.check_output(["pgrep", "-P", str(process.pid)], text=True).split()
    os.kill(int(child), number)
    return int(child)


FIVE_STEPS = (
    *CONFIG,
    "--config.train.steps=5",
    "--config.train.log_every=1",
    "--config.train.diagnostics=true",
)


@pytest.fixture(scope="module")
def on_one_device(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("single") / "run"
    call("train", *FIVE_STEPS, "--config.train.parallelism=single", f"--workdir={folder}")
    return Run(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        ["--config.train.parallelism=auto"],
        ["--config.train.parallelism=mesh", "--config.train.fsdp=4", "--config.train.tensor=2"],
        ["--config.train.parallelism=pmap", "--config.train.accumulation=2"],
    ],
    ids=["mesh-8x1x1", "mesh-1x4x2", "pmap-8-accumulate-2"],
)
def test_two_processes_compute_the_updates_of_one_device(tmp_path, on_one_device, flags):
    """Dropout is on. Sums over devices round differently."""
    train_jointly(tmp_path / "run", *FIVE_STEPS, *flags)
    run, expected = Run(tmp_path / "run"), on_one_device
    records, expected_records = read_metrics(run.folder), read_metrics(expected.folder)
    assert len(records) == len(expected_records) == 6
    for record, reference in zip(records, expected_records, strict=True):
        assert record["loss"] == pytest.approx(reference["loss"], rel=1e-5)
        diagnostics = [name for name in reference if "entropy" in name or "gradient_norm" in name]
        assert bool(diagnostics) == (record["kind"] == "train")
        for name in diagnostics:
            assert record[name] == pytest.approx(reference[name], rel=1e-4), name
    params, reference = load_trained(run).params, load_trained(expected).params
    difference = jax.tree.map(lambda a, b: np.float64(a) - np.float64(b), params, reference)
    assert optax.tree.norm(difference) / optax.tree.norm(reference) < 1e-4


THIRTY_STEPS = (*CONFIG, "--config.train.steps=30", "--config.train.validate_every=10")


@pytest.mark.slow
def test_a_run_that_lost_a_process_resumes_bit_for_bit(tmp_path):
    train_jointly(tmp_path / "whole", *THIRTY_STEPS)
    run = tmp_path / "run"
    with start_all(*THIRTY_STEPS, folders=[run, run]) as (first, second):
        wait_for_step(first, 15)
        kill_child(second, signal.SIGKILL)
        error = first.communicate(timeout=1.5 * hosts.HEARTBEAT_SECONDS)[1].decode()
        assert (first.returncode, error.splitlines()[-1]) == (75, LOST), error
        killed = second.communicate(timeout=10)[1].decode()
        assert (second.returncode, killed.splitlines()[-1]) == (
            137,
            "error: ended by SIGKILL; run the same command again on all hosts to resume from the last "
            "checkpoint",
        )
    errors = train_jointly(run)
    assert re.search("resuming from step [12]0", errors[0])
    assert Run(run).result["params_sha256"] == Run(tmp_path / "whole").result["params_sha256"]


@pytest.mark.slow
def test_a_process_that_is_silent_is_lost(tmp_path):
    """JAX ends the other process from C++, with a stack trace, which its parent replaces by one line."""
    run = tmp_path / "run"
    with start_all(*CONFIG, "--config.train.steps=100000", folders=[run, run]) as (first, second):
        wait_for_step(first, 5)
        frozen, started = kill_child(second, signal.SIGSTOP), time.monotonic()
        error = first.communicate(timeout=3 * hosts.HEARTBEAT_SECONDS)[1].decode()
        assert hosts.HEARTBEAT_SECONDS / 2 < time.monotonic() - started < 1.5 * hosts.HEARTBEAT_SECONDS
        assert (first.returncode, error.splitlines()[-1]) == (75, LOST)
        assert "stack trace" not in error
        os.kill(frozen, signal.SIGKILL)


@pytest.mark.slow
def test_a_signal_to_one_process_saves_all_at_one_step(tmp_path):
    run = tmp_path / "run"
    with start_all(*CONFIG, "--config.train.steps=100000", folders=[run, run]) as processes:
        wait_for_step(processes[0], 5)
        processes[1].send_signal(signal.SIGTERM)
        outputs = [process.communicate(timeout=60) for process in processes]
        assert [process.returncode for process in processes] == [75, 75], outputs
    step = Run(run).result["step"]
    assert os.listdir(run / "checkpoints") == [str(step)]
    assert Run(run).result["status"] == "preempted"
    train_jointly(run, *CONFIG, f"--config.train.steps={step + 2}", status=2)  # steps are part of the run


@pytest.mark.slow
def test_all_processes_resume_from_a_checkpoint_that_all_can_read(tmp_path):
    """Each process reads its part of the weights from a file that is cut off."""
    run, flags = tmp_path / "run", ("--config.train.parallelism=mesh", "--config.train.fsdp=8")
    train_jointly(run, *THIRTY_STEPS, *flags)
    digest = Run(run).result["params_sha256"]
    files = (run / "checkpoints" / "30" / "params" / "d").iterdir()
    largest = max(files, key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    errors = train_jointly(run)
    for error in errors:
        assert re.search("warning: checkpoint .*/30 is .*; resuming from step 20", error), error
    assert Run(run).result["params_sha256"] == digest


@pytest.mark.slow
def test_a_refused_config_ends_all_processes_with_its_message(tmp_path):
    errors = train_jointly(tmp_path / "run", *CONFIG, "--config.train.parallelism=single", status=2)
    for error in errors:
        message = "error: train.parallelism is single, which uses one process, but this run has 2; set it to mesh, pmap or auto"
        assert error.splitlines()[-1] == message


@pytest.mark.slow
def test_processes_that_do_not_share_the_run_folder_end_with_one_message(tmp_path):
    folders = [tmp_path / "here", tmp_path / "there"]
    with start_all(*CONFIG, folders=folders) as processes:
        errors = [process.communicate(timeout=60)[1].decode() for process in processes]
    for error in errors:
        assert error.splitlines()[-1] == (
            f"error: process 1 does not see the run folder of process 0 at {tmp_path}/there; name a folder that "
            "all hosts share"
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"flags": ["--config.train.seed=5"]},
            "process 1 has a different config from process 0: train.seed is 0 there, 5 here; start the same "
            "command on all hosts",
        ),
        (
            {"devices": 1},
            "the processes have different numbers of devices (process 0 has 4, process 1 has 1); give each "
            "the same number",
        ),
    ],
    ids=["config", "devices"],
)
def test_processes_that_differ_are_refused(tmp_path, changes, message):
    run = tmp_path / "run"
    with start_all(*CONFIG, folders=[run, run], of_second=changes) as processes:
        errors = [process.communicate(timeout=60)[1].decode() for process in processes]
        assert [process.returncode for process in processes] == [2, 2], errors
    for error in errors:
        assert error.splitlines()[-1] == f"error: {message}"


@pytest.mark.slow
def test_a_process_that_waits_for_the_others_can_be_stopped(tmp_path):
    with start_all(*CONFIG, folders=[tmp_path / "run"]) as (process,):
        line = process.stderr.readline().decode()
        assert line.startswith("waiting up to 300 s for the processes of this run at 127.0.0.1:")
        time.sleep(8)  # the child loads its packages
        process.send_signal(signal.SIGINT)
        error = process.communicate(timeout=10)[1].decode()
    assert (process.returncode, error.splitlines()) == (
        75,
        ["stopped before the first step; nothing to save"],
    )


@pytest.mark.faults
def test_a_process_gives_up_waiting_for_the_others(tmp_path):
    """JAX ends the process from C++ after `CONNECT_SECONDS`."""
    with start_all(*CONFIG, folders=[tmp_path / "run"]) as (process,):
        error = process.communicate(timeout=1.3 * hosts.CONNECT_SECONDS)[1].decode()
    assert process.returncode == 2
    assert error.splitlines()[1:] == [
        "error: not all processes of this run have joined within 300 s; check --coordinator, --process and "
        "--processes, and start all processes"
    ]
