"""Computes the parameters, FLOPs and memory of a config from shapes; lists departures from the paper."""

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal, jaxpr_as_fun
from jaxtyping import PyTree

from transformer.config import ExperimentConfig, flatten, to_dict
from transformer.fidelity import departures, is_read
from transformer.model import parameter_shapes
from transformer.model.flops import matmul_flops
from transformer.tasks import task_type
from transformer.training.train_step import init_state
from transformer.training.trainable import Hyperparameters, LossFn

VOCABULARY_NOTE = (
    "No single vocabulary size explains all parameter counts in the paper's Table 3. With 37,000 tokens, "
    "base has 63.0M parameters, but the paper reports 65M. About 40,500 tokens match base and the rows "
    "derived from base, but give big 217.8M parameters. The paper reports 213M for big, which corresponds to "
    "about 36,000 tokens."
)


def describe(config: ExperimentConfig) -> dict[str, Any]:
    """Returns the costs of a config, the differences from the base config and the departures, as JSON data.

    The figures are for one training step without padding. Each row has `data.row_length` source tokens and as
    many target tokens; there are enough rows for `train.batch_tokens` target tokens. No data is read: the
    vocabulary is assumed to have `data.vocab_size` tokens. For images, a row is an image, and there are
    `train.batch_size` of them.

    Returns:
      parameters: number of parameters.
      parameters_by_module: number of parameters by module path; the sum is `parameters`.
      resolved: the values of settings that may be None in the config: numbers of layers, head widths and the
        learning rate.
      step: shape of the training step: vocab_size (for text), rows, row_length, and parts
        (`train.accumulation`), the number of groups of rows that are computed one after the other.
      flops_per_step: FLOPs of the matrix products of one training step, forward and backward.
      memory_bytes: memory on one device for parameters, gradients, optimizer (the optimizer's state) and
        activations (arrays that the forward pass keeps for the backward pass), and the total. XLA may keep
        fewer activations and compute the rest again.
      difference: the value in the base config and the value in this config, for each field that differs.
      departures: departures from the paper, one line each.
      notes: further remarks, one line each.

    Raises:
      UserError: the config has an unknown name, such as an unknown position scheme.
    """
    task = task_type(config)
    step, model = task.step_shape(config), task.planned_model(config)
    hyperparameters = Hyperparameters.from_config(config)
    params = parameter_shapes(model)
    key = jax.eval_shape(lambda: jax.random.key(0))
    batch = task.full_rows(config, step["rows"] // step["parts"])
    passes = trace_passes(task.loss_fn(config, model), params, batch, key, hyperparameters)
    difference, departing = _difference(config), departures(config, task.options_type(config))
    return {
        "parameters": _size(params),
        "parameters_by_module": parameters_by_module(params),
        "resolved": _resolved(config, hyperparameters.learning_rate),
        "step": step,
        "flops_per_step": step["parts"] * passes.flops,
        "memory_bytes": _memory(config, params, passes),
        "difference": difference,
        "departures": departing,
        "notes": _notes(config, difference, departing),
    }


def count_parameters(config: ExperimentConfig) -> int:
    """Returns the number of parameters, as in `describe`, without the time that the other costs take."""
    return _size(parameter_shapes(task_type(config).planned_model(config)))


class Passes(NamedTuple):
    """Costs of a forward and a backward pass.

    Attributes:
      flops: FLOPs of the matrix products of both passes.
      kept_bytes: bytes that the forward pass keeps for the backward pass, except for the inputs of the loss.
    """

    flops: int
    kept_bytes: int


def trace_passes(loss_fn: LossFn, params: PyTree, *arguments: Any) -> Passes:
    """Returns the costs of both passes of a loss function, which is only traced: arguments may be shapes."""

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
    """Returns the number of parameters by module path, for sub-layers and for modules outside layers."""
    counts = Counter()
    for path, leaf in jax.tree.leaves_with_path(params):
        *modules, _ = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        counts["/".join(modules[:3])] += leaf.size
    return dict(counts)


def _size(tree: PyTree) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


def _bytes(tree: PyTree) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _memory(config: ExperimentConfig, params: PyTree, passes: Passes) -> dict[str, int]:
    copies = min(config.train.accumulation, 2)  # with accumulation: the sum, and the gradients of one part
    memory = {
        "parameters": _bytes(params),
        "gradients": _bytes(params) * copies,
        "optimizer": _bytes(jax.eval_shape(lambda params: init_state(params, config).opt_state, params)),
        "activations": passes.kept_bytes,
    }
    return memory | {"total": sum(memory.values())}


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
    """Returns the value in the base config and the value in `config`, for each field that differs.

    Options of the data set are compared with the defaults of that data set.
    """
    options = task_type(config).default_options(config.data)
    base = flatten(to_dict(ExperimentConfig())) | flatten(options, "data.options.")
    values = flatten(to_dict(config))
    return {field: [base[field], value] for field, value in values.items() if value != base[field]}


def _notes(config: ExperimentConfig, difference: Iterable[str], departing: list[str]) -> list[str]:
    in_table_3 = not any(line.startswith(("model.", "data.name")) for line in departing)
    unread = [field for field in difference if not is_read(field, config)]
    notes = [VOCABULARY_NOTE] if in_table_3 else []
    return notes + ([f"fields without effect in this config: {', '.join(unread)}"] if unread else [])
