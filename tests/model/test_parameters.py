"""Parameter names are a checkpoint's API; their number is the paper's."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import VOCAB, as_int, tiny_config
from transformer.config import BOS, TransformerConfig
from transformer.model import build, init_params
from transformer.model.embedding import EMBEDDINGS
from transformer.model.layers import FEED_FORWARDS
from transformer.model.transformer import Transformer

PROJECTIONS = [f"{name}/kernel" for name in ("query", "key", "value", "output")]
FEED_FORWARD = [f"{name}/{leaf}" for name in ("inner", "outer") for leaf in ("bias", "kernel")]


def expected_names(layers, feed_forward=FEED_FORWARD):
    names = {"embedding/table"}
    for stack, attentions in (("encoder", ["self"]), ("decoder", ["self", "cross"])):
        for number in range(layers):
            layer = f"{stack}/layers_{number}"
            names |= {f"{layer}/feed_forward/{leaf}" for leaf in feed_forward}
            for name in ["feed_forward", *(f"{one}_attention" for one in attentions)]:
                names |= {f"{layer}/{name}_residual/norm/{leaf}" for leaf in ("bias", "scale")}
            for one in attentions:
                names |= {f"{layer}/{one}_attention/{leaf}" for leaf in PROJECTIONS}
    return names


def names(params):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree.leaves_with_path(params)
    }


def test_names(tiny):
    assert names(tiny[1]) == expected_names(layers=2)


@pytest.mark.parametrize(
    ("changes", "extra"),
    [
        ({"positions": "learned"}, {"encoder/positions/table", "decoder/positions/table"}),
        (
            {"norm_placement": "pre"},
            {f"{stack}/norm/{leaf}" for stack in ("encoder", "decoder") for leaf in ("bias", "scale")},
        ),
        (
            {"positions": "relative"},
            {
                f"{stack}/positions/{name}_table"
                for stack in ("encoder", "decoder")
                for name in ("key", "value")
            },
        ),
        ({"positions": "t5_bias"}, {"encoder/positions/table", "decoder/positions/table"}),
        ({"positions": "rope"}, set()),
        ({"positions": "alibi"}, set()),
        ({"embeddings": "two_way"}, {"embedding/source_table"}),
        ({"embeddings": "untied"}, {"embedding/source_table", "embedding/output_table"}),
    ],
    ids=["learned", "pre", "relative", "t5_bias", "rope", "alibi", "two_way", "untied"],
)
def test_names_of_variants(changes, extra):
    assert names(shapes(**changes)) == expected_names(layers=2) | extra


@pytest.mark.parametrize("embeddings", EMBEDDINGS)
@pytest.mark.parametrize("kind", ["transformer", "recurrent"])
def test_each_matrix_serves_the_uses_that_name_it(kind, embeddings):
    """The logit of one class has a gradient in the rows of the source, of the decoder's input and of the class."""
    model = build(tiny_config(kind=kind, embeddings=embeddings, num_layers=1), VOCAB)

    def logit(params):
        return model.apply({"params": params}, as_int([[4, 5]]), as_int([[6, 7, 2]]))[..., 11].sum()

    gradient = jax.jit(jax.grad(logit))(init_params(model, seed=0))["embedding"]
    rows = {"source": {4, 5}, "target": {BOS, 6, 7}, "output": {11}}
    served = {name: set() for name in gradient}
    for use, name in EMBEDDINGS[embeddings]._asdict().items():
        served[name] |= rows[use]
    assert {name: set(np.flatnonzero(jnp.abs(one).max(axis=1))) for name, one in gradient.items()} == served


def test_names_of_a_gated_feed_forward_layer():
    gated = [f"{name}/kernel" for name in ("inner", "gate", "outer")]
    assert names(shapes(feed_forward="swiglu")) == expected_names(2, gated)


def test_rms_norm_has_no_bias():
    without = {name for name in expected_names(2) if not name.endswith("norm/bias")}
    assert names(shapes(norm="rms_norm")) == without


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_names_of_recurrent_modules(cell):
    """Up to the cell, whose weights are Flax's own."""

    def modules(kind):
        return {
            re.sub(r"/cell/.*", "/cell", name) for name in names(shapes(kind=kind, cell=cell, num_layers=2))
        }

    starts = range(4 if cell == "lstm" else 2)
    fixed = {
        "embedding/table",
        *(f"{layer}_{n}/cell" for layer in ("encoder/backward", "decoder/layers") for n in range(2)),
        *(f"decoder/initial_{n}/{leaf}" for n in starts for leaf in ("kernel", "bias")),
        *(f"decoder/readout/{leaf}" for leaf in ("kernel", "bias")),
    }
    assert modules("recurrent") == fixed
    attention = {"decoder/keys/kernel", "decoder/layers_0/query/kernel", "decoder/layers_0/align"}
    forward = {f"encoder/forward_{n}/cell" for n in range(2)}
    assert modules("recurrent_attention") == fixed | attention | forward


def shapes(**changes):
    model = build(tiny_config(**changes), VOCAB)
    return jax.eval_shape(lambda: init_params(model, seed=0))


@pytest.mark.parametrize("gated", [name for name, one in FEED_FORWARDS.items() if one.gated])
def test_a_gated_layer_may_cost_what_a_plain_one_does(gated):
    plain, equal = count(37_000), count(37_000, feed_forward=gated, equal_parameters=True)
    assert abs(equal - plain) / plain < 1e-3
    assert count(37_000, feed_forward=gated) > 1.15 * plain
    assert count(37_000, equal_parameters=True) == plain


def count(vocab_size, **changes):
    model = Transformer(TransformerConfig(**changes), vocab_size)
    return sum(x.size for x in jax.tree.leaves(jax.eval_shape(lambda: init_params(model, seed=0))))


def test_base_has_63_million_parameters():
    """By formula: V d + N (4 d² + 2 d f + f + d + 2·2d) + N (8 d² + 2 d f + f + d + 3·2d)."""
    v, d, f, n = 37_000, 512, 2048, 6
    formula = v * d + n * (12 * d * d + 2 * (2 * d * f + f + d) + 5 * 2 * d)
    assert count(v) == formula == 63_045_632


@pytest.mark.parametrize(
    ("changes", "millions"),
    [
        ({"d_k": 16}, 58),
        ({"d_k": 32}, 60),
        ({"num_layers": 2}, 36),
        ({"num_layers": 8}, 80),
        ({"d_model": 256, "d_k": 32, "d_v": 32}, 28),
        ({"d_model": 1024, "d_k": 128, "d_v": 128}, 168),
        ({"d_ff": 1024}, 53),
        ({"d_ff": 4096}, 90),
    ],
    ids=str,
)
def test_differences_from_base_are_those_of_table_3(changes, millions):
    vocab_size = 40_500  # PAPER: the one that fits nearly all rows; base is 65 there
    difference = count(vocab_size, **changes) - count(vocab_size)
    assert difference / 1e6 == pytest.approx(millions - 65, abs=1)
