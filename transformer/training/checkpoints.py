"""Checkpoints, which Orbax writes in the background. Each checkpoint has digests of its contents.

Orbax does not notice a flipped bit in a weight. The digests are part of the metadata, with the step, the
validation criterion and the identity of the task (config, data and vocabulary). The metadata has a digest of
its own, which reveals damage and edits. A checkpoint is intact if it can be read and all its digests match.
"""

import contextlib
import dataclasses
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree
from orbax.checkpoint.checkpoint_managers import PreservationPolicy
from orbax.checkpoint.options import MultiprocessingOptions

from transformer.config import UserError
from transformer.json_files import check_types, seal, sealed
from transformer.training.digests import digest, is_split
from transformer.training.processes import agreed, all_true, broadcast, is_first
from transformer.training.train_step import TrainState

log = logging.getLogger(__name__)


METADATA_TYPES = {
    "step": int,
    "criterion": float | None,
    "identity": dict[str, str],
    "digests": dict[str, str],
}


class DamagedCheckpoint(UserError):
    """A checkpoint that cannot be read, or was changed after it was written.

    Attributes:
      step: step of the checkpoint.
    """

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


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
        scored = [step for step in steps if self.criteria.get(step) is not None]
        kept = {steps[-1], best_step(self.criteria), *scored[-self.keep_last :]}
        return [step in kept for step in steps]


def best_step(criteria: Mapping[int, float | None]) -> int | None:
    """Returns the first step with the lowest criterion; None if no step has a criterion."""
    scored = {step: criterion for step, criterion in criteria.items() if criterion is not None}
    return min(scored, key=scored.get) if scored else None


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
            item_names=("params", "opt_state", "metadata"),
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

    @property
    def best(self) -> int | None:
        """The step with the lowest criterion, known only while training; None if no step has a criterion."""
        return best_step(self._criteria)

    def save(self, state: TrainState, metadata: dict[str, Any], criterion: float | None) -> None:
        """Writes a state in the background.

        Args:
          state: the state. It is copied before the method returns, so the next update may reuse the memory.
          metadata: JSON data that is restored with the state.
          criterion: ranks the checkpoints; lower is better. None if the criterion was not measured.

        Raises:
          UserError: there is no space for the checkpoint of several processes.
        """
        step = int(state.step)
        self._criteria[step] = criterion
        items = jax.tree.map(_copy, {"params": state.params, "opt_state": _by_path(state.opt_state)})
        digests = {name: digest(item) for name, item in items.items()}
        if jax.process_count() > 1:
            with agreed():
                if is_first():
                    check_space(self._folder, items)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                **{name: ocp.args.StandardSave(item) for name, item in items.items()},
                metadata=ocp.args.JsonSave(
                    sealed({**metadata, "step": step, "criterion": criterion, "digests": digests})
                ),
            ),
        )

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
        templates = {"params": template.params, "opt_state": _by_path(template.opt_state)}
        restored, errors = self._newest(lambda step: (step, *self._read(step, templates)))
        if restored is None:
            return None
        step, items, metadata = restored
        for error in errors:
            log.warning("warning: %s; resuming from step %d", error, step)
            self._criteria.pop(error.step, None)
        if errors:
            with agreed():  # waits for the first process
                self._set_aside([error.step for error in errors])
            self.reload()
        opt_state = jax.tree.unflatten(jax.tree.structure(template.opt_state), items["opt_state"].values())
        return TrainState(np.int32(step), items["params"], opt_state), metadata

    def reload(self) -> None:
        """Reads the list of checkpoints from disk again."""
        self._manager.reload()

    def verify(self, step: int) -> dict[str, Any]:
        """Reads and checks a whole checkpoint, and returns its metadata.

        Raises:
          DamagedCheckpoint: the checkpoint is not intact.
        """
        handler = ocp.StandardCheckpointHandler()
        try:
            templates = {
                name: jax.tree.map(
                    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
                    handler.metadata(self._folder / str(step) / name).tree,
                )
                for name in ("params", "opt_state")
            }
        except Exception as error:
            raise _unreadable(self._folder / str(step), error) from error
        return self._read(step, templates)[1]

    def params(self, step: int, template: PyTree) -> tuple[PyTree, dict[str, Any]]:
        """Returns the weights and the metadata of a step.

        Args:
          step: step of the checkpoint.
          template: weights with the expected structure and shapes.

        Raises:
          DamagedCheckpoint: the weights or the metadata are not intact.
          UserError: the shapes in the checkpoint differ from those of `template`.
        """
        items, metadata = self._read(step, {"params": template})
        return items["params"], metadata

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
        steps, errors = self.steps, []
        for step in reversed(steps):
            try:
                return read(step), errors
            except DamagedCheckpoint as error:
                errors.append(error)
        if errors:
            message = f"{errors[0]}; no other checkpoint is intact; restore one"
            raise DamagedCheckpoint(message, errors[0].step)
        return None, []

    def _read(self, step, templates):
        """Reads items of a checkpoint. If processes train together, all must call this; all fail if one does.

        `CheckpointManager.restore` would wait for a process whose read has failed.
        """
        templates = jax.tree.map(_template, templates)
        place = self._folder / str(step)
        items, error = {}, None
        try:
            for name, template in templates.items():
                args = ocp.args.StandardRestore(template)
                items[name] = ocp.StandardCheckpointHandler().restore(place / name, args=args)
            metadata = ocp.JsonCheckpointHandler().restore(place / "metadata")
            if metadata["sha256"] != seal(metadata):
                raise UserError("its metadata was damaged or edited")
            check_types(place, metadata, METADATA_TYPES)
            if metadata["step"] != step:
                raise UserError(f"its metadata is that of step {metadata['step']}")
            misshapen = [name for name in items if _shapes(items[name]) != _shapes(templates[name])]
        except Exception as raised:  # Orbax raises anything, down to a bare Exception, on a damaged file
            error = raised
        if self._is_training and not all_true(error is None):
            error = error or UserError("another process cannot read it")
        if error is not None:
            raise _unreadable(place, error) from error
        try:
            damaged = [name for name in items if digest(items[name]) != metadata["digests"][name]]
        except KeyError as error:
            raise _unreadable(place, error) from error
        if misshapen:
            names = ", ".join(misshapen)
            raise UserError(
                f"checkpoint {place} does not fit the model of config.json: the shapes of {names} differ; "
                "restore the run's config.json"
            )
        if damaged:
            names = ", ".join(damaged)
            raise DamagedCheckpoint(f"checkpoint {place} is damaged: {names}", step)
        return items, metadata


