"""Costs of a config and its departures from the paper, computed from shapes: nothing is allocated."""

import dataclasses
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal, jaxpr_as_fun
from jaxtyping import PyTree

from transformer.batch import Batch, TokenBatch
from transformer.config import ExperimentConfig, flatten, to_dict
from transformer.data.builders import options_type, resolve_options
from transformer.fidelity import departures, is_read
from transformer.model import build_model, parameter_shapes
from transformer.model.flops import matmul_flops
from transformer.tasks.translation import make_loss_fn
from transformer.training.train_step import init_state
from transformer.training.trainable import Hyperparameters, LossFn

VOCABULARY_NOTE = (
    "No single vocabulary explains the parameters in the paper's Table 3: 37,000 tokens give base 63.0M, "
    "where the paper has 65M; about 40,500 fit base and the rows derived from it, but give big 217.8M; about "
    "36,000 fit big, 213M."
)


def describe(config: ExperimentConfig) -> dict[str, Any]:
    """Returns the costs of a config, its differences from base and its departures, as JSON data.

    The figures are for a training step on full rows: as many rows of `data.row_length` tokens, on both sides
    and without padding, as hold `train.batch_tokens`. The vocabulary has `data.vocab_size` tokens; no data
    is read.

    Returns:
      parameters: their number.
      parameters_by_module: their number by path of the module; these add up.
      resolved: the values of fields that may be None.
      step: vocab_size, rows, row_length, and parts, in which the rows are computed one after the other.
      flops_per_step: FLOPs of the matrix products of a training step, forward and backward.
      memory_bytes: on one device: parameters, gradients, optimizer (its state), activations (kept by the
        forward pass for the backward pass; XLA may keep less and compute it again), total.
      difference: the values of base and of this config for each field in which they differ.
      departures: departures from the paper, one line each.
      notes: further remarks, one line each.

    Raises:
      UserError: a name that the model does not know.
    """
    parts, length = config.train.accumulation, config.data.row_length
    rows = -(-config.train.batch_tokens // length)
    rows += -rows % parts
    model = build_model(config.model, config.data.vocab_size)
    hyperparameters = Hyperparameters.from_config(config)
    params = parameter_shapes(model)
    key = jax.eval_shape(lambda: jax.random.key(0))
    batch = full_rows(rows // parts, length)
    passes = trace_passes(make_loss_fn(model), params, batch, key, hyperparameters)
    memory = {
        "parameters": _bytes(params),
        "gradients": _bytes(params) * min(parts, 2),  # with several parts: the sum and those of a part
        "optimizer": _bytes(jax.eval_shape(lambda params: init_state(params, config).opt_state, params)),
        "activations": passes.kept_bytes,
    }
    difference, departing = _difference(config), departures(config, options_type(config.data.name))
    return {
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "parameters_by_module": parameters_by_module(params),
        "resolved": _resolved(config, hyperparameters.learning_rate),
        "step": {
            "vocab_size": config.data.vocab_size,
            "rows": rows,
            "row_length": length,
            "parts": parts,
        },
        "flops_per_step": parts * passes.flops,
        "memory_bytes": memory | {"total": sum(memory.values())},
        "difference": difference,
        "departures": departing,
        "notes": _notes(config, difference, departing),
    }


def full_rows(num_rows: int, length: int) -> Batch:
    """Returns the shapes of a batch."""
    side = TokenBatch(*[jax.ShapeDtypeStruct((num_rows, length), jnp.int32)] * len(TokenBatch._fields))
    return Batch(side, side, jax.ShapeDtypeStruct((num_rows,), jnp.int32))


class Passes(NamedTuple):
    """Costs of a forward and a backward pass.

    Attributes:
      flops: FLOPs of their matrix products.
      kept_bytes: bytes that the forward pass keeps for the backward pass, without its arguments.
    """

    flops: int
    kept_bytes: int


def trace_passes(loss_fn: LossFn, params: PyTree, *arguments: Any) -> Passes:
    """Traces both passes of a loss once; arguments may be shapes."""

    def both_passes(params, *arguments):
        loss, backward, _ = jax.vjp(lambda params: loss_fn(params, *arguments), params, has_aux=True)
        return jax.tree.leaves(backward), backward(jnp.ones_like(loss))

    closed, shapes = jax.make_jaxpr(both_passes, return_shape=True)(params, *arguments)
    jaxpr = closed.jaxpr
    residuals = {var for var in jaxpr.outvars[: len(shapes[0])] if not isinstance(var, Literal)}
    kept = residuals - {*jaxpr.invars, *jaxpr.constvars}
    inputs = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in closed.in_avals]
    return Passes(matmul_flops(jaxpr_as_fun(closed), *inputs), _bytes([var.aval for var in kept]))


def parameters_by_module(params: PyTree) -> dict[str, int]:
    """Returns the parameters of each sub-layer, and of each module outside the layers, by path."""
    counts = Counter()
    for path, leaf in jax.tree.leaves_with_path(params):
        *modules, _ = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        counts["/".join(modules[:3])] += leaf.size
    return dict(counts)


def _bytes(tree: PyTree) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _resolved(config: ExperimentConfig, learning_rate: float) -> dict[str, float]:
    model = config.model
    values = {
        "model.encoder_layers": model.encoder_depth,
        "model.decoder_layers": model.decoder_depth,
        "model.d_k": model.key_width,
        "model.d_v": model.value_width,
        "optimizer.learning_rate": learning_rate,
    }
    return {field: value for field, value in values.items() if is_read(field, config)}


def _difference(config: ExperimentConfig) -> dict[str, list[Any]]:
    """The values of base and of the config; options of the data set are compared with their defaults."""
    options = resolve_options(dataclasses.replace(config.data, options={})).options
    base = flatten(to_dict(ExperimentConfig())) | flatten(options, "data.options.")
    values = flatten(to_dict(config))
    return {field: [base[field], value] for field, value in values.items() if value != base[field]}


def _notes(config: ExperimentConfig, difference: Iterable[str], departing: list[str]) -> list[str]:
    in_table_3 = not any(line.startswith(("model.", "data.name")) for line in departing)
    unread = [field for field in difference if not is_read(field, config)]
    notes = [VOCABULARY_NOTE] if in_table_3 else []
    return notes + ([f"without effect here: {', '.join(unread)}"] if unread else [])
