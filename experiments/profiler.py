"""Profiles of training, for XProf (https://openxla.org/xprof) and Perfetto."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp

from transformer.config import UserError
from transformer.training.session import Observer

log = logging.getLogger(__name__)


def read_steps(text: str) -> tuple[int, int]:
    """Returns the first and the last step of a flag such as "20:25".

    Raises:
      UserError: the text does not name steps.
    """
    match = re.fullmatch(r"(\d+):(\d+)", text)
    first, last = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= first <= last:
        raise UserError(f"--profile is {text!r}; it must be FIRST:LAST, two steps from 1 on, such as 20:25")
    return first, last


class ProfiledSteps:
    """Observer that profiles some steps of the training, and passes all calls on."""

    def __init__(self, observer: Observer, folder: Path, first: int, last: int):
        """Profiles the steps from `first` to `last`, and writes the profile into `folder`."""
        self._observer, self._folder, self._first, self._last = observer, folder, first, last
        self._is_running = self._has_run = False

    def step(self, step: int) -> None:
        """Starts the profile after the step before the first one, and ends it after the last one."""
        self._observer.step(step)
        if self._is_running and step >= self._last:
            self.stop()
        elif not self._is_running and self._first - 1 <= step < self._last:
            self.start()

    def record(self, record) -> None:
        """Passes the record on."""
        self._observer.record(record)

    def start(self) -> None:
        """Starts the profile once the devices have finished the steps so far."""
        _wait_for_devices()
        jax.profiler.start_trace(self._folder)
        self._is_running = self._has_run = True

    def stop(self) -> None:
        """Ends the profile, if it is running, once the devices have finished the steps so far."""
        if not self._is_running:
            if not self._has_run:
                log.warning("warning: no step of --profile=%d:%d was trained", self._first, self._last)
            return
        _wait_for_devices()
        jax.profiler.stop_trace()
        self._is_running = False
        log.info("wrote the profile to %s; open it with: xprof --logdir %s", self._folder, self._folder)


@contextmanager
def profiling(
    observer: Observer, folder: Path, steps: tuple[int, int] | None, is_new: bool
) -> Iterator[Observer]:
    """Yields an observer that profiles the steps, or the given observer without steps.

    Args:
      observer: is told of every step and record.
      folder: gets the profile.
      steps: the first and the last step to profile.
      is_new: whether the training begins with step 1.
    """
    if steps is None:
        yield observer
        return
    profiled = ProfiledSteps(observer, folder, *steps)
    if is_new and steps[0] == 1:
        profiled.start()
    try:
        yield profiled
    finally:
        profiled.stop()


def _wait_for_devices() -> None:
    """Waits for the programs that were started on the devices of this process, which run in order."""
    for device in jax.local_devices():
        (jax.device_put(jnp.zeros(()), device) + 1).block_until_ready()
