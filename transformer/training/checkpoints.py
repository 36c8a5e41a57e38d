"""Checkpoints, which Orbax writes in the background. Each checkpoint has digests of its contents.

Orbax does not notice a flipped bit in a weight. The digests are part of the metadata, which also has the step
and what made the checkpoint. The metadata is sealed: a digest of its own reveals damage and edits.
"""

import contextlib
import dataclasses
import hashlib
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

from transformer.config import UserError
from transformer.files import seal, sealed
from transformer.training.train_step import TrainState

log = logging.getLogger(__name__)


class DamagedCheckpoint(UserError):
    """A checkpoint that cannot be read, or whose contents are not those that were written.

    Attributes:
      step: its step.
    """

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


@dataclasses.dataclass
class LastAndBest(PreservationPolicy):
    """Keeps the newest checkpoint, the last ones with a criterion, and the one with the lowest criterion.

    A checkpoint that was saved because of an interruption has no criterion. It is deleted once there is a
    newer one, so that it does not displace others.

    Attributes:
      keep_last: number of checkpoints with a criterion that are kept besides the best.
      criteria: the criterion of each step; `Checkpoints` keeps it up to date.
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
    """Returns the step with the lowest criterion, the first of several; None if no step has a criterion."""
    scored = {step: criterion for step, criterion in criteria.items() if criterion is not None}
    return min(scored, key=scored.get) if scored else None


class Checkpoints:
    """The checkpoints of a run: the last few, and the best according to the validation criterion."""

    def __init__(self, folder: Path, keep_last: int | None = None):
        """Opens a folder: with `keep_last` to train, otherwise to read, even while the run trains.

        Raises:
          UserError: the folder is a file.
        """
        self._folder = folder.absolute()
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file, but checkpoints belong there; delete it")
        is_training = keep_last is not None
        self._criteria: dict[int, float | None] = {}
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=LastAndBest(keep_last, self._criteria) if is_training else None,
                read_only=not is_training,
                create=is_training,
                cleanup_tmp_directories=is_training,
            ),
            item_names=("params", "opt_state", "metadata"),
        )
        if is_training:
            self._criteria.update({step: self._criterion(step) for step in self.steps})

    @property
    def steps(self) -> list[int]:
        """Steps of the checkpoints, in order."""
        return sorted(self._manager.all_steps())

    @property
    def identity(self) -> dict[str, str] | None:
        """Identity of the task in the newest checkpoint whose metadata is whole; None without checkpoints.

        Raises:
          DamagedCheckpoint: no checkpoint has metadata that is whole.
        """
        metadata, _ = self._newest(self.metadata)
        return metadata["identity"] if metadata else None

    @property
    def best(self) -> int | None:
        """The step with the lowest criterion, while training; None if no step has one."""
        return best_step(self._criteria)

    def save(self, state: TrainState, metadata: dict[str, Any], criterion: float | None) -> None:
        """Writes a state in the background.

        Args:
          state: the state. It is copied before the method returns, so the next update may reuse the memory.
          metadata: JSON data that is restored with the state.
          criterion: ranks the checkpoints; lower is better. None if the criterion was not measured.
        """
        step = int(state.step)
        self._criteria[step] = criterion
        items = jax.tree.map(np.array, {"params": state.params, "opt_state": _by_path(state.opt_state)})
        digests = {name: digest(item) for name, item in items.items()}
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
        """Returns the newest state that is whole, in the shape of `template`, and its metadata.

        Newer checkpoints are damaged. They are renamed to `<step>.damaged`, so that training can write their
        steps again. Without checkpoints, returns None.

        Raises:
          DamagedCheckpoint: no checkpoint is whole.
          UserError: the checkpoint has other shapes.
        """
        templates = {"params": template.params, "opt_state": _by_path(template.opt_state)}
        restored, errors = self._newest(lambda step: (step, *self._read(step, templates)))
        if restored is None:
            return None
        step, items, metadata = restored
        for error in errors:
            log.warning("warning: %s; resuming from step %d", error, step)
            _set_aside(self._folder / str(error.step))
            self._criteria.pop(error.step, None)
        if errors:
            self.reload()
        opt_state = jax.tree.unflatten(jax.tree.structure(template.opt_state), items["opt_state"].values())
        return TrainState(np.int32(step), items["params"], opt_state), metadata

    def reload(self) -> None:
        """Looks again which checkpoints there are."""
        self._manager.reload()

    def verify(self, step: int) -> dict[str, Any]:
        """Reads all that a checkpoint holds, and returns its metadata.

        Raises:
          DamagedCheckpoint: the checkpoint is not whole.
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
        """Returns the weights of a step, in the shape of `template`, and its metadata.

        Raises:
          DamagedCheckpoint: the checkpoint is not whole.
          UserError: the checkpoint has other shapes.
        """
        items, metadata = self._read(step, {"params": template})
        return items["params"], metadata

    def metadata(self, step: int) -> dict[str, Any]:
        """Returns the metadata of a step.

        Raises:
          DamagedCheckpoint: the metadata is not whole.
        """
        return self._read(step, {})[1]

    def close(self) -> None:
        """Waits for writes in progress."""
        self._manager.close()

    def _criterion(self, step: int) -> float | None:
        """Returns the criterion of a step; None if it was not measured or cannot be read."""
        try:
            return self.metadata(step)["criterion"]
        except UserError:
            return None

    def _newest(self, read: Callable[[int], Any]) -> tuple[Any, list[DamagedCheckpoint]]:
        """Returns what `read` returns for the newest step that is whole, and the errors of newer steps.

        Raises:
          DamagedCheckpoint: no step is whole.
        """
        steps, errors = self.steps, []
        for step in reversed(steps):
            try:
                return read(step), errors
            except DamagedCheckpoint as error:
                errors.append(error)
        if errors:
            raise DamagedCheckpoint(f"{errors[0]}; so is every other; restore one", errors[0].step)
        return None, []

    def _read(self, step, templates):
        templates = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), templates)
        arguments = {name: ocp.args.StandardRestore(template) for name, template in templates.items()}
        place = self._folder / str(step)
        try:
            restored = self._manager.restore(
                step, args=ocp.args.Composite(**arguments, metadata=ocp.args.JsonRestore())
            )
            items, metadata = {name: restored[name] for name in templates}, restored.metadata
            if metadata["sha256"] != seal(metadata):
                raise UserError("its metadata was damaged or edited")
            if metadata["step"] != step:
                raise UserError(f"it is the checkpoint of step {metadata['step']}")
            misshapen = [name for name in items if _shapes(items[name]) != _shapes(templates[name])]
            damaged = [name for name in items if digest(items[name]) != metadata["digests"][name]]
        except Exception as error:  # Orbax raises anything, down to a bare Exception, on a damaged file
            raise _unreadable(place, error) from error
        if misshapen:
            names = ", ".join(misshapen)
            raise UserError(f"checkpoint {place} has other shapes: {names}; restore the run's config.json")
        if damaged:
            names = ", ".join(damaged)
            raise DamagedCheckpoint(f"checkpoint {place} is damaged: {names}", step)
        return items, metadata


