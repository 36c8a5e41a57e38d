"""Parameter names, on which initial weights and checkpoints depend, and the parameter counts of the paper."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.errors import refused
from tests.support.tiny import VOCAB, random_params, tiny_config, token_batch
from transformer.config import BOS, ModelConfig
from transformer.model import build_model, init_params, parameter_shapes
from transformer.model.embedding import EMBEDDINGS, Embedding
from transformer.model.layers import FEED_FORWARDS

PROJECTIONS = [f"{name}/kernel" for name in ("query", "key", "value", "output")]
FEED_FORWARD = [f"{name}/{leaf}" for name in ("inner", "outer") for leaf in ("bias", "kernel")]


def expected_names(
    num_layers=1,
    feed_forward=FEED_FORWARD,
    norm=("bias", "scale"),
    residual=("norm",),
    projections=PROJECTIONS,
) -> set[str]:
    names = {"embedding/table"}
    for stack, attentions in (("encoder", ["self"]), ("decoder", ["self", "cross"])):
        for number in range(num_layers):
            layer = f"{stack}/layers_{number}"
            names |= {f"{layer}/feed_forward/{leaf}" for leaf in feed_forward}
            for name in ["feed_forward", *(f"{attention}_attention" for attention in attentions)]:
                names |= {f"{layer}/{name}_residual/{part}/{leaf}" for part in residual for leaf in norm}
            for attention in attentions:
                names |= {f"{layer}/{attention}_attention/{leaf}" for leaf in projections}
    return names


def parameter_names(vocab_size=VOCAB, **changes) -> set[str]:
    shapes = parameter_shapes(build_model(tiny_config(**{"num_layers": 1} | changes), vocab_size))
    paths = (path for path, _ in jax.tree.leaves_with_path(shapes))
    return {jax.tree_util.keystr(path, simple=True, separator="/") for path in paths}


def in_both_stacks(*names) -> set[str]:
    return {f"{stack}/{name}" for stack in ("encoder", "decoder") for name in names}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, expected_names()),
        ({"num_layers": 2}, expected_names(num_layers=2)),
        ({"positions": "learned"}, expected_names() | in_both_stacks("positions/table")),
        ({"positions": "t5_bias"}, expected_names() | in_both_stacks("positions/table")),
        (
            {"positions": "relative"},
            expected_names() | in_both_stacks("positions/key_table", "positions/value_table"),
        ),
        ({"positions": "rope"}, expected_names()),
        ({"positions": "alibi"}, expected_names()),
        ({"residual": "pre_norm"}, expected_names() | in_both_stacks("norm/bias", "norm/scale")),
        (
            {"residual": "sandwich"},
            expected_names(residual=["norm", "output_norm"]) | in_both_stacks("norm/bias", "norm/scale"),
        ),
        ({"residual": "deepnorm"}, expected_names()),
        (
            {"residual": "rezero"},
            {name.replace("/norm/", "/") for name in expected_names(norm=["alpha"])},
        ),
        ({"norm": "rms_norm"}, expected_names(norm=["scale"])),
        ({"norm": "dynamic_tanh"}, expected_names(norm=["alpha", "bias", "scale"])),
        ({"num_kv_heads": 1}, expected_names()),
        ({"attention_gate": True}, expected_names(projections=[*PROJECTIONS, "gate/kernel"])),
        (
            {"qk_norm": True},
            expected_names(projections=[*PROJECTIONS, "query_norm/scale", "key_norm/scale"]),
        ),
        (
            {"feed_forward": "swiglu"},
            expected_names(feed_forward=["inner/kernel", "gate/kernel", "outer/kernel"]),
        ),
        ({"embeddings": "two_way"}, expected_names() | {"embedding/source_table"}),
        (
            {"embeddings": "untied"},
            expected_names() | {"embedding/source_table", "embedding/output_table"},
        ),
    ],
    ids=lambda value: "-".join(map(str, value.values())) or "paper" if isinstance(value, dict) else "",
)
def test_parameters_have_fixed_names(changes, expected):
    assert parameter_names(**changes) == expected


def test_a_decoder_only_model_refuses_a_second_table():
    config = tiny_config(kind="decoder_only", embeddings="two_way")
    assert refused(build_model, config, VOCAB).startswith("model.embeddings is 'two_way'; with model.kind=")


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_recurrent_modules_have_fixed_names(cell):
    """Names are compared up to the cell, inside which Flax names the weights."""

    def modules(kind):
        names = parameter_names(kind=kind, cell=cell, num_layers=2)
        return {re.sub(r"/cell/.*", "/cell", name) for name in names}

    num_starts = 4 if cell == "lstm" else 2
    fixed = {
        "embedding/table",
        *(f"{layer}_{n}/cell" for layer in ("encoder/backward", "decoder/layers") for n in range(2)),
        *(f"decoder/initial_{n}/{leaf}" for n in range(num_starts) for leaf in ("kernel", "bias")),
        *(f"decoder/readout/{leaf}" for leaf in ("kernel", "bias")),
    }
    attention = {"decoder/keys/kernel", "decoder/layers_0/query/kernel", "decoder/layers_0/align"}
    forward = {f"encoder/forward_{n}/cell" for n in range(2)}

    assert modules("recurrent") == fixed
    assert modules("recurrent_attention") == fixed | attention | forward


def test_initial_parameters_depend_only_on_the_seed():
    model = build_model(tiny_config(kind="decoder_only", num_layers=1), VOCAB)

    first, again, other_seed = (init_params(model, seed) for seed in (0, 0, 1))

    assert jax.tree.map(jnp.shape, first) == jax.tree.map(jnp.shape, parameter_shapes(model))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (first["embedding"]["table"] != other_seed["embedding"]["table"]).all()


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_source_target_and_output_read_the_configured_matrices(name):
    tables = EMBEDDINGS[name]
    assert (tables.target == tables.output) == (name != "untied")
    assert (tables.source == tables.target) == (name == "three_way")
    embedding = Embedding(VOCAB, 22, tables)
    tokens = jnp.array([[4, 5]])

    def read(embedding):
        return (
            embedding.source(tokens),
            embedding.target(tokens),
            embedding.logit_factors(jnp.ones((1, 2, 22))),
        )

    initialize = jax.jit(functools.partial(embedding.init_with_output, method=read))
    (source, target, factors), variables = initialize(jax.random.key(0))

    params = variables["params"]
    assert set(params) == set(tables)
    for vectors, table in ((source, tables.source), (target, tables.target)):
        np.testing.assert_allclose(vectors, np.asarray(params[table])[[[4, 5]]] * 22**0.5, rtol=1e-6)
    np.testing.assert_array_equal(factors.table, params[tables.output])


@pytest.mark.parametrize("kind", ["transformer", "recurrent"])
def test_a_model_uses_a_separate_matrix_for_source_target_and_output(kind):
    """A logit depends only on the vectors of the source tokens, the decoder's input and its own class."""
    model = build_model(tiny_config(kind=kind, embeddings="untied", num_layers=1), VOCAB)
    params = random_params(model)

    def logit(embedding):
        variables = {"params": params | {"embedding": embedding}}
        return model.apply(variables, token_batch([[4, 5]]), token_batch([[6, 7, 2]]))[..., 11].sum()

    gradient = jax.jit(jax.grad(logit))(params["embedding"])

    reached = {name: np.flatnonzero(jnp.abs(table).max(axis=1)).tolist() for name, table in gradient.items()}
    assert reached == {"source_table": [4, 5], "table": [BOS, 6, 7], "output_table": [11]}


