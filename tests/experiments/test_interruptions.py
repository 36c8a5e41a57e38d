"""Runs that are killed or signalled at random instants, on real processes.

Whatever the instant, the same command resumes the run, and the weights are those of an uninterrupted run.

A seeded sample of cases runs by default; CASES=all runs all of them. docs/reliability.md has the figures.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from tensorboardX.proto.event_pb2 import Event

from experiments.run_folder import Run
from experiments.stop_signal import PREEMPTED, SIGNALS
from tests.support.commands import SMOKE, environment, start
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
RUN_SECONDS = 300.0  # more than a run takes
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
MAX_DELAYS = {"start": 5.0, "preparation": 0.6, "compilation": 3.0}  # seconds from the start of a phase
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

    def __init__(self, process: subprocess.Popen, run: Path, log: Path, case: str):
        self.process, self.run, self._log, self._case = process, run, log, case

    @property
    def log(self) -> str:
        return self._log.read_text()

    def is_in(self, phase: str, step: int) -> bool:
        """Returns whether the process has reached a phase; `step` is the training step to wait for."""
        validated = -(-step // VALIDATE_EVERY) * VALIDATE_EVERY
        match phase:
            case "preparation":
                return (self.run.parent / "data").exists()
            case "compilation":
                return "parameters" in self.log
            case "training" | "validation":
                expected = step if phase == "training" else validated
                return any(record["step"] == expected for record in read_metrics(self.run))
            case "save":  # a checkpoint has a longer name until it is complete
                return any((self.run / "checkpoints").glob(f"{validated}*"))
        return True

    def wait_for(self, phase: str, step: int) -> None:
        """Waits until the process has reached a phase or has ended."""
        while self.process.poll() is None and not self.is_in(phase, step):
            time.sleep(0.002)

    def finish(self) -> None:
        """Waits until the run is trained."""
        assert self.process.wait(timeout=RUN_SECONDS) == 0, self.log

    def processes(self) -> list[psutil.Process]:
        """The processes of this attempt that have not ended, workers included."""
        return [process for process in psutil.process_iter() if self._belongs_here(process)]

    def _belongs_here(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get("INTERRUPTED_CASE") == self._case
        except psutil.Error:
            return False


@contextlib.contextmanager
def attempt(folder: Path, mode: str, number: int) -> Iterator[Attempt]:
    """Starts to train the run of a folder; `number` counts the starts, from 0. Kills the process at the end."""
    flags, device_counts = MODES[mode]
    devices, case = device_counts[number % len(device_counts)], uuid.uuid4().hex
    changes = {
        "XLA_FLAGS": f"--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": str(folder / f"xla-{devices}"),
        "TMPDIR": str(folder / "tmp"),
        "INTERRUPTED_CASE": case,
    }
    changed_fields = {
        "data.data_dir": folder / "data",
        "train.steps": STEPS,
        "train.validate_every": VALIDATE_EVERY,
        "train.log_every": 1,
        "model.dropout_rate": 0.1,
    }
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    log = folder / f"log-{number}.txt"
    with (
        log.open("wb") as file,
        start(
            "train",
            *SMOKE,
            *flags,
            *(f"--config.{field}={value}" for field, value in changed_fields.items()),
            f"--workdir={folder}/run",
            env=environment() | changes,
            stdout=file,
            stderr=file,
            start_new_session=True,
        ) as process,
    ):
        yield Attempt(process, folder / "run", log, case)


def check_in_time(problems: Callable[[], object]) -> None:
    """Checks that the problems disappear within ten seconds."""
    end = time.monotonic() + 10
    while remaining := problems():
        assert time.monotonic() < end, remaining
        time.sleep(0.1)


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
    """A function that returns the uninterrupted run of a mode, which is trained at the first use."""

    def train(mode: str) -> Run:
        folder = session_folder / "uninterrupted" / mode
        run = Run(folder / "run")
        with lock(folder, wait=True):
            if run.result.get("status") != "done":
                with attempt(folder, mode, 0) as whole:
                    whole.finish()
        return run

    return train


def records(run: Run) -> list[tuple]:
    return [(record["step"], record["kind"], record["loss"]) for record in read_metrics(run.folder)]


@pytest.mark.parametrize(("kind", "number"), sample())
def test_an_interrupted_run_ends_like_an_uninterrupted_one(uninterrupted, tmp_path, kind, number):
    rng = random.Random(f"{SEED} {kind} {number}")
    mode = list(MODES)[number % len(MODES)]
    expected, unused = uninterrupted(mode), unused_memory()
    num_starts = rng.choice([1, 2])
    for start_number in range(num_starts):
        phase = PHASES[(number // len(MODES) + start_number) % len(PHASES)]
        with attempt(tmp_path, mode, start_number) as interrupted:
            interrupted.wait_for(phase, step=rng.randint(1, STEPS))
            time.sleep(rng.uniform(0, MAX_DELAYS.get(phase, 0.2)))
            if kind == "kill":
                interrupted.process.kill()
                interrupted.process.wait()
            else:
                check_signal(interrupted, rng.choice(SIGNALS))
        check_in_time(interrupted.processes)

    with attempt(tmp_path, mode, num_starts) as last:
        last.finish()
    check_in_time(last.processes)
    run = Run(last.run)
    if mode == "device_count":  # sums over other numbers of devices are rounded differently
        assert [record[:2] for record in records(run)] == [record[:2] for record in records(expected)]
        losses, expected_losses = ([record[2] for record in records(result)] for result in (run, expected))
        np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    else:
        assert run.result["params_sha256"] == expected.result["params_sha256"]
        assert records(run) == records(expected)
    assert tensorboard_steps(run.folder / "tensorboard") == set(range(1, STEPS + 1))
    assert not list((tmp_path / "tmp").iterdir())
    assert not list(tmp_path.rglob("*.partial")) + list(tmp_path.rglob("incomplete*"))
    # Other tests may use shared memory, too, and have not mapped it yet.
    check_in_time(lambda: unused_memory() - unused)


def check_signal(interrupted: Attempt, number: signal.Signals) -> None:
    """Sends a signal; checks the exit status and the time until the end."""
    handles_signals = interrupted.log != ""  # while Python loads the packages, nothing is printed
    started = time.monotonic()
    interrupted.process.send_signal(number)
    status = interrupted.process.wait(timeout=RUN_SECONDS)
    assert time.monotonic() - started < SIGNAL_SECONDS
    if f"{STEPS} of {STEPS} steps in " in interrupted.log:  # the run was trained before the signal came
        assert status in (0, -number)
    elif handles_signals:
        assert status == PREEMPTED, interrupted.log
        assert "Traceback" not in interrupted.log
    else:
        assert status in (-number, PREEMPTED)