def check_space(folder: Path, items: PyTree) -> None:
    """Checks that there is space for arrays. A write that fails in one process blocks the others for minutes.

    Raises:
      UserError: there is not.
    """
    needed, free = sum(leaf.nbytes for leaf in jax.tree.leaves(items)), shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder}: {free / 1e6:,.1f} MB are free, but a checkpoint needs {needed / 1e6:,.1f} MB; "
            "free some space, then run the same command again"
        )


def read_identity(folder: Path) -> dict[str, str] | None:
    """Returns the identity of the task in a folder of checkpoints; None if the folder does not exist.

    Raises:
      UserError: no checkpoint has intact metadata, or the folder is a file.
    """
    if not folder.exists():
        return None
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        return checkpoints.identity


def _unreadable(path: Path, error: Exception) -> DamagedCheckpoint:
    reason = (str(error).splitlines() or [""])[0][:200]
    return DamagedCheckpoint(f"checkpoint {path} is unreadable: {reason}", int(path.name))


def _copy(leaf):
    """Copies an array, to the host unless it is split over devices; see `Checkpoints.save`."""
    return jax.numpy.copy(leaf) if is_split(leaf) else np.array(leaf)


def _template(leaf):
    """Describes an array to Orbax, which restores split arrays as such, and others as NumPy arrays."""
    if is_split(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
    return np.zeros(leaf.shape, leaf.dtype)


def _by_path(opt_state: PyTree) -> dict[str, Any]:
    """Returns an optimizer's state as a flat dict, since Orbax stores no NamedTuples, masks or empty states.

    The leading number keeps the order of the leaves when Orbax sorts the names.
    """
    leaves = jax.tree_util.tree_leaves_with_path(opt_state)
    return {
        f"{number:05d}.{jax.tree_util.keystr(path, simple=True, separator='.')}": leaf
        for number, (path, leaf) in enumerate(leaves)
    }


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each leaf. Orbax does not compare shapes with the template; the caller must."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in leaves}


def average(trees: Iterable[PyTree]) -> PyTree:
    """Returns the mean of trees of weights (paper, section 6.1), computed in float64.

    Args:
      trees: one or more trees. Besides the sum, only one tree is in memory at a time.
    """
    total, dtypes, count = None, None, 0
    for tree in trees:
        count += 1
        if total is None:
            dtypes = jax.tree.map(lambda leaf: leaf.dtype, tree)
            total = jax.tree.map(lambda leaf: np.array(leaf, np.float64), tree)
        else:
            total = jax.tree.map(lambda entry, leaf: np.add(entry, leaf, out=entry), total, tree)
    return jax.tree.map(lambda entry, dtype: (entry / count).astype(dtype), total, dtypes)
