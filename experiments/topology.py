"""Compiles a config for a slice of TPUs, on a machine without TPUs, and reads the compiled programs.

The package libtpu (extra `tpu`) has the compiler.
"""

import functools
import importlib.util
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from jaxtyping import PyTree

from experiments.compiler_text import AVAILABLE, NEEDED, bytes_in, collectives, first_line
from transformer.config import ExperimentConfig, UserError
from transformer.decoding.model_search import ModelSearch
from transformer.fidelity import is_read
from transformer.model import build_model, parameter_shapes
from transformer.tasks import task_type
from transformer.training.parallelism import Mesh
from transformer.training.train_step import init_state, make_train_step
from transformer.training.trainable import Hyperparameters

LANES = 128  # width of a TPU's matrix unit and vector registers, to a multiple of which arrays are padded
SEARCH_LENGTH = 32  # source tokens per sentence in the compiled search

Progress = Callable[[str], None]


def compile_for(config: ExperimentConfig, name: str, largest: bool, progress: Progress) -> dict[str, Any]:
    """Compiles one training step and a search for a slice of TPUs.

    Args:
      config: the resolved config. `train.fsdp` and `train.tensor` shape the mesh of chips.
      name: the slice; see `open_topology`.
      largest: whether to search for the largest batch that fits; takes several more compilations.
      progress: called with a line before each compilation.

    Returns:
      JSON data. Bytes are those of one chip.
      chips, mesh: the number of chips, and the sizes of the mesh axes.
      available_bytes: memory that programs may use.
      training: figures of the training step (see `_figures`), with rows, row_length, parameter_bytes and
        optimizer_bytes.
      search: figures of the search, which runs on one chip, with sentences and source_length; None for a
        task without a search.
      padding: widths that are no multiple of 128: name, value and padded value.
      largest_batch: batch_tokens (or batch_size), rows and needed_bytes; None if a single row per chip does
        not fit. Missing unless `largest`.

    Raises:
      UserError: libtpu or the slice does not exist, the mesh does not fit the slice, or `train.parallelism`
        is neither auto nor mesh.
    """
    if config.train.parallelism not in ("auto", "mesh"):
        raise UserError(
            f"--topology compiles for a mesh, but train.parallelism is {config.train.parallelism!r}; "
            "set it to mesh"
        )
    devices = open_topology(name)
    mesh = Mesh(config.train.fsdp, config.train.tensor, devices)
    program = TrainingProgram(config, mesh, progress)
    training = program.figures(task_type(config).step_shape(config)["rows"])
    search = None
    if task_type(config).searches:
        progress("compiling a search for one chip")
        search = _search_figures(config, devices[0])
    available = available_bytes(devices[0])
    result = {
        "chips": len(devices),
        "mesh": dict(mesh.mesh.shape),
        "available_bytes": available,
        "training": training,
        "search": search,
        "padding": _padding(config),
    }
    if largest:
        largest_rows = largest_batch(program.figures, training["rows"], program.round_up(1), available)
        result["largest_batch"] = largest_rows and {
            "rows": largest_rows,
            **_batch_fields(config, largest_rows),
            "needed_bytes": program.figures(largest_rows)["needed_bytes"],
        }
    return result


def _batch_fields(config: ExperimentConfig, rows: int) -> dict[str, int]:
    """Returns the field of `train` that gives a batch this number of rows, with its value."""
    if is_read("train.batch_size", config):
        return {"batch_size": rows}
    return {"batch_tokens": rows * config.data.row_length}


