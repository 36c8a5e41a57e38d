"""Several processes that train one run together, usually one per host. `jax.distributed` joins them.

If a process is lost, JAX ends the other processes from C++, without an exception. So each process has a
parent, which only waits, and which turns such an end into one line and exit status 75.
"""

import contextlib
import dataclasses
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from typing import BinaryIO

import jax
from absl.flags import DEFINE_integer, DEFINE_string, FlagValues

from experiments.machine import gpus
from experiments.process import exit_status, set_up_jax
from experiments.stop_signal import PREEMPTED, SIGNALS
from transformer.config import UserError
from transformer.data.pipeline import end_with_parent
from transformer.training.processes import is_first

log = logging.getLogger(__name__)

AUTO = "auto"
HEARTBEAT_SECONDS = 60  # a process that is silent for this long is lost
CONNECT_SECONDS = 300  # for all processes to start
SHUTDOWN_SECONDS = 10  # for the other processes to end
# Variables with the number of processes that a cluster started, and whether `jax.distributed` finds the
# processes of such a cluster.
CLUSTERS = {
    "SLURM_STEP_NUM_TASKS": True,
    "OMPI_COMM_WORLD_SIZE": True,
    "PMI_SIZE": False,
    "WORLD_SIZE": False,
}
# Variables with the hosts of a TPU slice, separated by commas.
TPU_HOSTS = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
PARENT_PID = "TRANSFORMER_PARENT_PID"  # environment variable with the process that waits for this one
STATUS_FD = "TRANSFORMER_STATUS_FD"  # environment variable with the descriptor for the exit status
# Lines with which JAX's C++ code reports a lost process, and errors that it raises.
NATIVE_REPORT = re.compile(rb"[EF]\d{4} .*(coordination_service|client\.h|distributed)|terminate .*gloo::")
LOST = re.compile(
    "gloo|nccl|connection|socket closed|coordination|barrier|heartbeat|unavailable", re.IGNORECASE
)
JOINED = "joined "  # the first report of a child; its exit status follows
RESUME = "run the same command again on all hosts to resume from the last checkpoint"


@dataclasses.dataclass(frozen=True)
class Hosts:
    """The processes of a run.

    Attributes:
      coordinator: address of process 0, as host:port; if None, `jax.distributed` finds all values.
      process: index of this process.
      processes: number of processes.
    """

    coordinator: str | None = None
    process: int | None = None
    processes: int | None = None


def define_flags(flags: FlagValues) -> None:
    """Defines the flags of a run with several processes."""
    DEFINE_string(
        "coordinator",
        None,
        "With several hosts: address of process 0, as HOST:PORT, the same on all hosts; or auto, where "
        "jax.distributed finds the hosts. Slurm, Open MPI and TPU slices that set TPU_WORKER_HOSTNAMES need "
        "no flag.",
        flag_values=flags,
    )
    DEFINE_integer("process", None, "Index of this process, from 0.", flag_values=flags)
    DEFINE_integer("processes", None, "Number of processes.", flag_values=flags)


def from_flags(flags: FlagValues) -> Hosts | None:
    """Returns the processes that the flags or the variables of a cluster describe; None for one process.

    Raises:
      UserError: the flags are incomplete or wrong, or a cluster has started several processes that
        `jax.distributed` cannot find.
    """
    coordinator = flags.coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    given = (flags.process, flags.processes)
    if coordinator in (None, AUTO):
        if given != (None, None):
            raise UserError(
                "--process and --processes need the address of process 0; add --coordinator=HOST:PORT"
            )
        return Hosts() if coordinator == AUTO or _in_cluster() else None
    # The name of the host may be unknown until process 0 has started, so it is not looked up here.
    match = re.fullmatch(r"(\[[\da-fA-F:.]+\]|[^\s:\[\]]+):(\d{1,5})", coordinator)
    if match is None or not 1 <= int(match[2]) < 2**16:
        raise UserError(f"--coordinator is {coordinator!r}; it must be HOST:PORT or {AUTO}")
    if None in given:
        raise UserError(f"--coordinator={coordinator} needs --process=INDEX and --processes=NUMBER; add them")
    if not 0 <= flags.process < flags.processes:
        raise UserError(
            f"--process is {flags.process}; it must be at least 0 and below --processes ({flags.processes})"
        )
    return Hosts(coordinator, *given) if flags.processes > 1 else None


def _in_cluster() -> bool:
    """Returns whether a cluster has started several processes, which `jax.distributed` finds.

    Raises:
      UserError: `jax.distributed` does not find these processes.
    """
    for name, is_found in CLUSTERS.items():
        count = os.environ.get(name, "")
        if count.isdigit() and int(count) > 1:
            if not is_found:
                raise UserError(
                    f"{name} is {count}, but JAX cannot find the processes of such a cluster; add "
                    f"--coordinator=HOST:PORT, --process and --processes, or unset {name}"
                )
            return True
    return any("," in os.environ.get(name, "") for name in TPU_HOSTS)


def run(flags: FlagValues, main: Callable[[], int]) -> int:
    """Calls `main` in every process of a run, with JAX set up, and returns the exit status."""
    hosts = from_flags(flags)
    if hosts is None:
        set_up_jax()
        if jax.process_count() > 1:
            raise UserError(f"this is one of {jax.process_count()} hosts; add --coordinator={AUTO}")
        return main()
    if PARENT_PID not in os.environ:
        place = f" at {hosts.coordinator}" if hosts.coordinator else ""
        print(f"waiting up to {CONNECT_SECONDS} s for the processes of this run{place}", file=sys.stderr)
        return _wait_for_child()
    return _run_child(hosts, main)


