"""Where a step runs. The step is written once, for one device; a placement sums over the others.

Batches are cut by rows; states are replicated and stay plain trees, so that a checkpoint knows nothing of
devices.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from transformer.config import choose
from transformer.data.pipeline import Batch


@runtime_checkable
class Placement(Protocol):
    """Compiles functions of (state, batch, ...) and cuts batches to fit them."""

    def compile(self, function: Callable, donate_state: bool = False) -> Callable:
        """Compiles; only the argument named `batch` is cut."""

    def replicate(self, tree: Any) -> Any:
        """Brings a state to its devices, in the form in which the compiled functions return it."""

    def reduce(self, tree: Any) -> Any:
        """Inside a compiled function, sums over the devices."""

    def shard(self, batch: Batch, parts: int = 1) -> Batch:
        """Brings a batch of this process to its devices, with `parts` equal parts on each."""


class Jit:
    """One device."""

    def compile(self, function, donate_state=False):
        return jax.jit(function, donate_argnums=(0,) if donate_state else ())

    def replicate(self, tree):
        return jax.device_put(tree, jax.local_devices()[0])

    def reduce(self, tree):
        return tree

    def shard(self, batch, parts=1):
        return jax.device_put(pad_rows(batch, parts))


class Pmap:
    """Data-parallel over all devices of all processes (the paper's eight P100, section 5.2)."""

    def __init__(self, devices: Sequence[jax.Device] | None = None):
        """Uses `devices`; None: all there are."""
        self._devices = list(devices or jax.devices())
        self._local = [one for one in self._devices if one.process_index == jax.process_index()]

    def compile(self, function, donate_state=False):
        # With in_axes=None for the state and out_axes=None it stays one plain tree, so nothing is donated.
        del donate_state
        in_axes = tuple(0 if name == "batch" else None for name in inspect.signature(function).parameters)
        return jax.pmap(function, "devices", in_axes=in_axes, out_axes=None, devices=self._devices)

    def replicate(self, tree):
        mesh = jax.sharding.Mesh(np.array(self._devices), ("devices",))
        return jax.device_put(tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))

    def reduce(self, tree):
        return jax.lax.psum(tree, "devices")

    def shard(self, batch, parts=1):
        batch = pad_rows(batch, len(self._local) * parts)
        return jax.tree.map(lambda x: x.reshape(len(self._local), -1, *x.shape[1:]), batch)


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
