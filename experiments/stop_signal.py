"""Handles signals that ask a command to stop, so that the command can save its work and end in time."""

import contextlib
import os
import signal
import sys
import threading
import time

PREEMPTED = 75  # exit status of a command that was stopped and that the same command resumes
# Slurm can send SIGUSR1 before a time limit.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
REPEAT_SECONDS = 1.0  # a signal that is repeated after this time ends the process
STOPPING = "stopping: saving a checkpoint first"
STOP_SECONDS = 8.0  # from a signal to the end of the current step
SHOW_CURSOR = "\033[?25h"


class StopSignal:
    """Context manager: the first SIGTERM, Ctrl-C, hang-up of the terminal or SIGUSR1 only requests a stop.

    A repeated signal of the same kind ends the process. Repetitions within a second are ignored, because a
    scheduler may signal a whole group of processes, and one of them may pass the signal on to the others.
    Calling the object returns whether a stop was requested.
    """

    def __init__(self, message: str, seconds: float | None = None):
        """Sets the message and the time limit.

        Args:
          message: printed on standard error when the first signal arrives.
          seconds: time limit. If the object is not called within this time after a signal, the process ends
            with status 75. A signal before the first call of the object ends the process at once, because
            there is nothing to save yet. None disables both.
        """
        self._message, self._seconds = message, seconds
        self._received: dict[int, float] = {}  # time of the first signal of each kind
        self._was_called, self._is_noticed = False, threading.Event()

    def __enter__(self) -> "StopSignal":
        previous = {number: signal.getsignal(number) for number in SIGNALS}
        # `nohup` makes a process ignore SIGHUP; the signal must stay ignored.
        self._previous = {number: old for number, old in previous.items() if old != signal.SIG_IGN}
        self._terminals = list(filter(os.isatty, _output_descriptors()))
        for number in self._previous:
            signal.signal(number, self._handle)
        if self._seconds is not None:
            reading, self._writing = os.pipe()
            os.set_blocking(self._writing, False)
            self._previous_writing = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(reading,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        if self._seconds is not None:
            signal.set_wakeup_fd(self._previous_writing)
            os.close(self._writing)
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        self._was_called = True
        if self._received:
            self._is_noticed.set()
        return bool(self._received)

    def request(self) -> None:
        """Requests a stop without a signal."""
        self._received.setdefault(0, time.monotonic())

    def _handle(self, number, _) -> None:
        now, is_first = time.monotonic(), not self._received
        if now - self._received.setdefault(number, now) > REPEAT_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if number == signal.SIGHUP:
            for descriptor in self._terminals:  # writing to a closed terminal is an error
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
        if is_first:
            with contextlib.suppress(OSError):  # a closed pipe
                print(self._message, file=sys.stderr, flush=True)

    def _watch(self, reading: int) -> None:
        """Ends the process when the time limit is over. Runs in a separate thread.

        Python calls `_handle` between two instructions of the main thread. While XLA compiles, these are
        minutes apart. The pipe receives the number of a signal at once.
        """
        while number := os.read(reading, 1):
            if number[0] not in self._previous:
                continue
            if not self._was_called or not self._is_noticed.wait(self._seconds):
                self._end()
            break
        os.close(reading)

    def _end(self) -> None:
        reason = (
            "the current step takes too long"
            if self._was_called
            else "nothing to save since the last checkpoint"
        )
        with contextlib.suppress(OSError):
            if sys.stderr.isatty():
                os.write(2, SHOW_CURSOR.encode())
            os.write(2, f"ended without saving: {reason}; run the same command again\n".encode())
        os._exit(PREEMPTED)


def _output_descriptors() -> set[int]:
    """Returns the descriptors of standard output and standard error."""
    descriptors = {1, 2}
    with contextlib.suppress(OSError):  # a stream in memory
        descriptors.add(sys.stdout.fileno())
    return descriptors
