"""Runs that are killed or signalled at random instants, on real processes.

Whatever the instant, the same command resumes the run, and the weights are those of an uninterrupted run.

A seeded sample of cases runs by default; CASES=all runs all of them. docs/reliability.md has the figures.
"""

import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from tensorboardX.proto.event_pb2 import Event

from experiments.run_folder import Run
from experiments.stop_signal import PREEMPTED, SIGNALS
from tests.support.commands import ROOT, SMOKE, environment
from transformer.files import lock
from transformer.training.metric_log import read_metrics

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and /dev/shm"),
]

SEED = 20261128
NUM_KILLS, NUM_SIGNALS = 50, 40
NUM_SAMPLED = {"kill": 8, "signal": 6}
STEPS, VALIDATE_EVERY = 24, 6
SIGNAL_SECONDS = 10.0  # the longest time from a signal to the end of the process
# Flags and numbers of devices of successive starts, by mode.
MODES = {
    "plain": ((), (1,)),
    "workers": (("--config.data.workers=2",), (1,)),
    "accumulation": (("--config.train.accumulation=2",), (1,)),
    "pmap": (("--config.train.parallelism=pmap",), (2,)),
    "device_count": (("--config.train.parallelism=pmap",), (2, 4, 1)),
}
PHASES = ("start", "preparation", "compilation", "training", "validation", "save")
ALL = [("kill", number) for number in range(NUM_KILLS)] + [
    ("signal", number) for number in range(NUM_SIGNALS)
]


def sample() -> list[tuple[str, int]]:
    if os.environ.get("CASES") == "all":
        return ALL
    rng = random.Random(SEED)
    return [
        case
        for kind, count in NUM_SAMPLED.items()
        for case in rng.sample([case for case in ALL if case[0] == kind], count)
    ]


