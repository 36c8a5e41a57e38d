"""Parallelism over devices. Steps are written for one device; a `Parallelism` runs them on several.

Each device gets some rows of a batch. The gradients and the totals of the devices are summed in float32.
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding
from jaxtyping import PyTree

from transformer.config import TrainConfig, UserError, choose


@runtime_checkable
class Parallelism(Protocol):
    """Compiles functions of (state, batch, key, hyperparameters) and splits their batches."""

    def compile(self, function: Callable, donate_state: bool = False) -> Callable:
        """Compiles a function of four arguments. Only the second argument, the batch, is split into rows."""

    def create(self, function: Callable[[], PyTree]) -> PyTree:
        """Returns the state that a function makes, with the shardings of `shardings`."""

    def shardings(self, tree: PyTree) -> PyTree:
        """Returns the sharding of each array of a state, or of a part of it, in compiled functions."""

    def sum_rows(self, function: Callable, has_gradient: bool) -> Callable:
        """Returns `function` summed over the rows of all devices, for use inside a compiled function.

        Args:
          function: maps weights, a batch, a key and hyperparameters to sums over the rows of the batch.
          has_gradient: whether these sums are a gradient, with the structure of the weights, and totals;
            otherwise they are totals.
        """

    def shard(self, batch: PyTree, parts: int = 1) -> PyTree:
        """Moves this process's rows of a batch to its devices, with `parts` equal parts on each device."""


class Single:
    """Runs on one device."""

    def compile(self, function, donate_state=False):
        return jax.jit(function, donate_argnums=(0,) if donate_state else ())

    def create(self, function):
        return put(self, function())

    def shardings(self, tree):
        return jax.tree.map(lambda _: SingleDeviceSharding(jax.local_devices()[0]), tree)

    def sum_rows(self, function, has_gradient):
        del has_gradient
        return function

    def shard(self, batch, parts=1):
        return jax.device_put(pad_batch(batch, parts))


class Pmap:
    """Data parallelism over all devices of all processes by `jax.pmap` (the paper's eight P100, section 5.2).

    Every device has the whole state. An update needs memory for two states: with `in_axes=None` the state is
    one plain tree, whose memory `jax.pmap` cannot reuse.
    """

    def __init__(self, devices: Sequence[jax.Device] | None = None):
        """Uses `devices`; if None, all devices."""
        self._devices = list(devices or jax.devices())
        self._num_local = sum(device.process_index == jax.process_index() for device in self._devices)

    def compile(self, function, donate_state=False):
        del donate_state
        in_axes = (None, 0, None, None)
        return jax.pmap(function, "devices", in_axes=in_axes, out_axes=None, devices=self._devices)

    def create(self, function):
        return put(self, function())

    def shardings(self, tree):
        mesh = jax.sharding.Mesh(np.array(self._devices), ("devices",))
        return jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), tree)

    def sum_rows(self, function, has_gradient):
        del has_gradient
        return lambda *arguments: lax.psum(function(*arguments), "devices")

    def shard(self, batch, parts=1):
        batch = pad_batch(batch, self._num_local * parts)
        return jax.tree.map(lambda x: x.reshape(self._num_local, -1, *x.shape[1:]), batch)


# The mesh axes that split each dimension of a weight, by a pattern of its path; the first match counts. All
# other weights, such as biases and the scales of norms, are whole on every device. The path of a moment ends
# with the path of its weight, so the rules also split the optimizer's state.
SHARDING_RULES: dict[str, tuple[tuple[str, ...], ...]] = {
    r"(query|key|value|inner|gate)/kernel$": (("fsdp",), ("tensor",)),
    r"(output|outer)/kernel$": (("tensor",), ("fsdp",)),
    r"embedding/\w*table$": (("fsdp", "tensor"), ()),
    r"kernel$": (("fsdp",), ()),
}
ROW_AXES = ("data", "fsdp")  # the mesh axes that split the rows of a batch


