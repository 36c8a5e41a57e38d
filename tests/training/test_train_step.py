"""The train step: an update does not depend on how the batch is split or packed."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.support.tiny import random_params, tiny_config
from transformer.config import ExperimentConfig, OptimizerConfig, TrainConfig, UserError
from transformer.data.batching import assemble
from transformer.data.splits import Side, Split
from transformer.model import build_model
from transformer.tasks.translation import translation_loss
from transformer.training.parallelism import Mesh, Pmap, Single, make_parallelism, put
from transformer.training.train_step import init_state, make_eval_step, make_train_step
from transformer.training.trainable import Hyperparameters

HYPERPARAMETERS = Hyperparameters(learning_rate=0.1, dropout_rate=0.3, label_smoothing=0.1)
KEY = jax.random.key(7)
# Eight devices can split every matrix of this model along every axis. All sizes differ.
SIZES = {"num_layers": 1, "d_model": 24, "d_ff": 40, "num_heads": 8, "d_k": 2, "d_v": 4}
VOCAB = 56


def config(**model):
    return ExperimentConfig(
        model=tiny_config(**SIZES | model), optimizer=OptimizerConfig(warmup_steps=2), train=TrainConfig()
    )


def with_train(options, **changes):
    return dataclasses.replace(options, train=dataclasses.replace(options.train, **changes))


def random_side(rng, count):
    lengths = rng.integers(2, 6, count)
    tokens = np.concatenate([[*rng.integers(4, VOCAB, length - 1), 2] for length in lengths])
    return Side(tokens, np.cumsum([0, *lengths]))


@pytest.fixture(scope="module")
def split():
    """21 pairs of 2 to 5 tokens per side."""
    rng = np.random.default_rng(0)
    return Split((random_side(rng, 21), random_side(rng, 21)), np.arange(1, 22))


@pytest.fixture(scope="module")
def packed(split):
    """Seven rows of three pairs."""
    return assemble(split, list(np.arange(21).reshape(7, 3)), 7, 15, 15)


@pytest.fixture(scope="module")
def model():
    return build_model(config().model, VOCAB)


@pytest.fixture(scope="module")
def params(model):
    return random_params(model)


@pytest.fixture(scope="module")
def train_step(model):
    """The step on one device, which most tests share, since it takes seconds to compile."""
    return make_train_step(partial(translation_loss, model), config(), Single())


@pytest.fixture(scope="module")
def eval_step(model):
    return make_eval_step(partial(translation_loss, model), Single())


def new_state(params, parallelism=None):
    """The state before the first update. Its arrays are new, since a step reuses the memory of its state."""
    make = jax.jit(lambda: init_state(params, config()))
    return (parallelism or Single()).create(make)


def updates(step, state, batch, steps=5):
    """Yields the state, the totals and the info after each of `steps` updates on one batch."""
    for _ in range(steps):
        state, totals, info = step(state, batch, KEY, HYPERPARAMETERS)
        yield jax.device_get((state, totals, info))


def last_update(step, state, batch):
    """The state, the totals and the info after two updates on one batch."""
    *_, last = updates(step, state, batch, steps=2)
    return last


def assert_close(results, reference):
    """Allows for float32 rounding errors.

    Two Adam steps with learning rate 0.1 amplify these errors where gradients are near 0.
    """
    for a, b in zip(jax.tree.leaves(results), jax.tree.leaves(reference), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)


@pytest.fixture(scope="module")
def on_one_device(packed, params, train_step):
    return list(updates(train_step, new_state(params), Single().shard(packed)))


@pytest.mark.parametrize(
    ("make", "accumulation"),
    [
        pytest.param(Single, 7, id="single-accumulate-7", marks=pytest.mark.slow),
        pytest.param(lambda: Pmap(jax.devices()[:2]), 2, id="pmap-2-accumulate-2", marks=pytest.mark.slow),
        pytest.param(Pmap, 1, id="pmap-8"),
        pytest.param(lambda: Mesh(fsdp=2, tensor=2), 2, id="mesh-2x2x2-accumulate-2"),
        pytest.param(Mesh, 1, id="mesh-8x1x1", marks=pytest.mark.slow),
        pytest.param(lambda: Mesh(fsdp=8), 1, id="mesh-1x8x1", marks=pytest.mark.slow),
        pytest.param(lambda: Mesh(fsdp=2, tensor=4), 1, id="mesh-1x2x4", marks=pytest.mark.slow),
        pytest.param(lambda: Mesh(tensor=8), 1, id="mesh-1x1x8", marks=pytest.mark.slow),
    ],
)
def test_accumulation_and_devices_change_no_update_and_compile_one_program(
    packed, model, params, on_one_device, caplog, make, accumulation
):
    """After the first update, the moments of Adam are those of the gradient.

    The learning rate is 0.1, so each of the five updates amplifies rounding errors. If the sharding of the
    new state differed, the second step would be compiled again.
    """
    parallelism = make()
    options = with_train(config(), accumulation=accumulation)
    step = make_train_step(partial(translation_loss, model), options, parallelism)
    batch = parallelism.shard(packed, accumulation)
    steps = updates(step, new_state(params, parallelism), batch)
    with jax.log_compiles():
        results = [next(steps)]
        assert "XLA compilation" in caplog.text
        caplog.clear()
        results += steps
    assert "XLA compilation" not in caplog.text

    for (_, totals, info), (_, expected_totals, expected_info) in zip(results, on_one_device, strict=True):
        for name in expected_totals.keys() - {"slots"}:  # padding depends on the split
            assert totals[name] == pytest.approx(expected_totals[name], rel=1e-5), name
        assert info.gradient_norm == pytest.approx(expected_info.gradient_norm, rel=1e-4)
    (first, *_), (last, *_) = results[0], results[-1]
    (expected_first, *_), (expected_last, *_) = on_one_device[0], on_one_device[-1]
    assert relative_error(first.opt_state, expected_first.opt_state) < 1e-5
    assert relative_error(last.params, expected_last.params) < 1e-4


@pytest.mark.slow
def test_a_mesh_may_split_a_head_that_all_queries_share(packed):
    """The axis tensor splits the only key head, and norms and gates beside it."""
    changes = {"num_kv_heads": 1, "qk_norm": True, "attention_gate": True, "residual": "sandwich"}
    options = config(**changes)
    model = build_model(options.model, VOCAB)
    params = random_params(model)

    def trained_params(parallelism):
        step = make_train_step(partial(translation_loss, model), options, parallelism)
        return last_update(step, new_state(params, parallelism), parallelism.shard(packed))[0].params

    assert relative_error(trained_params(Mesh(fsdp=2, tensor=2)), trained_params(Single())) < 1e-4


def relative_error(tree, expected):
    """The norm of the difference, relative to the norm of `expected`."""
    values, expected_values = (
        np.concatenate([np.ravel(x).astype(np.float64) for x in jax.tree.leaves(t)]) for t in (tree, expected)
    )
    return np.linalg.norm(values - expected_values) / np.linalg.norm(expected_values)


def test_a_mesh_splits_weights_and_optimizer_state(params):
    state = new_state(params)

    def bytes_on_a_device(mesh):
        leaves = jax.tree.leaves((put(mesh, state).params, put(mesh, state).opt_state[0].mu))
        return sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves if leaf.ndim == 2)

    whole = bytes_on_a_device(Mesh())
    assert whole == sum(leaf.nbytes for leaf in jax.tree.leaves(state.params) if leaf.ndim == 2) * 2
    assert bytes_on_a_device(Mesh(fsdp=8)) == whole / 8
    assert bytes_on_a_device(Mesh(fsdp=2, tensor=2)) == whole / 4


def test_an_axis_that_does_not_divide_a_dimension_does_not_split_it():
    shardings = Mesh(fsdp=4, tensor=2).shardings({"embedding": {"table": np.zeros((12, 5))}})
    assert shardings["embedding"]["table"].spec == jax.sharding.PartitionSpec(("fsdp",), None)


def test_a_mesh_that_the_devices_cannot_form_is_refused():
    with pytest.raises(
        UserError, match=r"train.fsdp times train.tensor is 6; it must divide the number of devices \(8\)"
    ):
        Mesh(fsdp=3, tensor=2)


def test_packing_does_not_change_an_update(split, params, train_step):
    """Seven pairs are packed in three of seven rows, or have a row each."""
    packed, unpacked = (
        Single().shard(assemble(split, rows, 7, 15, 15))
        for rows in ([np.arange(3), np.arange(3, 6), np.array([6])], list(np.arange(7)[:, None]))
    )
    expected, results = (last_update(train_step, new_state(params), batch) for batch in (packed, unpacked))
    assert_close(results, expected)


def test_dropout_is_on_in_training_and_changes_from_step_to_step(packed, params, train_step, eval_step):
    """The weights do not change, so losses differ only because of dropout."""
    batch, hyperparameters = Single().shard(packed), HYPERPARAMETERS._replace(learning_rate=0.0)
    losses = [float(eval_step(params, batch, None, hyperparameters)["loss"])]
    state = new_state(params)
    for _ in range(2):
        state, totals, _ = train_step(state, batch, KEY, hyperparameters)
        losses.append(float(totals["loss"]))
    assert len(set(losses)) == 3


def test_totals_count_tokens_characters_and_padding(split, on_one_device):
    _, totals, _ = on_one_device[0]
    assert totals["count"] == split.target.lengths.sum()
    assert totals["tokens"] == split.source.lengths.sum() + split.target.lengths.sum()
    assert totals["characters"] == split.characters.sum()
    assert totals["slots"] == 2 * 7 * 15
    assert 0 <= totals["correct"] <= totals["count"]


def test_evaluation_is_the_same_on_all_devices_and_has_no_dropout(packed, model, params, eval_step):
    expected = eval_step(params, Single().shard(packed), None, HYPERPARAMETERS)
    no_dropout = HYPERPARAMETERS._replace(dropout_rate=0.0)
    assert eval_step(params, Single().shard(packed), None, no_dropout)["loss"] == expected["loss"]
    for parallelism in (Pmap(), Mesh(fsdp=2)):
        evaluate = make_eval_step(partial(translation_loss, model), parallelism)
        totals = evaluate(params, parallelism.shard(packed), None, HYPERPARAMETERS)
        assert_close(totals | {"slots": expected["slots"]}, expected)


def test_hyperparameters_change_without_recompilation(packed, params, train_step, caplog):
    """The second step differs in all hyperparameters and has the state that the first step returned."""
    batch = Single().shard(packed)
    state, *_ = train_step(new_state(params), batch, KEY, HYPERPARAMETERS)
    with jax.log_compiles():
        train_step(state, batch, KEY, Hyperparameters(0.2, 0.0, 0.3))
    assert "XLA compilation" not in caplog.text


def test_an_empty_batch_keeps_all_weights_finite(packed, params, train_step):
    empty = Single().shard(jax.tree.map(np.zeros_like, packed))
    state, totals, _ = train_step(new_state(params), empty, KEY, HYPERPARAMETERS)
    assert totals["count"] == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


def test_bfloat16_keeps_weights_and_totals_in_float32(packed, params):
    options = config(dtype="bfloat16")
    model = build_model(options.model, VOCAB)
    step = make_train_step(partial(translation_loss, model), options, Single())
    state, totals, _ = jax.eval_shape(step, new_state(params), packed, KEY, HYPERPARAMETERS)
    assert {x.dtype for x in jax.tree.leaves((state.params, totals))} == {jnp.dtype("float32")}


def sum_loss(params, batch, key, hyperparameters):
    """The sum of the batch times the sum of all weights. Each derivative is the sum of the batch."""
    del key, hyperparameters
    loss = batch.sum() * optax.tree.sum(params)
    return loss, {"loss": loss, "count": jnp.float32(len(batch))}


@pytest.mark.parametrize("diagnostics", [False, True])
def test_the_reported_gradient_norms_are_those_of_the_mean_loss(diagnostics):
    """The mean of the batch is 3, so the norm of n derivatives is 3 sqrt(n)."""
    weights = {
        "embedding": {"table": jnp.ones((4, 3))},
        "encoder": {"layers_0": {"a": {"kernel": jnp.ones((3, 3))}, "b": {"bias": jnp.ones(7)}}},
    }
    step = make_train_step(sum_loss, with_train(config(), diagnostics=diagnostics), Single())
    _, _, info = step(new_state(weights), jnp.float32([1, 2, 6]), KEY, HYPERPARAMETERS)
    assert float(info.gradient_norm) == pytest.approx(3 * 28**0.5)
    assert float(info.learning_rate) == pytest.approx(0.05)
    layers = {"embedding.table": 3 * 12**0.5, "encoder.layers_0": 3 * 16**0.5}
    assert {name: float(norm) for name, norm in info.layer_norms.items()} == pytest.approx(
        layers if diagnostics else {}
    )


def test_unknown_parallelism_is_refused():
    with pytest.raises(
        UserError, match="train.parallelism is 'x'; it must be one of: auto, mesh, pmap, single"
    ):
        make_parallelism(TrainConfig(parallelism="x"))
    assert make_parallelism(TrainConfig(fsdp=4)).mesh.shape == {"data": 2, "fsdp": 4, "tensor": 1}
