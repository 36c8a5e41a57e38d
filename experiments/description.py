"""What a config costs and how it departs from the paper, worked out from shapes: nothing is allocated."""

from collections import Counter
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal, jaxpr_as_fun
from jaxtyping import PyTree

from transformer.config import ExperimentConfig, flatten, to_dict
from transformer.data.pipeline import Batch, Rows
from transformer.fidelity import departures, is_read
from transformer.model import build, init_params
from transformer.model.encoder_decoder import EncoderDecoder
from transformer.model.flops import matmul_flops
from transformer.training.losses import LossFn, make_loss_fn
from transformer.training.optimizer import adam
from transformer.training.setup import make_hyper

VOCABULARIES = (
    "No one vocabulary explains the parameters in the paper's Table 3: 37,000 pieces give base 63.0M, where "
    "the paper has 65M; about 40,500 fit base and the rows made from it, but give big 217.8M; about 36,000 "
    "fit big, 213M."
)


def describe(config: ExperimentConfig) -> dict:
    """A config in figures; plain data.

    A training step is one on full rows: as many of `data.row_length` pieces, on both sides and without
    padding, as hold `train.batch_tokens`. The vocabulary has `data.vocab_size` pieces, and no data is read.

    Returns:
      parameters: how many.
      parameters_by_module: by the module's path; they add up.
      resolved: what fields that may be None come to.
      step: what the figures are for: the vocabulary, the rows of a training step, their length, and the parts
        in which they are computed.
      flops_per_step: of the matrix products of a training step, forward and backward.
      memory_bytes: on one device: parameters, gradients, optimizer (Adam's two moments), activations (what
        the forward pass keeps for the backward pass; XLA may keep less and work it out again), total.
      difference: base's value and this one of each field in which they differ.
      departures: from the paper, a line each.
      notes: what else to know, a line each.

    Raises:
      UserError: a name that the model does not know.
    """
    parts, length = config.train.accumulation, config.data.row_length
    rows = -(-config.train.batch_tokens // length)
    rows += -rows % parts  # as a placement pads them
    model, hyper = build(config.model, config.data.vocab_size), make_hyper(config)
    params = parameter_shapes(model)
    key = jax.eval_shape(lambda: jax.random.key(0))
    passes = count(make_loss_fn(model), params, full_rows(rows // parts, length), key, hyper)
    memory = {
        "parameters": _bytes(params),
        "gradients": _bytes(params) * min(parts, 2),  # of several parts: their sum, and one part's
        "optimizer": _bytes(jax.eval_shape(adam(config.optimizer).init, params)),
        "activations": passes.kept_bytes,
    }
    base, own = (flatten(to_dict(one)) for one in (ExperimentConfig(), config))
    difference = {field: [base[field], own[field]] for field in own if own[field] != base[field]}
    departing = departures(config)
    of_table_3 = not any(line.startswith(("model.", "data.name")) for line in departing)
    unread = [field for field in difference if not is_read(field, config)]
    notes = [VOCABULARIES] if of_table_3 else []
    notes += [f"without effect here: {', '.join(unread)}"] if unread else []
    return {
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "parameters_by_module": parameters_by_module(params),
        "resolved": _resolved(config, hyper.learning_rate),
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
        "notes": notes,
    }


def parameter_shapes(model: EncoderDecoder) -> PyTree:
    """The shapes of a model's weights."""
    return jax.eval_shape(lambda: init_params(model, seed=0))


def full_rows(rows: int, length: int) -> Batch:
    """The shapes of a batch."""
    side = Rows(*[jax.ShapeDtypeStruct((rows, length), jnp.int32)] * len(Rows._fields))
    return Batch(side, side, jax.ShapeDtypeStruct((rows,), jnp.int32))


class Passes(NamedTuple):
    """What a forward and a backward pass cost.

    Attributes:
      flops: of their matrix products.
      kept_bytes: what the first leaves for the second, their own arguments not counted.
    """

    flops: int
    kept_bytes: int


def count(loss_fn: LossFn, params: PyTree, *rest) -> Passes:
    """Traces both passes, once; arguments may be shapes."""

    def passes(params, *rest):
        loss, backward, _ = jax.vjp(lambda params: loss_fn(params, *rest), params, has_aux=True)
        return jax.tree.leaves(backward), backward(jnp.ones_like(loss))

    closed, shapes = jax.make_jaxpr(passes, return_shape=True)(params, *rest)
    jaxpr = closed.jaxpr
    residuals = {one for one in jaxpr.outvars[: len(shapes[0])] if not isinstance(one, Literal)}
    made = residuals - {*jaxpr.invars, *jaxpr.constvars}
    arguments = [jax.ShapeDtypeStruct(one.shape, one.dtype) for one in closed.in_avals]
    return Passes(matmul_flops(jaxpr_as_fun(closed), *arguments), _bytes([one.aval for one in made]))


def parameters_by_module(params: PyTree) -> dict[str, int]:
    """Parameters of each sub-layer and of each module outside the layers, by path."""
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