class Mesh:
    """A mesh of all devices with the axes data, fsdp and tensor.

    The rows of a batch are split over data and fsdp. Weights and optimizer state are split over fsdp (ZeRO
    stage 3, Rajbhandari et al. 2020) and tensor (Shoeybi et al. 2019); see `SHARDING_RULES`.

    Attributes:
      mesh: the devices.
      row_sharding: the sharding of a batch.
      replicated: the sharding of an array that every device holds whole.
    """

    def __init__(self, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None):
        """Makes a mesh of `devices`; if None, of all devices of all processes.

        Args:
          fsdp: size of the axis fsdp.
          tensor: size of the axis tensor. The axis data has the rest of the devices.

        Raises:
          UserError: the sizes do not divide the number of devices, or a host would hold only a part of the
            axis tensor.
        """
        devices = list(devices or jax.devices())
        if len(devices) % (fsdp * tensor):
            raise UserError(
                f"train.fsdp times train.tensor is {fsdp * tensor}; it must divide the number of devices "
                f"({len(devices)})"
            )
        shape = (len(devices) // (fsdp * tensor), fsdp, tensor)
        axis_types = (AxisType.Auto,) * len(shape)
        self.mesh = jax.make_mesh(shape, (*ROW_AXES, "tensor"), axis_types, devices=devices)
        for block in self.mesh.devices.reshape(-1, tensor):
            if len({device.process_index for device in block}) > 1:
                raise UserError(f"train.tensor is {tensor}, which would span several hosts; make it smaller")
        self.row_sharding = NamedSharding(self.mesh, PartitionSpec(ROW_AXES))
        self.replicated = NamedSharding(self.mesh, PartitionSpec())

    @property
    def num_blocks(self) -> int:
        """Number of blocks of rows. The devices of a block, along the axis tensor, compute the same rows."""
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    def shardings(self, tree):
        return jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), self._specs(tree))

    def compile(self, function, donate_state=False):
        @functools.wraps(function)
        def with_shardings(*arguments):
            result = function(*arguments)
            return lax.with_sharding_constraint(result, self.shardings(result))

        return jax.jit(with_shardings, donate_argnums=(0,) if donate_state else ())

    def create(self, function):
        """See `Parallelism`. No device holds the whole state, not even while it is made."""
        return jax.jit(function, out_shardings=self.shardings(jax.eval_shape(function)))()

    def sum_rows(self, function, has_gradient):
        """See `Parallelism`. Each device gathers the weights over fsdp, and computes the sums of its rows.

        `jax.shard_map` makes each sum one collective in float32; the compiler alone would reduce gradients in
        the compute dtype. The axis tensor is left to the compiler.
        """
        if self.num_blocks == 1:
            return function

        def summed(params, batch, key, hyperparameters):
            specs = jax.tree.map(_only_fsdp, self._specs(params))
            return jax.shard_map(
                functools.partial(_sum_on_device, function, specs, has_gradient),
                mesh=self.mesh,
                in_specs=(specs, PartitionSpec(ROW_AXES), PartitionSpec(), PartitionSpec()),
                out_specs=(specs, PartitionSpec()) if has_gradient else PartitionSpec(),
                axis_names=set(ROW_AXES),
                check_vma=False,  # JAX cannot infer that gathered weights are equal on all devices
            )(params, batch, key, hyperparameters)

        return summed

    def shard(self, batch, parts=1):
        batch = pad_batch(batch, self.num_blocks // jax.process_count() * parts)
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self.row_sharding, x), batch)

    def _specs(self, tree: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(lambda path, x: self._spec(path, x.shape), tree)

    def _spec(self, path, shape) -> PartitionSpec:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        dimensions = next((axes for rule, axes in SHARDING_RULES.items() if re.search(rule, name)), ())
        if len(dimensions) != len(shape):
            return PartitionSpec()
        return PartitionSpec(*map(self._dividing, dimensions, shape))

    def _dividing(self, axes: tuple[str, ...], size: int) -> tuple[str, ...] | None:
        """Returns the axes that split a dimension evenly."""
        chosen = []
        for axis in axes:
            if size % self.mesh.shape[axis] == 0:
                chosen.append(axis)
                size //= self.mesh.shape[axis]
        return tuple(chosen) or None


def _sum_on_device(function, specs, has_gradient, params, *arguments):
    """Computes the sums of this device's rows, and adds those of the other devices."""
    result = function(jax.tree.map(_gather, params, specs), *arguments)
    if not has_gradient:
        return lax.psum(result, ROW_AXES)
    gradient, totals = result
    return jax.tree.map(_sum_and_scatter, gradient, specs), lax.psum(totals, ROW_AXES)


def _only_fsdp(spec: PartitionSpec) -> PartitionSpec:
    return PartitionSpec(*("fsdp" if axes and "fsdp" in axes else None for axes in spec))


def _gather(x, spec):
    return lax.all_gather(x, "fsdp", axis=list(spec).index("fsdp"), tiled=True) if "fsdp" in spec else x


def _sum_and_scatter(x, spec):
    if "fsdp" not in spec:
        return lax.psum(x, ROW_AXES)
    dimension = list(spec).index("fsdp")
    return lax.psum(lax.psum_scatter(x, "fsdp", scatter_dimension=dimension, tiled=True), "data")


def _auto(config: TrainConfig) -> Parallelism:
    is_single = jax.device_count() == config.fsdp == config.tensor == 1
    return Single() if is_single else Mesh(config.fsdp, config.tensor)


def _single(config: TrainConfig) -> Parallelism:
    del config
    if jax.process_count() > 1:
        raise UserError(
            f"train.parallelism is single, which uses one process, but this run has {jax.process_count()}; "
            "set it to mesh, pmap or auto"
        )
    return Single()


PARALLELISMS: dict[str, Callable[[TrainConfig], Parallelism]] = {
    "single": _single,
    "pmap": lambda config: Pmap(),
    "mesh": lambda config: Mesh(config.fsdp, config.tensor),
    "auto": _auto,
}


def make_parallelism(config: TrainConfig) -> Parallelism:
    """Returns the parallelism that a config names.

    Raises:
      UserError: the parallelism cannot use the processes, or the devices do not form the mesh of the config.
    """
    return choose(PARALLELISMS, config.parallelism, "train.parallelism")(config)


def local_mesh() -> Mesh | None:
    """Returns a mesh of this process's devices, for evaluation and search; None if one device is enough.

    Several virtual devices of a CPU would share the cores that one device already uses.
    """
    devices = jax.local_devices()
    return Mesh(devices=devices) if len(devices) > 1 and devices[0].platform != "cpu" else None


def put(parallelism: Parallelism, tree: PyTree) -> PyTree:
    """Moves a state to its devices. Processes that train together must have equal states."""
    return jax.device_put(tree, parallelism.shardings(tree))


def abstract_state(parallelism: Parallelism, function: Callable[[], PyTree]) -> PyTree:
    """Returns the shapes, dtypes and shardings of the state that a function makes."""
    shapes = jax.eval_shape(function)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        parallelism.shardings(shapes),
    )


def pad_batch(batch: PyTree, multiple: int) -> PyTree:
    """Pads the batch with rows of zeros to a multiple of `multiple` rows.

    Padding rows do not affect the loss.
    """

    def pad(x):
        return np.pad(x, ((0, -len(x) % multiple),) + ((0, 0),) * (x.ndim - 1))

    return jax.tree.map(pad, batch)
