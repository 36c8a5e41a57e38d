"""Checkpoints: Orbax, written in the background, each with a digest of what it holds.

Orbax does not notice a flipped bit in a weight; the digest, in a JSON item of the same commit, does.
"""

import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from transformer.config import UserError
from transformer.training.step import TrainState


class Checkpoints:
    """The checkpoints of a run: the last few, and the one with the lowest validation loss."""

    def __init__(self, folder: Path, keep_last: int | None = None):
        """Opens a folder: with `keep_last` to train, otherwise to read, also while it is being trained."""
        best = BestN(
            get_metric_fn=lambda metrics: -metrics["nll"], n=1, keep_checkpoints_without_metrics=False
        )
        self._folder = folder.absolute()
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy([LatestN(keep_last), best]),
                best_fn=lambda metrics: metrics["nll"],
                best_mode="min",
                read_only=keep_last is None,
                create=keep_last is not None,
                cleanup_tmp_directories=keep_last is not None,
            ),
            item_names=("params", "adam", "facts"),
        )
        # Saved between two validations, by an interruption.
        self._unscored = [step for step in self.steps if self._manager.metrics(step) is None]

    @property
    def steps(self) -> list[int]:
        """Steps that can be restored, in order."""
        return sorted(self._manager.all_steps())

    @property
    def best(self) -> int | None:
        """The step with the lowest validation loss."""
        return self._manager.best_step()

    def save(self, state: TrainState, facts: dict[str, Any], nll: float | None) -> None:
        """Writes a state in the background.

        Args:
          state: copied before this returns, so that the next update may reuse its memory.
          facts: JSON data that comes back with the state.
          nll: validation loss, nats a piece, by which the best is kept; None where it was not measured.
        """
        if nll is None:
            self._unscored.append(int(state.step))
        elif self._unscored:  # they have served their purpose
            self._manager.wait_until_finished()
            for step in self._unscored:
                self._manager.delete(step)
            self._unscored = []
        items = jax.tree.map(np.array, {"params": state.params, "adam": state.adam})
        digests = {name: digest(item) for name, item in items.items()}
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                **{name: ocp.args.StandardSave(item) for name, item in items.items()},
                facts=ocp.args.JsonSave({**facts, "digests": digests}),
            ),
            metrics=None if nll is None else {"nll": nll},
        )

    def restore(self, template: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The latest state, in the shape of `template`, and its facts; None where there is none."""
        if not self.steps:
            return None
        step = self.steps[-1]
        items, facts = self._read(step, {"params": template.params, "adam": template.adam})
        return TrainState(np.int32(step), **items), facts

    def params(self, step: int, template: PyTree) -> tuple[PyTree, dict[str, Any]]:
        """The weights of a step, in the shape of `template`, and its facts."""
        items, facts = self._read(step, {"params": template})
        return items["params"], facts

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.close()

    def _read(self, step, templates):
        templates = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), templates)
        arguments = {name: ocp.args.StandardRestore(template) for name, template in templates.items()}
        try:
            restored = self._manager.restore(
                step, args=ocp.args.Composite(**arguments, facts=ocp.args.JsonRestore())
            )
            items = {name: restored[name] for name in templates}
            other = [name for name in items if _shapes(items[name]) != _shapes(templates[name])]
            damaged = [name for name in items if digest(items[name]) != restored.facts["digests"][name]]
        except Exception as error:  # Orbax raises anything, down to a bare Exception, on a broken file
            reason = (str(error).splitlines() or [""])[0][:200]
            raise UserError(f"checkpoint {self._folder / str(step)} is unreadable: {reason}") from error
        if other:
            raise UserError(f"checkpoint {self._folder / str(step)} has other shapes: {', '.join(other)}")
        if damaged:
            raise UserError(f"checkpoint {self._folder / str(step)} is damaged: {', '.join(damaged)}")
        return items, restored.facts


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    """Orbax restores whatever shape was stored, so they are compared."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in leaves}


def digest(tree: PyTree) -> str:
    """SHA-256 of a tree's paths, dtypes, shapes and values."""
    state = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        state.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        state.update(array.tobytes())
    return state.hexdigest()


def average(trees: list[PyTree]) -> PyTree:
    """The mean of several weights (paper, section 6.1), summed in float64."""
    return jax.tree.map(
        lambda *leaves: np.mean([np.asarray(x, np.float64) for x in leaves], axis=0).astype(leaves[0].dtype),
        *trees,
    )