def _wait_for_child() -> int:
    """Runs this command again in a child, and returns the exit status."""
    reading, writing = os.pipe()
    with subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:]],
        stderr=subprocess.PIPE,
        env=os.environ | {PARENT_PID: str(os.getpid()), STATUS_FD: str(writing)},
        pass_fds=[writing],
    ) as child:
        os.close(writing)
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, lambda number, _: child.send_signal(number))
        held = _copy_lines(child.stderr)
        status = child.wait()
    with open(reading, encoding="utf-8") as report:
        reported = report.read()
    has_joined, reported = reported.startswith(JOINED), reported.removeprefix(JOINED)
    if reported:
        if int(reported) not in (0, PREEMPTED):  # a held line may be that of the error
            sys.stderr.buffer.write(b"".join(held))
        return int(reported)
    if status == -signal.SIGABRT and held:
        return _report_loss() if has_joined else _report_timeout()
    sys.stderr.buffer.write(b"".join(held))
    if -status in SIGNALS:  # a signal before the child could handle it
        print("stopped before the first step; nothing to save", file=sys.stderr)
        return PREEMPTED
    if status < 0:
        print(f"error: ended by {signal.Signals(-status).name}; {RESUME}", file=sys.stderr)
        return 128 - status
    return status


def _report_loss() -> int:
    print(f"error: lost another process of this run; {RESUME}", file=sys.stderr, flush=True)
    return PREEMPTED


def _report_timeout() -> int:
    print(
        f"error: not all processes of this run have joined within {CONNECT_SECONDS} s; check --coordinator, "
        "--process and --processes, and start all processes",
        file=sys.stderr,
    )
    return UserError.exit_status


def _copy_lines(stream: BinaryIO) -> list[bytes]:
    """Copies lines to standard error until the stream ends.

    Returns:
      The lines from the first one on that reports a lost process; they are not copied.
    """
    held = []
    for line in stream:
        if held or NATIVE_REPORT.match(line):
            held.append(line)
            continue
        with contextlib.suppress(OSError):  # a closed terminal
            sys.stderr.buffer.write(line)
            sys.stderr.buffer.flush()
    return held


def _run_child(hosts: Hosts, main: Callable[[], int]) -> int:
    """Joins the other processes, calls `main`, and reports the exit status to the parent.

    A process that has lost another one, or that has a bug, ends at once. Otherwise it waits for the others.
    """
    report = int(os.environ.pop(STATUS_FD))
    threading.Thread(target=end_with_parent, args=(int(os.environ.pop(PARENT_PID)),), daemon=True).start()
    _hide_native_output()
    try:
        status = exit_status(lambda: _join_and_call(hosts, report, main))
    except BaseException as error:
        if _is_from_loss(error):
            _end(_report_loss())
        traceback.print_exc()
        _end(1)
    os.write(report, str(status).encode())
    jax.distributed.shutdown()
    return status


def _join_and_call(hosts: Hosts, report: int, main: Callable[[], int]) -> int:
    _initialize(hosts, report)
    return main()


def _end(status: int) -> None:
    """Ends this process without waiting for the others."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)


def _hide_native_output() -> None:
    """Discards what C++ code prints on standard output, such as Gloo's lines about each connection."""
    sys.stdout = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _initialize(hosts: Hosts, report: int) -> None:
    """Joins the other processes.

    Raises:
      UserError: they cannot be found or reached.
    """
    jax.config.update("jax_enable_preemption_service", False)  # would handle SIGTERM in place of StopSignal
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python calls no handler while C++ code waits
    try:
        jax.distributed.initialize(
            hosts.coordinator,
            hosts.processes,
            hosts.process,
            local_device_ids=_all_gpus() if hosts.coordinator is None else None,
            cluster_detection_method="deactivate" if hosts.coordinator else None,
            initialization_timeout=CONNECT_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except (RuntimeError, ValueError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"cannot join the processes of this run: {reason}; check --coordinator, and that all processes "
            "have started"
        ) from None
    os.write(report, JOINED.encode())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    set_up_jax()
    _check_devices(hosts.processes)
    if not is_first():
        for name in ("transformer", "experiments"):
            logging.getLogger(name).setLevel(logging.WARNING)
    print(
        f"process {jax.process_index()} of {jax.process_count()}: {jax.local_device_count()} of "
        f"{jax.device_count()} devices",
        file=sys.stderr,
    )


def _check_devices(num_processes: int | None) -> None:
    """Checks that the processes agree on their number, and have equally many devices.

    Raises:
      UserError: they do not.
    """
    if num_processes not in (None, jax.process_count()):
        raise UserError(f"--processes is {num_processes}, but process 0 expects {jax.process_count()}")
    counts = Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"process {index} has {count}" for index, count in sorted(counts.items()))
        raise UserError(
            f"the processes have different numbers of devices ({listed}); give each the same number"
        )


def _all_gpus() -> list[int] | None:
    """Returns the GPUs of a process that is alone on its host, where JAX would take only one; or None."""
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE") or os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", "")
    is_alone = re.fullmatch(r"1(\(x\d+\))?", tasks) is not None
    return (list(range(len(gpus()))) or None) if is_alone else None


@contextlib.contextmanager
def ending_if_lost() -> Iterator[None]:
    """Ends this process on an error of JAX or Orbax that a lost process causes."""
    try:
        yield
    except Exception as error:
        if jax.process_count() > 1 and _is_from_loss(error):
            _end(_report_loss())
        raise


def _is_from_loss(error: BaseException | None) -> bool:
    if error is None:
        return False
    is_from_jax = isinstance(error, jax.errors.JaxRuntimeError)
    if is_from_jax and LOST.search(str(error)):
        return True
    return _is_from_loss(error.__cause__ or error.__context__)
