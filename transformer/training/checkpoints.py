"""Checkpoints, which Orbax writes in the background. Each checkpoint has digests of its contents.

Orbax does not notice a flipped bit in a weight. The digests are part of the metadata, which also has the step
and what made the checkpoint. The metadata is sealed: a digest of its own reveals damage and edits.
"""

import contextlib
import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from transformer.config import UserError
from transformer.files import seal, sealed
from transformer.training.train_step import TrainState


class Checkpoints:
    """The checkpoints of a run: the last few, and the best according to the validation criterion."""

    def __init__(self, folder: Path, keep_last: int | None = None):
        """Opens a folder: with `keep_last` to train, otherwise to read, even while the run trains."""
        best = BestN(
            get_metric_fn=lambda metrics: -metrics["criterion"],
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        self._folder = folder.absolute()
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file, but checkpoints belong there; delete it")
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy([LatestN(keep_last), best]),
                best_fn=lambda metrics: metrics["criterion"],
                best_mode="min",
                read_only=keep_last is None,
                create=keep_last is not None,
                cleanup_tmp_directories=keep_last is not None,
            ),
            item_names=("params", "opt_state", "metadata"),
        )
        # Steps that an interruption saved between two validations.
        self._unscored = [step for step in self.steps if self._manager.metrics(step) is None]

    @property
    def steps(self) -> list[int]:
        """Steps that can be restored, in order."""
        return sorted(self._manager.all_steps())

    @property
    def best(self) -> int | None:
        """The step with the lowest criterion."""
        return self._manager.best_step()

    def save(self, state: TrainState, metadata: dict[str, Any], criterion: float | None) -> None:
        """Writes a state in the background.

        Args:
          state: the state. It is copied before the method returns, so the next update may reuse the memory.
          metadata: JSON data that is restored with the state.
          criterion: ranks the checkpoints; lower is better. None if the criterion was not measured.
        """
        if self._unscored:
            # Deleted before the new checkpoint counts, or they would displace scored ones.
            self._manager.wait_until_finished()
            for step in self._unscored:
                self._manager.delete(step)
        self._unscored = [int(state.step)] if criterion is None else []
        items = jax.tree.map(np.array, {"params": state.params, "opt_state": _by_path(state.opt_state)})
        digests = {name: digest(item) for name, item in items.items()}
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                **{name: ocp.args.StandardSave(item) for name, item in items.items()},
                metadata=ocp.args.JsonSave(sealed({**metadata, "step": int(state.step), "digests": digests})),
            ),
            metrics=None if criterion is None else {"criterion": criterion},
        )

    def restore(self, template: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """Returns the latest state, in the shape of `template`, and its metadata; None if there is none.

        Raises:
          UserError: the checkpoint is unreadable or damaged, or has other shapes.
        """
        if not self.steps:
            return None
        step = self.steps[-1]
        templates = {"params": template.params, "opt_state": _by_path(template.opt_state)}
        items, metadata = self._read(step, templates)
        opt_state = jax.tree.unflatten(jax.tree.structure(template.opt_state), items["opt_state"].values())
        return TrainState(np.int32(step), items["params"], opt_state), metadata

    def params(self, step: int, template: PyTree) -> tuple[PyTree, dict[str, Any]]:
        """Returns the weights of a step, in the shape of `template`, and its metadata.

        Raises:
          UserError: see `restore`.
        """
        items, metadata = self._read(step, {"params": template})
        return items["params"], metadata

    def metadata(self, step: int) -> dict[str, Any]:
        """Returns the metadata of a step.

        Raises:
          UserError: the checkpoint is unreadable.
        """
        return self._read(step, {})[1]

    def close(self) -> None:
        """Waits for writes in progress."""
        self._manager.close()

    def _read(self, step, templates):
        templates = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), templates)
        arguments = {name: ocp.args.StandardRestore(template) for name, template in templates.items()}
        place = self._folder / str(step)
        advice = "delete it to use the previous one"
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
            reason = (str(error).splitlines() or [""])[0][:200]
            raise UserError(f"checkpoint {place} is unreadable: {reason}; {advice}") from error
        if misshapen:
            names = ", ".join(misshapen)
            raise UserError(f"checkpoint {place} has other shapes: {names}; restore the run's config.json")
        if damaged:
            names = ", ".join(damaged)
            raise UserError(f"checkpoint {place} is damaged: {names}; {advice}")
        return items, metadata


def read_identity(folder: Path) -> dict[str, str] | None:
    """Returns the identity of the task in the newest checkpoint; None if the folder has no checkpoint.

    Raises:
      UserError: the checkpoint is unreadable, or the folder is a file.
    """
    if not folder.exists():
        return None
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        return checkpoints.metadata(checkpoints.steps[-1])["identity"] if checkpoints.steps else None


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


def average(trees: list[PyTree]) -> PyTree:
    """Returns the mean of several trees of weights (paper, section 6.1), computed in float64."""
    return jax.tree.map(
        lambda *leaves: np.mean([np.asarray(x, np.float64) for x in leaves], axis=0).astype(leaves[0].dtype),
        *trees,
    )
