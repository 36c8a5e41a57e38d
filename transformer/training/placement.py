"""Where a step runs. The step is written once, for one device; a placement sums over the others.

Batches are cut by rows; states are replicated and stay plain trees, so that a checkpoint knows nothing of
devices.
"""

import inspect
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np

from transformer.config import choose
from transformer.data.pipeline import Batch


class Placement(Protocol):
    """Compiles functions of (state, batch, ...) and cuts batches to fit them."""

    def compile(self, function: Callable, donate_state: bool = False) -> Callable:
        """Compiles; only the argument named `batch` is cut."""

    def reduce(self, tree: Any) -> Any:
        """Inside a compiled function, sums over the devices."""

    def shard(self, batch: Batch, parts: int = 1) -> Batch:
        """Brings a batch of this process to its devices, with `parts` equal parts on each."""


class Jit:
    """One device."""

    def compile(self, function, donate_state=False):
        return jax.jit(function, donate_argnums=(0,) if donate_state else ())

    def reduce(self, tree):
        return tree

    def shard(self, batch, parts=1):
        return jax.device_put(pad_rows(batch, parts))


class Pmap:
    """All devices of all processes, data-parallel (the paper's eight P100, section 5.2)."""

    def compile(self, function, donate_state=False):
        # With in_axes=None for the state and out_axes=None it stays one plain tree, so nothing is donated.
        del donate_state
        in_axes = tuple(0 if name == "batch" else None for name in inspect.signature(function).parameters)
        return jax.pmap(function, axis_name="devices", in_axes=in_axes, out_axes=None)

    def reduce(self, tree):
        return jax.lax.psum(tree, "devices")

    def shard(self, batch, parts=1):
        devices = jax.local_device_count()
        batch = pad_rows(batch, devices * parts)
        return jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch)


PLACEMENTS: dict[str, Callable[[], Placement]] = {
    "jit": Jit,
    "pmap": Pmap,
    "auto": lambda: Pmap() if jax.device_count() > 1 else Jit(),
}


def place(name: str) -> Placement:
    """Makes the placement a config names."""
    return choose(PLACEMENTS, name, "train.placement")()


def pad_rows(batch: Batch, multiple: int) -> Batch:
    """Adds rows of padding, which weigh nothing, up to a multiple."""

    def pad(x):
        return np.pad(x, ((0, -len(x) % multiple),) + ((0, 0),) * (x.ndim - 1))

    return jax.tree.map(pad, batch)
