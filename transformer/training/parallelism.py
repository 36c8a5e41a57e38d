"""Parallelism over devices. Steps are written for one device; a `Parallelism` runs them on several.

Each device gets some rows of a batch. States are replicated and stay plain trees, so a checkpoint does not
depend on the devices.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import PyTree

from transformer.config import choose


@runtime_checkable
class Parallelism(Protocol):
    """Compiles functions of (state, batch, key, hyperparameters) and splits their batches."""

    def compile(self, function: Callable, donate_state: bool = False) -> Callable:
        """Compiles a function of four arguments. Only the second argument, the batch, is split."""

    def put(self, tree: Any) -> Any:
        """Moves a state to its devices, with the sharding that compiled functions return."""

    def reduce(self, tree: Any) -> Any:
        """Sums over the devices, inside a compiled function."""

    def shard(self, batch: PyTree, parts: int = 1) -> PyTree:
        """Moves a batch of this process to the devices, with `parts` equal parts on each device."""


class Single:
    """Runs on one device."""

    def compile(self, function, donate_state=False):
        return jax.jit(function, donate_argnums=(0,) if donate_state else ())

    def put(self, tree):
        return jax.device_put(tree, jax.local_devices()[0])

    def reduce(self, tree):
        return tree

    def shard(self, batch, parts=1):
        return jax.device_put(pad_batch(batch, parts))


class Pmap:
    """Data parallelism over all devices of all processes (the paper's eight P100, section 5.2).

    The state is not donated: with `in_axes=None` it stays one plain tree, which `jax.pmap` copies.
    """

    def __init__(self, devices: Sequence[jax.Device] | None = None):
        """Uses `devices`; if None, all devices."""
        self._devices = list(devices or jax.devices())
        self._num_local = sum(device.process_index == jax.process_index() for device in self._devices)

    def compile(self, function, donate_state=False):
        del donate_state
        in_axes = (None, 0, None, None)
        return jax.pmap(function, "devices", in_axes=in_axes, out_axes=None, devices=self._devices)

    def put(self, tree):
        mesh = jax.sharding.Mesh(np.array(self._devices), ("devices",))
        return jax.device_put(tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))

    def reduce(self, tree):
        return jax.lax.psum(tree, "devices")

    def shard(self, batch, parts=1):
        batch = pad_batch(batch, self._num_local * parts)
        return jax.tree.map(lambda x: x.reshape(self._num_local, -1, *x.shape[1:]), batch)


PARALLELISMS: dict[str, Callable[[], Parallelism]] = {
    "single": Single,
    "pmap": Pmap,
    "auto": lambda: Pmap() if jax.device_count() > 1 else Single(),
}


def make_parallelism(name: str) -> Parallelism:
    """Returns the parallelism that a config names."""
    return choose(PARALLELISMS, name, "train.parallelism")()


def pad_batch(batch: PyTree, multiple: int) -> PyTree:
    """Pads the batch with rows of zeros to a multiple of `multiple` rows.

    Padding rows do not affect the loss.
    """

    def pad(x):
        return np.pad(x, ((0, -len(x) % multiple),) + ((0, 0),) * (x.ndim - 1))

    return jax.tree.map(pad, batch)
