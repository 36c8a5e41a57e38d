"""The train step: an update does not depend on how the batch is split or packed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.tiny import VOCAB, tiny_config
from transformer.config import ExperimentConfig, OptimizerConfig, TrainConfig, UserError
from transformer.data.batching import assemble
from transformer.data.splits import Side, Split
from transformer.model import build_model, init_params
from transformer.tasks.translation import make_loss_fn
from transformer.training.parallelism import Pmap, Single, make_parallelism
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
    return Split(random_side(rng, 21), random_side(rng, 21), np.arange(1, 22))


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


def update(parallelism, batch, accumulation=1, steps=2, **model):
    """State, totals and info after a few updates on one batch."""
    options = config(accumulation, **model)
    model = build_model(options.model, VOCAB)
    state = parallelism.put(init_state(init_params(model, seed=0), options))
    step = make_train_step(make_loss_fn(model), options, parallelism)
    for _ in range(steps):
        state, totals, info = step(state, parallelism.shard(batch, accumulation), KEY, HYPERPARAMETERS)
    return state, totals, info


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


@pytest.mark.parametrize(
    ("parallelism", "accumulation"),
    [
        (Single(), 2),
        (Single(), 7),
        (Pmap(jax.devices()[:2]), 2),
        (Pmap(), 1),
    ],
    ids=["accumulate-2", "accumulate-7", "pmap-2-accumulate-2", "pmap-8"],
)
def test_devices_and_accumulation_do_not_change_an_update(packed, reference, parallelism, accumulation):
    results = update(parallelism, packed, accumulation)
    assert_close(without_padded_size(results), without_padded_size(reference))


def test_packing_does_not_change_an_update(split, reference):
    unpacked = assemble(split, list(np.arange(21)[:, None]), 21, 5, 5)
    assert_close(without_padded_size(update(Single(), unpacked)), without_padded_size(reference))


def test_dropout_is_on_in_training_and_changes_from_step_to_step(packed, model, params):
    """The weights do not change, so losses differ only because of dropout."""
    options, batch = config(), Single().shard(packed)
    hyperparameters = HYPERPARAMETERS._replace(learning_rate=0.0)
    evaluate = make_eval_step(make_loss_fn(model), Single())
    losses = [float(evaluate(params, batch, None, hyperparameters)["loss"])]
    step = make_train_step(make_loss_fn(model), options, Single())
    state = init_state(params, options)
    for _ in range(2):
        state, totals, _ = step(state, batch, KEY, hyperparameters)
        losses.append(float(totals["loss"]))
    assert len(set(losses)) == 3


def test_totals_count_tokens_characters_and_padding(split, packed, reference):
    _, totals, _ = reference
    assert totals["count"] == split.target.lengths.sum()
    assert totals["source_count"] == split.source.lengths.sum()
    assert totals["characters"] == split.characters.sum()
    assert totals["slots"] == 2 * 7 * 15
    assert 0 <= totals["correct"] <= totals["count"]


def test_evaluation_is_the_same_on_all_devices_and_has_no_dropout(packed, model, params):
    results = []
    for parallelism in (Single(), Pmap()):
        evaluate = make_eval_step(make_loss_fn(model), parallelism)
        totals = evaluate(params, parallelism.shard(packed), None, HYPERPARAMETERS)
        results.append({name: value for name, value in totals.items() if name != "slots"})
    assert_close(*results)
    no_dropout = HYPERPARAMETERS._replace(dropout_rate=0.0)
    assert evaluate(params, parallelism.shard(packed), None, no_dropout)["loss"] == totals["loss"]


@pytest.mark.parametrize("parallelism", [Single(), Pmap()], ids=["single", "pmap"])
def test_the_sharding_of_a_state_does_not_change(packed, parallelism):
    """With a different sharding, the second step would be compiled again."""

    def step(state, batch, key, hyperparameters):
        return parallelism.reduce(state + batch.characters.sum())

    state = parallelism.put(np.float32(1))
    compiled = parallelism.compile(step)
    assert compiled(state, parallelism.shard(packed), None, None).sharding == state.sharding


def test_hyperparameters_change_without_recompilation(packed, model, params):
    options, loss_fn, traces = config(), make_loss_fn(model), []

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
    loss_fn = make_loss_fn(model)
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
    step = make_train_step(make_loss_fn(model), options, Single())
    state = init_state(params, options)
    _, _, info = step(state, Single().shard(packed), KEY, HYPERPARAMETERS)
    assert {"embedding.table", "encoder.layers_0", "decoder.layers_0"} <= info.layer_norms.keys()
    squares = sum(float(norm) ** 2 for norm in info.layer_norms.values())
    assert float(info.gradient_norm) == pytest.approx(np.sqrt(squares), rel=1e-5)


def test_unknown_parallelism_is_refused():
    with pytest.raises(UserError, match="train.parallelism is 'x'; it must be one of: auto, pmap, single"):
        make_parallelism("x")
    assert isinstance(make_parallelism("auto"), Pmap)
