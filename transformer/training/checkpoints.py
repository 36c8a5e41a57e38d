"""The checkpoints of a run. Orbax writes them in the background, and keeps the last and the best.

`checkpoint_files` writes and reads the content of a checkpoint.
"""

import contextlib
import dataclasses
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree
from orbax.checkpoint.checkpoint_managers import PreservationPolicy
from orbax.checkpoint.options import MultiprocessingOptions

from transformer.config import UserError
from transformer.training.checkpoint_files import (
    METADATA,
    TREES,
    DamagedCheckpoint,
    check_space,
    read_checkpoint,
    save_arguments,
    state_of,
    stored_shapes,
    trees_of,
)
from transformer.training.processes import agreed, broadcast, is_first
from transformer.training.train_step import TrainState

log = logging.getLogger(__name__)


@dataclasses.dataclass
class LastAndBest(PreservationPolicy):
    """Keeps the newest checkpoint, the latest scored checkpoints, and the best scored checkpoint.

    A scored checkpoint has a validation criterion; lower is better. A checkpoint that was saved because of an
    interruption, or of initial weights, has no criterion. It is deleted once there is a newer checkpoint, so
    it displaces no scored checkpoint.

    Attributes:
      keep_last: number of latest scored checkpoints to keep.
      criteria: the criterion of each step, which `Checkpoints` updates.
    """

    keep_last: int
    criteria: Mapping[int, float | None]

    def should_preserve(self, checkpoints, *, context):
        """Returns whether to keep each checkpoint; called by Orbax after each save."""
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        criteria = {step: criterion for step, criterion in self.criteria.items() if criterion is not None}
        scored = [step for step in steps if step in criteria]
        best = min(criteria, key=criteria.get, default=None)  # the first of equal ones
        kept = {steps[-1], best, *scored[-self.keep_last :]}
        return [step in kept for step in steps]


