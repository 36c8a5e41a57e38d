"""FLOPs compared with counts made by hand."""

import jax
import jax.numpy as jnp
import pytest

from transformer.batch import TokenBatch
from transformer.config import ModelConfig
from transformer.model import build_model, parameter_shapes
from transformer.model.flops import matmul_flops
from transformer.model.recurrent import CELLS


def test_a_product_and_its_gradient_are_counted():
    a, b = jnp.ones((2, 3)), jnp.ones((3, 5))
    assert matmul_flops(jnp.matmul, a, b) == 2 * 2 * 3 * 5
    assert matmul_flops(jax.grad(lambda a, b: jnp.sum((a @ b) ** 2), argnums=(0, 1)), a, b) == 3 * 60


def test_a_batched_product_is_counted():
    x, y = jnp.ones((7, 2, 3)), jnp.ones((7, 5, 3))
    assert matmul_flops(lambda x, y: jnp.einsum("bik,bjk->bij", x, y), x, y) == 2 * 7 * 2 * 3 * 5


def test_a_scan_counts_every_iteration_and_a_conditional_its_most_expensive_branch():
    w = jnp.ones((3, 3))

    def step(x, _):
        return jax.lax.cond(x.sum() > 0, lambda x: x @ w @ w, lambda x: x @ w, x), None

    assert matmul_flops(jax.jit(lambda x: jax.lax.scan(step, x, None, length=11)[0]), w) == 11 * 2 * 54


def test_a_while_loop_is_refused():
    w = jnp.ones((3, 3))
    with pytest.raises(ValueError, match="while loop"):
        matmul_flops(lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ w, x), w)


ROWS, SOURCE_LENGTH, TARGET_LENGTH = 4, 6, 9


def forward_flops(config: ModelConfig) -> int:
    model = build_model(config, 13)
    lengths = (SOURCE_LENGTH, TARGET_LENGTH)
    batches = (TokenBatch.from_tokens(jnp.ones((ROWS, length), int)) for length in lengths)
    return matmul_flops(model.apply, {"params": parameter_shapes(model)}, *batches)


@pytest.mark.parametrize("changes", [{}, {"num_kv_heads": 1, "attention_gate": True}], ids=str)
def test_flops_of_a_transformer_equal_a_formula(changes):
    """The formula adds the products of attention, of the feed-forward networks and of the output."""
    config = ModelConfig(num_layers=2, d_model=22, d_ff=11, num_heads=3, d_k=5, d_v=7, **changes)
    s, t, m, f, d, e = SOURCE_LENGTH, TARGET_LENGTH, 22, 11, 15, 21  # d and e: d_k and d_v times the heads
    shared = d + e if not changes else (d + e) // 3  # width of the keys and values of all heads
    gate = e if changes else 0

    def attention(queries, keys):
        return queries * m * (d + e + gate) + keys * m * shared + queries * keys * (d + e)

    encoder = attention(s, s) + 2 * s * m * f
    decoder = attention(t, t) + attention(t, s) + 2 * t * m * f
    products = ROWS * (2 * (encoder + decoder) + t * m * 13)
    assert forward_flops(config) == 2 * products


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("attends", [False, True])
def test_flops_of_a_recurrent_model_equal_a_formula(attends, cell):
    """The formula adds the products of the cells, the initial states, the readout and the output.

    With attention, the encoder has a second direction, and keys, queries, logits and contexts are added.
    """
    kind = "recurrent_attention" if attends else "recurrent"
    config = ModelConfig(kind=kind, cell=cell, encoder_layers=2, decoder_layers=3, d_model=22)
    s, t, m = SOURCE_LENGTH, TARGET_LENGTH, 22
    a = 2 * m if attends else m  # width of an encoder state
    gates, vectors = {"lstm": (4, 2), "gru": (3, 1)}[cell]

    def step(width):
        return gates * m * (width + m)

    encoder = (a // m) * s * (step(m) + step(a))
    starts = 3 * vectors * m * m
    decoder = t * (step(m + a) + 2 * step(m) + (m + m + a) * 2 * m + m * 13)
    attention = s * a * m + t * (m * m + s * m + s * a) if attends else 0
    assert forward_flops(config) == 2 * ROWS * (encoder + starts + decoder + attention)
