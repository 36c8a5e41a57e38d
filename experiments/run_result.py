"""Writes the result of a training into the run folder: result.json and error.txt."""

import contextlib
import time
import traceback

from experiments.progress import clock
from experiments.run_folder import Run
from transformer.config import UserError
from transformer.files import atomic_write
from transformer.training.divergence import DIVERGED_FILE, Diverged
from transformer.training.session import Outcome


class TrainingResult:
    """Writes result.json when a training starts, ends or fails."""

    def __init__(self, run: Run):
        """Notes that the run is being trained."""
        self._run, self._before = run, run.result
        self._started = time.time() - (self._before.get("seconds") or 0)
        run.write_result(**self._before | {"status": "running"})
        (run.folder / "error.txt").unlink(missing_ok=True)

    def ended(self, outcome: Outcome, num_steps: int) -> None:
        """Writes and prints the outcome of a run of `num_steps` updates."""
        folder, seconds = self._run.folder, time.time() - self._started
        (folder / DIVERGED_FILE).unlink(missing_ok=True)
        self._run.write_result(
            identity=dict(outcome.identity),
            status="done" if outcome.finished else "preempted",
            step=outcome.step,
            **{f"{outcome.unit}_seen": outcome.units_seen},
            validation=outcome.validation,
            params_sha256=outcome.params_sha256,
            init_from=self._before.get("init_from"),
            seconds=seconds,
        )
        print(f"{folder}: {outcome.step} of {num_steps} steps in {clock(seconds)}")
        if not outcome.finished:
            print(f"saved; resume with python -m experiments.train --workdir={folder}")

    def failed(self, error: BaseException) -> None:
        """Writes why the training failed. Called while the exception is handled."""
        if isinstance(error, UserError):
            reason = "diverged" if isinstance(error, Diverged) else "refused"
            with contextlib.suppress(UserError):  # if the disk is full, this write fails, too
                self._write_failure(reason, str(error))
        else:
            atomic_write(self._run.folder / "error.txt", traceback.format_exc())
            self._write_failure("error", repr(error))

    def _write_failure(self, reason: str, message: str) -> None:
        failure = {"status": "failed", "reason": reason, "message": message}
        self._run.write_result(**self._before | failure | {"seconds": time.time() - self._started})