class Checkpoints:
    """The checkpoints of a run: the last few, and the best according to the validation criterion."""

    def __init__(self, folder: Path, keep_last: int | None = None):
        """Opens a folder.

        Args:
          folder: the folder of the checkpoints.
          keep_last: number of latest scored checkpoints to keep. If None, the folder is only read, which is
            possible while the run trains. Otherwise all processes must call the same methods.

        Raises:
          UserError: the folder is a file, or processes that train together see different checkpoints.
        """
        self._folder = folder.absolute()
        if folder.exists() and not folder.is_dir():
            raise UserError(
                f"{folder} is a file, but checkpoints need a folder of this name; delete the file"
            )
        is_training = self._is_training = keep_last is not None
        process = jax.process_index()
        only_here = MultiprocessingOptions(primary_host=process, active_processes={process})
        self._criteria: dict[int, float | None] = {}
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=LastAndBest(keep_last, self._criteria) if is_training else None,
                read_only=not is_training,
                create=is_training,
                cleanup_tmp_directories=is_training,
                multiprocessing_options=MultiprocessingOptions() if is_training else only_here,
            ),
            item_names=(*TREES, METADATA),
        )
        if is_training:
            self._check_shared()
            self._criteria.update({step: self._criterion(step) for step in self.steps})

    @property
    def steps(self) -> list[int]:
        """Steps of the checkpoints, in order."""
        return sorted(self._manager.all_steps())

    @property
    def identity(self) -> dict[str, str] | None:
        """Identity of the task in the newest checkpoint with intact metadata; None without checkpoints.

        Raises:
          DamagedCheckpoint: no checkpoint has intact metadata.
        """
        metadata, _ = self._newest(self.metadata)
        return metadata["identity"] if metadata else None

    def save(self, state: TrainState, metadata: dict[str, Any], criterion: float | None) -> None:
        """Writes a state in the background.

        Args:
          state: the state. It is copied before the method returns, so the next update may reuse the memory.
          metadata: JSON data that is restored with the state.
          criterion: ranks the checkpoints; lower is better. None if the criterion was not measured.

        Raises:
          UserError: there is no space for the checkpoint of several processes.
        """
        step, trees = int(state.step), trees_of(state)
        self._criteria[step] = criterion
        if jax.process_count() > 1:
            with agreed():
                if is_first():
                    check_space(self._folder, trees)
        arguments = save_arguments(trees, {**metadata, "step": step, "criterion": criterion})
        self._manager.save(step, args=arguments)

    def restore(self, template: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """Returns the state and the metadata of the newest intact checkpoint; None without checkpoints.

        Renames newer, damaged checkpoints to `<step>.damaged`, so that training can write their steps again.

        Args:
          template: a state, or its description, with the expected structure, shapes and shardings. The
            checkpoint may have been saved with other shardings.

        Raises:
          DamagedCheckpoint: no checkpoint is intact.
          UserError: the shapes in the checkpoint differ from those of `template`.
        """
        templates = trees_of(template)
        restored, errors = self._newest(lambda step: (step, *self._read(step, templates)))
        if restored is None:
            return None
        step, trees, metadata = restored
        for error in errors:
            log.warning("warning: %s; resuming from step %d", error, step)
            self._criteria.pop(error.step, None)
        if errors:
            with agreed():  # waits for the first process
                self._set_aside([error.step for error in errors])
            self.reload()
        return state_of(step, trees, template), metadata

    def reload(self) -> None:
        """Reads the list of checkpoints from disk again."""
        self._manager.reload()

    def verify(self, step: int) -> dict[str, Any]:
        """Reads and checks a whole checkpoint, and returns its metadata.

        Raises:
          DamagedCheckpoint: the checkpoint is not intact.
        """
        return self._read(step, stored_shapes(self._folder / str(step)))[1]

    def params(self, step: int, template: PyTree) -> tuple[PyTree, dict[str, Any]]:
        """Returns the weights and the metadata of a step.

        Args:
          step: step of the checkpoint.
          template: weights with the expected structure and shapes.

        Raises:
          DamagedCheckpoint: the weights or the metadata are not intact.
          UserError: the shapes in the checkpoint differ from those of `template`.
        """
        trees, metadata = self._read(step, {"params": template})
        return trees["params"], metadata

    def metadata(self, step: int) -> dict[str, Any]:
        """Returns the metadata of a step.

        Raises:
          DamagedCheckpoint: the metadata is not intact.
        """
        return self._read(step, {})[1]

    def close(self) -> None:
        """Waits for writes in progress, in all processes that train together."""
        self._manager.close()

    def _criterion(self, step: int) -> float | None:
        """Returns the criterion of a step; None if it was not measured or cannot be read."""
        try:
            return self.metadata(step)["criterion"]
        except UserError:
            return None

    def _check_shared(self) -> None:
        """Checks that all processes see the same checkpoints.

        Raises:
          UserError: they do not.
        """
        primary_steps = broadcast(self.steps)
        with agreed():
            if self.steps != primary_steps:
                raise UserError(
                    f"process {jax.process_index()} sees the checkpoints {self.steps} in {self._folder}, but "
                    f"process 0 sees {primary_steps}; name a --workdir that all hosts share"
                )

    def _set_aside(self, steps: list[int]) -> None:
        """Renames damaged checkpoints, so that Orbax ignores them. Replaces earlier ones of these steps."""
        if not is_first():
            return
        for step in steps:
            aside = self._folder / f"{step}.damaged"
            shutil.rmtree(aside, ignore_errors=True)
            (self._folder / str(step)).rename(aside)

    def _newest(self, read: Callable[[int], Any]) -> tuple[Any, list[DamagedCheckpoint]]:
        """Returns the result of `read` for the newest intact step, and the errors of newer steps.

        Raises:
          DamagedCheckpoint: `read` fails for every step.
        """
        errors = []
        for step in reversed(self.steps):
            try:
                return read(step), errors
            except DamagedCheckpoint as error:
                errors.append(error)
        if errors:
            message = f"{errors[0]}; no other checkpoint is intact; restore one"
            raise DamagedCheckpoint(message, errors[0].step)
        return None, []

    def _read(self, step: int, templates: Mapping[str, PyTree]) -> tuple[dict[str, PyTree], dict[str, Any]]:
        """Returns trees of a checkpoint and its metadata; see `read_checkpoint`."""
        return read_checkpoint(self._folder / str(step), templates, all_processes=self._is_training)


def read_identity(folder: Path) -> dict[str, str] | None:
    """Returns the identity of the task in a folder of checkpoints; None if the folder does not exist.

    Raises:
      UserError: no checkpoint has intact metadata, or the folder is a file.
    """
    if not folder.exists():
        return None
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        return checkpoints.identity