def open_topology(name: str) -> Sequence[jax.Device]:
    """Returns the chips of a slice, such as v5e:2x4. They can compile programs, but not run them.

    Raises:
      UserError: libtpu is missing, or there is no such slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "--topology needs the TPU compiler, which is not installed; run "
            "pip install -c constraints.txt -e '.[tpu]'"
        )
    # Otherwise JAX and libtpu look for a TPU of this machine, and ask a metadata server.
    jax.config.update("jax_platforms", "cpu")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # several processes may compile at a time
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    advice = "try v5e:1x1, v5e:2x4, v5p:2x2x1 or v6e:4x4"
    if not re.fullmatch(r"\w+:\d+(x\d+)+", name):
        raise UserError(f"--topology is {name!r}; it must be a kind of TPU and a shape; {advice}")
    is_one_chip = set(re.split("[:x]", name)[1:]) == {"1"}
    bounds = {"chips_per_host_bounds": [1, 1, 1]} if is_one_chip else {}
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **bounds).devices
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"--topology is {name!r}, which the TPU compiler refuses ({first_line(error)}); {advice}"
        ) from None


def available_bytes(chip: jax.Device) -> int:
    """Returns the memory in bytes that a program may use on a chip.

    The compiler names it only when it refuses a program, so this compiles a program of 64 TiB.
    """
    rows = jax.ShapeDtypeStruct((2**22,), jnp.float32, sharding=SingleDeviceSharding(chip))
    try:
        jax.jit(lambda x: jnp.sort(jnp.outer(x, x), axis=0)).lower(rows).compile()
    except jax.errors.JaxRuntimeError as error:
        return bytes_in(AVAILABLE, error)
    raise RuntimeError("the compiler accepted a program of 64 TiB")


class TrainingProgram:
    """The training step of a config on a mesh of chips, for any number of rows."""

    def __init__(self, config: ExperimentConfig, mesh: Mesh, progress: Progress):
        """Makes the step; `progress` is called with a line before each compilation."""
        model = task_type(config).planned_model(config)
        self._config, self._mesh, self._progress = config, mesh, progress
        self._figures: dict[int, dict[str, Any]] = {}
        self._step = make_train_step(task_type(config).loss_fn(config, model), config, mesh)
        state = jax.eval_shape(lambda params: init_state(params, config), parameter_shapes(model))
        self._state = jax.tree.map(_with_sharding, state, mesh.shardings(state))

    def round_up(self, rows: int) -> int:
        """Returns the number of rows with the padding that makes equal parts on all chips."""
        return rows + -rows % (self._mesh.num_blocks * self._config.train.accumulation)

    def figures(self, rows: int) -> dict[str, Any]:
        """Compiles the step for a batch of full rows, unless it has done so before; see `compile_for`."""
        rows = self.round_up(rows)
        if rows not in self._figures:
            chips = self._mesh.mesh.size
            self._progress(f"compiling a training step with {rows:,} rows for {chips:,} chips")
            self._figures[rows] = {
                "rows": rows,
                "row_length": task_type(self._config).step_shape(self._config)["row_length"],
                "parameter_bytes": _bytes_on_a_chip(self._state.params),
                "optimizer_bytes": _bytes_on_a_chip(self._state.opt_state),
                **_figures(functools.partial(self._compile, rows)),
            }
        return self._figures[rows]

    def _compile(self, rows: int) -> jax.stages.Compiled:
        batch = task_type(self._config).full_rows(self._config, rows)
        key = jax.eval_shape(lambda: jax.random.key(0))
        hyperparameters = Hyperparameters(
            *[jax.ShapeDtypeStruct((), jnp.float32)] * len(Hyperparameters._fields)
        )
        key, hyperparameters = jax.tree.map(
            lambda x: _with_sharding(x, self._mesh.replicated), (key, hyperparameters)
        )
        batch = jax.tree.map(lambda x: _with_sharding(x, self._mesh.row_sharding), batch)
        return self._step.lower(self._state, batch, key, hyperparameters).compile()


def _search_figures(config: ExperimentConfig, chip: jax.Device) -> dict[str, Any]:
    model = build_model(config.model, config.data.vocab_size)
    length = min(SEARCH_LENGTH, config.data.row_length)
    sentences = max(1, config.decode.batch_tokens // length)
    output_length = length + config.decode.max_extra_length
    search = jax.jit(functools.partial(ModelSearch(model, config.decode), length=output_length))
    source = jax.ShapeDtypeStruct((sentences, length), jnp.int32)
    limits = jax.ShapeDtypeStruct((sentences,), jnp.int32)
    placed = jax.tree.map(
        lambda x: _with_sharding(x, SingleDeviceSharding(chip)), (parameter_shapes(model), source, limits)
    )
    figures = _figures(lambda: search.lower(*placed).compile())
    return {"sentences": sentences, "source_length": length, **figures}


def _figures(compile_program: Callable[[], jax.stages.Compiled]) -> dict[str, Any]:
    """Compiles a program.

    Returns:
      fits: whether the compiler found room for the program.
      compile_seconds: duration of the compilation.
      needed_bytes: largest amount of memory in use at a time, arguments included; for a program that does not
        fit, the amount in the compiler's message, if it has one.
      temporary_bytes: memory for activations, gradients and other intermediate arrays.
      collectives: the exchanges between chips; see `collectives`.

    The last two are missing if the program does not fit.
    """
    started = time.perf_counter()
    try:
        compiled = compile_program()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {
            "fits": False,
            "compile_seconds": time.perf_counter() - started,
            "needed_bytes": bytes_in(NEEDED, error),
        }
    memory = compiled.memory_analysis()
    return {
        "fits": True,
        "compile_seconds": time.perf_counter() - started,
        "needed_bytes": memory.peak_memory_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "collectives": collectives(compiled.as_text()),
    }


def largest_batch(
    figures_of: Callable[[int], Mapping[str, Any]], rows: int, unit: int, available: int
) -> int | None:
    """Searches for the largest number of rows that fits.

    The memory is extrapolated from two batches. The batch that should just fit is compiled, and made smaller
    until it fits, so a slightly larger batch may fit, too.

    Args:
      figures_of: compiles a batch, and returns `fits` and `needed_bytes`.
      rows: the number of rows to begin with, a multiple of `unit`.
      unit: all numbers of rows are multiples of it.
      available: memory of a chip in bytes.

    Returns:
      None if not even `unit` rows fit.
    """
    while not (figures := figures_of(rows))["fits"]:
        if rows == unit:
            return None
        rows = max(unit, rows // 2 // unit * unit)
    second = max(unit, rows // 2 // unit * unit)
    if second == rows:  # there is no smaller batch
        second = 2 * unit
    second_figures = figures_of(second)
    if not second_figures["fits"]:
        return rows
    slope = (figures["needed_bytes"] - second_figures["needed_bytes"]) / (rows - second)
    more = (available - figures["needed_bytes"]) / max(slope, 1)
    candidate = max(rows, second, (rows + int(more)) // unit * unit)
    while not figures_of(candidate)["fits"]:
        candidate = max(rows, int(0.9 * candidate) // unit * unit)
    return candidate


def _padding(config: ExperimentConfig) -> list[dict[str, Any]]:
    """Returns the widths on a chip that are no multiple of `LANES`; the axis tensor makes some smaller."""
    model, tensor = config.model, config.train.tensor
    widths = {
        "data.vocab_size": _on_a_chip(config.data.vocab_size, tensor),
        "model.d_model": model.d_model,
        "model.d_ff": _on_a_chip(model.d_ff, tensor),
        "model.d_k": model.key_width,
        "model.d_v": model.value_width,
    }
    return [
        {"name": name, "width": width, "padded": math.ceil(width / LANES) * LANES}
        for name, width in widths.items()
        if width % LANES and is_read(name, config)
    ]


def _on_a_chip(size: int, tensor: int) -> int:
    """Returns the part of a dimension on a chip; the axis tensor splits only a multiple of its size."""
    return size if size % tensor else size // tensor


def _with_sharding(shape: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def _bytes_on_a_chip(tree: PyTree) -> int:
    leaves = jax.tree.leaves(tree)
    return sum(leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves)