class Attempt:
    """A process that trains the run in a folder."""

    def __init__(self, folder: Path, mode: str, number: int):
        """Starts the process; `number` counts the starts of the run, from 0."""
        flags, device_counts = MODES[mode]
        devices = device_counts[number % len(device_counts)]
        self.folder, self.run, self.case = folder, folder / "run", uuid.uuid4().hex
        changes = {
            "XLA_FLAGS": "--xla_backend_optimization_level=0 "
            f"--xla_force_host_platform_device_count={devices}",
            "JAX_COMPILATION_CACHE_DIR": str(folder / f"xla-{devices}"),
            "TMPDIR": str(folder / "tmp"),
            "INTERRUPTED_CASE": self.case,
        }
        (folder / "tmp").mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "experiments.train", *SMOKE, *flags, f"--workdir={self.run}"]
        command += [
            f"--config.data.data_dir={folder}/data",
            f"--config.train.steps={STEPS}",
            f"--config.train.validate_every={VALIDATE_EVERY}",
            "--config.train.log_every=1",
            "--config.model.dropout_rate=0.1",
        ]
        self._log_path = folder / f"log-{number}.txt"
        with self._log_path.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment() | changes, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def log(self) -> str:
        return self._log_path.read_text()

    def is_in(self, phase: str, step: int) -> bool:
        """Returns whether the process has reached a phase; `step` is the training step to wait for."""
        steps = {record["step"] for record in read_metrics(self.run) if record["kind"] == "train"}
        saved = {path.name.partition(".")[0] for path in (self.run / "checkpoints").glob("*")}
        return {
            "start": True,
            "preparation": (self.folder / "data").exists(),
            "compilation": "parameters" in self.log,
            "training": step in steps,
            "validation": -(-step // VALIDATE_EVERY) * VALIDATE_EVERY in steps,
            "save": str(-(-step // VALIDATE_EVERY) * VALIDATE_EVERY) in saved,
        }[phase]

    def wait_for(self, phase: str, step: int) -> None:
        """Waits until the process has reached a phase or has ended."""
        while self.process.poll() is None and not self.is_in(phase, step):
            time.sleep(0.002)

    def check_that_nothing_is_left(self) -> None:
        """Checks that the processes of the run end with it."""
        end = time.monotonic() + 10
        while self._processes():
            assert time.monotonic() < end, self._processes()
            time.sleep(0.1)

    def _processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("INTERRUPTED_CASE") == self.case:
                    found.append(process)
            except psutil.Error:
                continue
        return found


def unused_memory() -> set[str]:
    """The names of shared memory that no process has mapped, and that will stay until the system restarts."""
    names = {path.name for path in Path("/dev/shm").iterdir()}
    for path in Path("/proc").glob("[0-9]*/maps"):
        try:
            content = path.read_text()
        except OSError:
            continue
        names = {name for name in names if f"/dev/shm/{name}" not in content}
    return names


def tensorboard_steps(folder: Path) -> set[int]:
    """The steps whose training loss TensorBoard shows."""
    steps = set()
    for path in folder.glob("events.*"):
        content = path.read_bytes()
        while len(content) >= 12:  # length, its checksum, the event, its checksum
            size = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + size])
            if any(value.tag == "train/loss" for value in event.summary.value):
                steps.add(event.step)
            content = content[16 + size :]
    return steps


@pytest.fixture(scope="module")
def uninterrupted(session_folder) -> Callable[[str], Run]:
    """Returns the uninterrupted run of a mode, which is trained at the first use."""

    def train(mode: str) -> Run:
        folder = session_folder / "uninterrupted" / mode
        with lock(folder, wait=True):
            if not (folder / "run" / "result.json").exists():
                attempt = Attempt(folder, mode, 0)
                assert attempt.process.wait() == 0, attempt.log
        return Run(folder / "run")

    return train


def records(run: Run) -> list[tuple]:
    return [(record["step"], record["kind"], record["loss"]) for record in read_metrics(run.folder)]


@pytest.mark.parametrize(("kind", "number"), sample())
def test_an_interrupted_run_ends_like_an_uninterrupted_one(uninterrupted, tmp_path, kind, number):
    rng = random.Random(f"{SEED} {kind} {number}")
    mode, expected = list(MODES)[number % len(MODES)], uninterrupted(list(MODES)[number % len(MODES)])
    unused = unused_memory()
    num_starts = rng.choice([1, 2])
    for start in range(num_starts):
        phase = PHASES[(number // len(MODES) + start) % len(PHASES)]
        attempt = Attempt(tmp_path, mode, start)
        attempt.wait_for(phase, step=rng.randint(1, STEPS))
        time.sleep(rng.uniform(0, {"start": 5, "compilation": 3, "preparation": 0.6}.get(phase, 0.2)))
        if kind == "kill":
            attempt.process.kill()
            attempt.process.wait()
        else:
            check_signal(attempt, rng.choice(SIGNALS))
        attempt.check_that_nothing_is_left()

    attempt = Attempt(tmp_path, mode, num_starts)
    assert attempt.process.wait() == 0, attempt.log
    attempt.check_that_nothing_is_left()
    run = Run(attempt.run)
    if mode == "device_count":  # sums over other numbers of devices are rounded differently
        assert [record[:2] for record in records(run)] == [record[:2] for record in records(expected)]
        np.testing.assert_allclose(
            *([record[2] for record in records(each)] for each in (run, expected)), rtol=1e-4
        )
    else:
        assert run.result["params_sha256"] == expected.result["params_sha256"]
        assert records(run) == records(expected)
    assert tensorboard_steps(run.folder / "tensorboard") == set(range(1, STEPS + 1))
    assert not list((tmp_path / "tmp").iterdir())
    assert not list(tmp_path.rglob("*.partial")) + list(tmp_path.rglob("incomplete*"))
    assert unused_memory() <= unused


def check_signal(attempt: Attempt, number: signal.Signals) -> None:
    """Sends a signal; checks the exit status and the time until the end."""
    is_loading = attempt.log == ""  # Python loads the packages, and the system handles the signal
    started = time.monotonic()
    attempt.process.send_signal(number)
    status = attempt.process.wait()
    assert time.monotonic() - started < SIGNAL_SECONDS
    if attempt.log.endswith(f"{STEPS} of {STEPS} steps") or status == 0:
        assert Run(attempt.run).result["status"] == "done"
    elif is_loading:
        assert status in (-number, PREEMPTED)
    else:
        assert status == PREEMPTED, attempt.log
        assert "Traceback" not in attempt.log