@functools.cache
def count(vocab_size, **changes) -> int:
    shapes = parameter_shapes(build_model(ModelConfig(**changes), vocab_size))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize("gated", [name for name, entry in FEED_FORWARDS.items() if entry.gated])
def test_equal_parameters_gives_a_gated_network_the_size_of_a_plain_network(gated):
    """The models have one layer per stack and a vocabulary of 8."""
    plain, wide, equal = (
        count(8, num_layers=1, **changes)
        for changes in ({}, {"feed_forward": gated}, {"feed_forward": gated, "equal_parameters": True})
    )
    assert abs(equal - plain) / plain < 1e-3
    assert wide > 1.25 * plain


def test_a_plain_network_ignores_equal_parameters():
    assert count(8, num_layers=1, equal_parameters=True) == count(8, num_layers=1)


def formula(vocab_size, num_layers=6, d_model=512, d_ff=2048, num_heads=8, d_k=64, d_v=64) -> int:
    """V d + N (A + F + 2·2d) + N (2A + F + 3·2d), where A is attention, and F a feed-forward network."""
    attention = num_heads * d_model * (2 * d_k + 2 * d_v)
    feed_forward = 2 * d_model * d_ff + d_ff + d_model
    layers = 3 * attention + 2 * feed_forward + 5 * 2 * d_model
    return vocab_size * d_model + num_layers * layers


def test_base_has_63_million_parameters():
    assert count(37_000) == formula(37_000) == 63_045_632


def test_the_number_of_parameters_is_that_of_a_formula():
    """All sizes differ from each other and from those of base."""
    sizes = {"num_layers": 2, "d_model": 22, "d_ff": 11, "num_heads": 3, "d_k": 6, "d_v": 7}
    assert count(VOCAB, **sizes) == formula(VOCAB, **sizes)
