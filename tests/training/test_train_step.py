"""The train step: an update does not depend on how the batch is split or packed."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.support.tiny import VOCAB, tiny_config
from transformer.config import ExperimentConfig, OptimizerConfig, TrainConfig, UserError
from transformer.data.batching import assemble
from transformer.data.splits import Side, Split
from transformer.model import build_model, init_params
from transformer.tasks.translation import translation_loss
from transformer.training.parallelism import Mesh, Pmap, Single, make_parallelism, put
from transformer.training.train_step import init_state, make_eval_step, make_train_step
from transformer.training.trainable import Hyperparameters

HYPERPARAMETERS = Hyperparameters(learning_rate=0.1, dropout_rate=0.3, label_smoothing=0.1)
KEY = jax.random.key(7)


def config(accumulation=1, **model):
    return ExperimentConfig(
        model=tiny_config(num_layers=1, **model),
        optimizer=OptimizerConfig(warmup_steps=2),
        train=TrainConfig(accumulation=accumulation),
    )


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


@pytest.fixture
def params(model, initial):
    """Fresh arrays, since a train step reuses the memory of its state."""
    return jax.tree.map(jnp.copy, initial)


@pytest.fixture(scope="module")
def initial(model):
    return init_params(model, seed=0)


def updates(parallelism, batch, accumulation=1, steps=2, vocab_size=VOCAB, **model):
    """Yields the state, the totals and the info after each of `steps` updates on one batch."""
    options = config(accumulation, **model)
    model = build_model(options.model, vocab_size)
    state = parallelism.create(lambda: init_state(init_params(model, seed=0), options))
    step = make_train_step(partial(translation_loss, model), options, parallelism)
    for _ in range(steps):
        state, totals, info = step(state, parallelism.shard(batch, accumulation), KEY, HYPERPARAMETERS)
        yield jax.device_get((state, totals, info))


def update(*arguments, **options):
    """State, totals and info after a few updates on the same batch."""
    return list(updates(*arguments, **options))[-1]


def without_padded_size(results):
    """Returns the results without the total `slots`.

    `slots` counts tokens and padding, so it depends on how the batch is split.
    """
    state, totals, info = results
    return state, {name: value for name, value in totals.items() if name != "slots"}, info


def assert_close(results, reference):
    """Allows for float32 rounding errors.

    Two Adam steps with learning rate 0.1 amplify these errors where gradients are near 0.
    """
    for a, b in zip(jax.tree.leaves(results), jax.tree.leaves(reference), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)


@pytest.fixture(scope="module")
def reference(packed):
    return update(Single(), packed)


def test_accumulation_does_not_change_an_update(packed, reference):
    results = update(Single(), packed, accumulation=7)
    assert_close(without_padded_size(results), without_padded_size(reference))


# Eight devices can split every matrix of this model along every axis. All sizes differ.
EVEN = {"d_model": 24, "d_ff": 40, "num_heads": 8, "d_k": 2, "d_v": 4, "vocab_size": 56}


@pytest.fixture(scope="module")
def on_one_device(packed):
    return list(updates(Single(), packed, steps=5, **EVEN))


@pytest.mark.parametrize(
    ("make", "accumulation"),
    [
        pytest.param(lambda: Pmap(jax.devices()[:2]), 2, id="pmap-2-accumulate-2", marks=pytest.mark.slow),
        pytest.param(Pmap, 1, id="pmap-8"),
        pytest.param(lambda: Mesh(fsdp=2, tensor=2), 2, id="mesh-2x2x2-accumulate-2"),
        pytest.param(Mesh, 1, id="mesh-8x1x1", marks=pytest.mark.slow),
        pytest.param(lambda: Mesh(fsdp=8), 1, id="mesh-1x8x1", marks=pytest.mark.slow),
        pytest.param(lambda: Mesh(fsdp=2, tensor=4), 1, id="mesh-1x2x4", marks=pytest.mark.slow),
        pytest.param(lambda: Mesh(tensor=8), 1, id="mesh-1x1x8", marks=pytest.mark.slow),
    ],
)
def test_several_devices_compute_the_same_updates(packed, on_one_device, make, accumulation):
    """After the first update, the moments of Adam are those of the gradient.

    The learning rate is 0.1, so each of the five updates amplifies rounding errors.
    """
    results = list(updates(make(), packed, accumulation, steps=5, **EVEN))
    for (_, totals, info), (_, expected_totals, expected_info) in zip(results, on_one_device, strict=True):
        for name in expected_totals.keys() - {"slots"}:
            assert totals[name] == pytest.approx(expected_totals[name], rel=1e-5), name
        assert info.gradient_norm == pytest.approx(expected_info.gradient_norm, rel=1e-4)
    (first, *_), (last, *_) = results[0], results[-1]
    (expected_first, *_), (expected_last, *_) = on_one_device[0], on_one_device[-1]
    assert relative_error(first.opt_state, expected_first.opt_state) < 1e-5
    assert relative_error(last.params, expected_last.params) < 1e-4


@pytest.mark.slow
def test_a_mesh_may_split_a_head_that_all_queries_share(packed):
    """The axis tensor splits the only key head, and norms and gates beside it."""
    changes = EVEN | {"num_kv_heads": 1, "qk_norm": True, "attention_gate": True, "residual": "sandwich"}
    expected = update(Single(), packed, **changes)
    results = update(Mesh(fsdp=2, tensor=2), packed, **changes)
    assert relative_error(results[0].params, expected[0].params) < 1e-4


def relative_error(tree, expected):
    """The norm of the difference, relative to the norm of `expected`."""
    difference = jax.tree.map(lambda a, b: np.float64(a) - np.float64(b), tree, expected)
    return float(optax.tree.norm(difference) / optax.tree.norm(expected))


def test_a_mesh_splits_weights_and_optimizer_state():
    options = config(**{name: value for name, value in EVEN.items() if name != "vocab_size"})
    model = build_model(options.model, EVEN["vocab_size"])
    state = init_state(init_params(model, 0), options)

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


def test_packing_does_not_change_an_update(split, reference):
    unpacked = assemble(split, list(np.arange(21)[:, None]), 21, 5, 5)
    assert_close(without_padded_size(update(Single(), unpacked)), without_padded_size(reference))


def test_dropout_is_on_in_training_and_changes_from_step_to_step(packed, model, params):
    """The weights do not change, so losses differ only because of dropout."""
    options, batch = config(), Single().shard(packed)
    hyperparameters = HYPERPARAMETERS._replace(learning_rate=0.0)
    evaluate = make_eval_step(partial(translation_loss, model), Single())
    losses = [float(evaluate(params, batch, None, hyperparameters)["loss"])]
    step = make_train_step(partial(translation_loss, model), options, Single())
    state = init_state(params, options)
    for _ in range(2):
        state, totals, _ = step(state, batch, KEY, hyperparameters)
        losses.append(float(totals["loss"]))
    assert len(set(losses)) == 3


def test_totals_count_tokens_characters_and_padding(split, packed, reference):
    _, totals, _ = reference
    assert totals["count"] == split.target.lengths.sum()
    assert totals["tokens"] == split.source.lengths.sum() + split.target.lengths.sum()
    assert totals["characters"] == split.characters.sum()
    assert totals["slots"] == 2 * 7 * 15
    assert 0 <= totals["correct"] <= totals["count"]


def test_evaluation_is_the_same_on_all_devices_and_has_no_dropout(packed, model, params):
    results = []
    for parallelism in (Single(), Pmap(), Mesh(fsdp=2)):
        evaluate = make_eval_step(partial(translation_loss, model), parallelism)
        totals = evaluate(params, parallelism.shard(packed), None, HYPERPARAMETERS)
        results.append({name: value for name, value in totals.items() if name != "slots"})
    assert_close(results[1:], [results[0]] * 2)
    no_dropout = HYPERPARAMETERS._replace(dropout_rate=0.0)
    assert evaluate(params, parallelism.shard(packed), None, no_dropout)["loss"] == totals["loss"]


@pytest.mark.parametrize(
    "make", [Single, Pmap, lambda: Mesh(fsdp=2, tensor=2)], ids=["single", "pmap", "mesh"]
)
def test_a_step_is_compiled_once(packed, caplog, make):
    """If the sharding of the new state differed, the second step would be compiled again."""
    steps = updates(make(), packed, steps=3, **EVEN)
    with jax.log_compiles():
        next(steps)
        assert "XLA compilation" in caplog.text
        caplog.clear()
        list(steps)
    assert "XLA compilation" not in caplog.text


def test_hyperparameters_change_without_recompilation(packed, model, params):
    options, loss_fn, traces = config(), partial(translation_loss, model), []

    def counting_loss(*arguments):
        traces.append(1)
        return loss_fn(*arguments)

    step = make_train_step(counting_loss, options, Single())
    state = init_state(params, options)
    for hyperparameters in (HYPERPARAMETERS, Hyperparameters(0.2, 0.0, 0.3)):
        state, *_ = step(state, Single().shard(packed), KEY, hyperparameters)
    assert len(traces) == 1


def test_an_empty_batch_keeps_all_weights_finite(packed):
    empty = jax.tree.map(np.zeros_like, packed)
    state, totals, _ = update(Single(), empty, steps=1)
    assert totals["count"] == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


def test_bfloat16_keeps_weights_and_totals_in_float32(packed):
    state, totals, _ = update(Single(), packed, steps=1, dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves((state.params, totals))} == {jnp.dtype("float32")}


def test_the_reported_gradient_norm_is_that_of_the_mean_loss(packed, model, params):
    loss_fn = partial(translation_loss, model)
    hyperparameters = HYPERPARAMETERS._replace(dropout_rate=0.0)
    options, batch = config(), Single().shard(packed)
    gradients, totals = jax.jit(jax.grad(loss_fn, has_aux=True))(params, batch, None, hyperparameters)
    squares = sum(float(jnp.sum(jnp.square(x / totals["count"]))) for x in jax.tree.leaves(gradients))
    _, _, info = make_train_step(loss_fn, options, Single())(
        init_state(params, options), batch, KEY, hyperparameters
    )
    assert float(info.gradient_norm) == pytest.approx(np.sqrt(squares), rel=1e-4)
    assert float(info.learning_rate) == pytest.approx(0.05)
    assert info.layer_norms == {}


def test_the_squared_gradient_norms_of_the_layers_add_up(packed, model, params):
    options = config()
    options = dataclasses.replace(options, train=dataclasses.replace(options.train, diagnostics=True))
    step = make_train_step(partial(translation_loss, model), options, Single())
    state = init_state(params, options)
    _, _, info = step(state, Single().shard(packed), KEY, HYPERPARAMETERS)
    assert {"embedding.table", "encoder.layers_0", "decoder.layers_0"} <= info.layer_norms.keys()
    squares = sum(float(norm) ** 2 for norm in info.layer_norms.values())
    assert float(info.gradient_norm) == pytest.approx(np.sqrt(squares), rel=1e-5)


def test_unknown_parallelism_is_refused():
    with pytest.raises(
        UserError, match="train.parallelism is 'x'; it must be one of: auto, mesh, pmap, single"
    ):
        make_parallelism(TrainConfig(parallelism="x"))
    assert make_parallelism(TrainConfig(fsdp=4)).mesh.shape == {"data": 2, "fsdp": 4, "tensor": 1}