def read_identity(folder: Path) -> dict[str, str] | None:
    """Returns `Checkpoints.identity`; None if there is no such folder.

    Raises:
      UserError: see `Checkpoints.identity`, or the folder is a file.
    """
    if not folder.exists():
        return None
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        return checkpoints.identity


def _unreadable(path: Path, error: Exception) -> DamagedCheckpoint:
    reason = (str(error).splitlines() or [""])[0][:200]
    return DamagedCheckpoint(f"checkpoint {path} is unreadable: {reason}", int(path.name))


def _set_aside(path: Path) -> None:
    """Renames a damaged checkpoint, which Orbax then does not take for one. Replaces an earlier one."""
    aside = path.with_name(f"{path.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)


def _by_path(opt_state: PyTree) -> dict[str, Any]:
    """Returns an optimizer's state as a flat dict, since Orbax knows no NamedTuples, masks or empty states.

    The leading number keeps the order of the leaves when Orbax sorts the names.
    """
    leaves = jax.tree_util.tree_leaves_with_path(opt_state)
    return {
        f"{number:05d}.{jax.tree_util.keystr(path, simple=True, separator='.')}": leaf
        for number, (path, leaf) in enumerate(leaves)
    }


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each path. Orbax restores any stored shape, so the caller compares the shapes."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in leaves}


def digest(tree: PyTree) -> str:
    """Returns the SHA-256 of the paths, dtypes, shapes and values of a tree."""
    state = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        state.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        state.update(array.tobytes())
    return state.hexdigest()


def average(trees: Iterable[PyTree]) -> PyTree:
    """Returns the mean of trees of weights (paper, section 6.1), computed in float64.

    Args:
      trees: one or more trees. Memory holds one of them at a time, besides the sum.
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
