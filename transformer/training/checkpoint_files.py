"""The files of one checkpoint: trees of arrays and metadata, which Orbax writes, and digests of both.

Orbax does not notice a flipped bit in a weight. The digests of the trees are part of the metadata, with the
step, the validation criterion and the identity of the task (config, data and vocabulary). The metadata has a
digest of its own, which reveals damage and edits. A checkpoint is intact if it can be read and all its
digests match.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from transformer.config import UserError
from transformer.json_files import check_types, seal, sealed
from transformer.training.digests import digest, is_split
from transformer.training.processes import all_true
from transformer.training.train_step import TrainState

TREES = ("params", "opt_state")
METADATA = "metadata"
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


def trees_of(state: TrainState) -> dict[str, PyTree]:
    """Returns the trees of a state that a checkpoint stores, by name.

    The optimizer's state becomes a flat dict, since Orbax stores no NamedTuples, masks or empty states. The
    leading number keeps the order of the leaves when Orbax sorts the names.
    """
    leaves = jax.tree_util.tree_leaves_with_path(state.opt_state)
    opt_state = {
        f"{number:05d}.{jax.tree_util.keystr(path, simple=True, separator='.')}": leaf
        for number, (path, leaf) in enumerate(leaves)
    }
    return {"params": state.params, "opt_state": opt_state}


def state_of(step: int, trees: Mapping[str, PyTree], template: TrainState) -> TrainState:
    """Returns the state at a step, with the structure of `template`, from trees; see `trees_of`."""
    opt_state = jax.tree.unflatten(jax.tree.structure(template.opt_state), trees["opt_state"].values())
    return TrainState(np.int32(step), trees["params"], opt_state)


def save_arguments(trees: Mapping[str, PyTree], metadata: Mapping[str, Any]) -> ocp.args.Composite:
    """Returns copies of the trees, and the metadata with their digests, as Orbax expects them."""
    copies = {name: jax.tree.map(_copy, tree) for name, tree in trees.items()}
    digests = {name: digest(tree) for name, tree in copies.items()}
    items = {name: ocp.args.StandardSave(tree) for name, tree in copies.items()}
    items[METADATA] = ocp.args.JsonSave(sealed({**metadata, "digests": digests}))
    return ocp.args.Composite(**items)


def read_checkpoint(
    folder: Path, templates: Mapping[str, PyTree], all_processes: bool = False
) -> tuple[dict[str, PyTree], dict[str, Any]]:
    """Returns trees of a checkpoint and its metadata.

    Reads each part with its own handler, because `CheckpointManager.restore` would wait for a process whose
    read has failed.

    Args:
      folder: the folder of the checkpoint, whose name is the step.
      templates: the trees to read, with the expected structure, shapes and shardings.
      all_processes: whether all processes that train together read the checkpoint. Then all fail if one does.

    Raises:
      DamagedCheckpoint: one of the trees or the metadata is not intact.
      UserError: the shapes in the checkpoint differ from those of the templates.
    """
    step, handler = int(folder.name), ocp.StandardCheckpointHandler()
    templates = {name: jax.tree.map(_template, tree) for name, tree in templates.items()}
    trees, error = {}, None
    try:
        for name, template in templates.items():
            trees[name] = handler.restore(folder / name, args=ocp.args.StandardRestore(template))
        metadata = ocp.JsonCheckpointHandler().restore(folder / METADATA)
        if metadata["sha256"] != seal(metadata):
            raise UserError("its metadata was damaged or edited")
        check_types(folder, metadata, METADATA_TYPES)
        if metadata["step"] != step:
            raise UserError(f"its metadata is that of step {metadata['step']}")
        digests = {name: metadata["digests"][name] for name in trees}
    except Exception as raised:  # Orbax raises anything, down to a bare Exception, on a damaged file
        error = raised
    if all_processes and not all_true(error is None):
        error = error or UserError("another process cannot read it")
    if error is not None:
        raise _unreadable(folder, error) from error
    if misshapen := [name for name in trees if _shapes(trees[name]) != _shapes(templates[name])]:
        raise UserError(
            f"checkpoint {folder} does not fit the model of config.json: the shapes of "
            f"{', '.join(misshapen)} differ; restore the run's config.json"
        )
    if damaged := [name for name in trees if digest(trees[name]) != digests[name]]:
        raise DamagedCheckpoint(f"checkpoint {folder} is damaged: {', '.join(damaged)}", step)
    return trees, metadata


def stored_shapes(folder: Path) -> dict[str, PyTree]:
    """Returns the shapes and dtypes of all trees of a checkpoint: the templates to read it without a model.

    Raises:
      DamagedCheckpoint: they cannot be read.
    """
    handler = ocp.StandardCheckpointHandler()
    try:
        return {
            name: jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
                handler.metadata(folder / name).tree,
            )
            for name in TREES
        }
    except Exception as error:
        raise _unreadable(folder, error) from error


def check_space(folder: Path, trees: PyTree) -> None:
    """Checks that there is space for arrays. A write that fails in one process blocks the others for minutes.

    Raises:
      UserError: there is too little.
    """
    needed, free = sum(leaf.nbytes for leaf in jax.tree.leaves(trees)), shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder}: {free / 1e6:,.1f} MB are free, but a checkpoint needs {needed / 1e6:,.1f} MB; "
            "free some space, then run the same command again"
        )


def _unreadable(folder: Path, error: Exception) -> DamagedCheckpoint:
    reason = (str(error).splitlines() or [""])[0][:200]
    return DamagedCheckpoint(f"checkpoint {folder} is unreadable: {reason}", int(folder.name))


def _copy(leaf):
    """Copies an array, to the host unless it is split over devices, so that its memory may be reused."""
    return jax.numpy.copy(leaf) if is_split(leaf) else np.array(leaf)


def _template(leaf):
    """Describes an array to Orbax, which restores split arrays as such, and others as NumPy arrays."""
    if is_split(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
    return np.zeros(leaf.shape, leaf.dtype)


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each leaf. Orbax does not compare shapes with the template; the caller must."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in leaves}
